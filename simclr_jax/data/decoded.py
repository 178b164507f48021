"""Every image of a source once, in order, decoded and resized to one size by several threads."""
import concurrent.futures

import numpy as np

from simclr_jax.data.memory import cores, in_order
from simclr_jax.data.source import Source, failed


class Differs(Exception):
    """An image is of another size than was promised."""


def squeezed(image: np.ndarray, shape) -> np.ndarray:
    """u8[H,W,3] -> u8[*shape,3], each axis on its own: bicubic, with as wide a support as shrinking asks for."""
    if image.shape[:2] == tuple(shape):
        return image
    from PIL import Image

    return np.asarray(Image.fromarray(image).resize(tuple(shape)[::-1], Image.Resampling.BICUBIC))


def decoded(source: Source, indices, shape=None, squeeze: bool = False, *, threads: int = 0):
    """Yields (index, u8[*shape,3], label, (H, W) of the original, is it readable) of each index, in order.

    Args:
      shape: of the images; None: they are left out. squeeze: whether images of another size are resized to it.
      threads: 0: all cores.

    Raises:
      Differs: an image is of another size, and shall not be squeezed.
      UsageError: more examples are unreadable than the source allows.
    """
    def prepared(index):
        example = source.read(index)
        size = example.image.shape[:2] if source.sizes is None else source.sizes[index]
        fits = shape is not None and (squeeze or example.image.shape[:2] == tuple(shape))
        return index, squeezed(example.image, shape) if fits else None, example.label, size, example.index == index

    with concurrent.futures.ThreadPoolExecutor(threads or cores()) as pool:
        for found in in_order(pool, prepared, indices):
            if failed(source) is not None:
                raise failed(source) from None
            if shape is not None and found[1] is None and found[4]:
                raise Differs
            yield found
