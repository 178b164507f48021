"""Handwritten digits, 8 x 8, that come with scikit-learn: 1,797 real images that need no download.

Source: the test set of UCI "Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak 1998), through
`sklearn.datasets.load_digits`.
"""
import numpy as np

from simclr_jax.data.source import Source, of_arrays
from simclr_jax.errors import UsageError

SPLITS = ("train", "test", "fit", "val")


def make(*, split: str = "train") -> Source:
    """The digits.

    Args:
      split: "train" (1,297) or "test" (500), stratified; or, for choosing hyperparameters without a look at the test
        split, "fit" (1,037) and "val" (260), which share out "train".

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
    return of_arrays(images[rows], digits.target[rows], classes=tuple("0123456789"),
                     describe=f"digits ({split}): {len(rows)} images of 8x8, 10 classes")
