"""Handwritten digits, 8 x 8, that come with scikit-learn: 1,797 real images that need no download.

Source: the test set of UCI "Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak 1998), through
`sklearn.datasets.load_digits`.
"""
import numpy as np

from simclr_jax.data.source import Source, of_arrays
from simclr_jax.errors import UsageError

SPLITS = ("train", "test", "fit", "val")
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

# Where the words for what is measured begin and end: the thirds of the training split, as near as they come for widths.
STROKES = (4.61, 5.13)  # mean of the pixels, 0..16: thin | medium | thick
LEANS = (-0.0934, 0.0148)  # pixels to the right for each up: left | upright | right
WIDTHS = (5, 6)  # columns from the first to the last with a pixel of 8 or more: narrow | medium | wide

_PATTERNS = (
    "a handwritten {word}",
    "the digit {digit} in {stroke} strokes",
    "{a_width} {word}, {lean}",
    "{a_stroke} {digit} that is {width} and {lean}",
    "{a_width} digit {word} written with {stroke} strokes, {lean}",
    "this {digit} is {lean} and has {stroke} strokes",
)


def make(*, split: str = "train", captions: bool = False) -> Source:
    """The digits.

    Args:
      split: "train" (1,297) or "test" (500), stratified; or, for choosing hyperparameters without a look at the test
        split, "fit" (1,037) and "val" (260), which share out "train".
      captions: whether each image gets six sentences about it; see `describe`.

    Returns:
      A source of u8[8,8,3] images, grey: values 0..16 of the data set scaled to 0..255; labels are the ten digits.

    Raises:
      UsageError: another split, or scikit-learn is not installed.
    """
    if split not in SPLITS:
        raise UsageError(f"digits: there is no split {split!r}; there are: {', '.join(SPLITS)}")
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError:
        raise UsageError("digits come with scikit-learn, which is not installed; pip install scikit-learn") from None
    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    parts = {}
    parts["train"], parts["test"] = train_test_split(
        np.arange(len(images)), test_size=500, stratify=digits.target, random_state=0)
    parts["fit"], parts["val"] = train_test_split(
        parts["train"], test_size=0.2, stratify=digits.target[parts["train"]], random_state=0)
    rows = np.sort(parts[split])
    texts = list(map(describe, digits.images[rows], digits.target[rows])) if captions else None
    return of_arrays(images[rows], digits.target[rows], classes=tuple("0123456789"), captions=texts,
                     describe=f"digits ({split}): {len(rows)} images of 8x8, 10 classes")


def describe(image: np.ndarray, label: int) -> tuple[str, ...]:
    """Sentences about a digit, true by what is measured: its name, the weight of its strokes, its slant, its width.

    The slant is the shear that second moments give: minus the covariance of column and row over the variance of rows.

    Args:
      image: [8,8], values 0..16.
      label: 0..9.
    """
    stroke = _word(image.mean(), STROKES, ("thin", "medium", "thick"))
    lean = _word(_slant(image), LEANS, ("leaning left", "upright", "leaning right"))
    columns = np.flatnonzero((image >= 8).any(0))
    width = _word(columns[-1] - columns[0] + 1, WIDTHS, ("narrow", "medium", "wide"))
    return tuple(p.format(word=WORDS[label], digit=label, stroke=stroke, a_stroke=f"a {stroke}", lean=lean,
                          width="of medium width" if width == "medium" else width,
                          a_width="a medium-wide" if width == "medium" else f"a {width}") for p in _PATTERNS)


def _word(value, limits, words):
    return words[int(np.searchsorted(limits, value, side="right"))]


def _slant(image):
    rows, columns = np.mgrid[:8, :8]
    rows, columns = rows - np.average(rows, weights=image), columns - np.average(columns, weights=image)
    return -(image * rows * columns).sum() / (image * rows**2).sum()
