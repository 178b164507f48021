"""Arrays that are not read yet."""
from typing import Callable, NamedTuple

import numpy as np


class Tensor(NamedTuple):
    """One array of a set of weights, `dict[str, Tensor]`. Nothing is in memory that is not being read."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]  # loads this array and nothing else


def of(array) -> Tensor:
    """An array that is there already."""
    array = np.asarray(array)
    return Tensor(array.shape, array.dtype, lambda: array)
