"""Images in memory, for Python callers and tests."""
from simclr_jax.data.source import Source, of_arrays


def make(*, images, labels=None, classes: tuple = (), captions=None) -> Source:
    """A source of arrays; see `simclr_jax.data.source.of_arrays` for shapes and errors."""
    return of_arrays(images, labels, classes=classes, describe=f"arrays: {len(images)} images", captions=captions)
