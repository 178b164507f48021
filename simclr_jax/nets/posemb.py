"""Position embeddings of grids of patches: sines and cosines, and learned ones at another resolution."""
import functools

import jax.numpy as jnp
import numpy as np

A = -0.75  # the free parameter of Keys' cubic kernel (1981, equation 4) in PyTorch and OpenCV; -0.5 elsewhere


def sincos(height: int, width: int, features: int, *, kind: str = "sincos", temperature: float = 10000.0) -> np.ndarray:
    """f64[height * width, features], row by row; features a multiple of 4.

    The quarters are sines and cosines of one coordinate, then of the other, at features / 4 frequencies that fall from
    1 towards 1 / temperature. Two public forms, which differ:

    - "sincos", MoCo v3 (vits.py of facebookresearch/moco-v3): rows before columns; frequency i is
      temperature^(-i / n), so that the last is above 1 / temperature.
    - "sincos_bv", google-research/big_vision (models/vit.py): columns before rows; temperature^(-i / (n - 1)).
    """
    n = features // 4
    omega = temperature ** -(np.arange(n) / (n if kind == "sincos" else max(n - 1, 1)))
    y, x = (a.reshape(-1, 1) * omega for a in np.mgrid[:height, :width])
    first, second = (y, x) if kind == "sincos" else (x, y)
    return np.concatenate([np.sin(first), np.cos(first), np.sin(second), np.cos(second)], axis=1)


@functools.lru_cache(maxsize=None)
def bicubic(old: int, new: int, corners: bool = False) -> np.ndarray:
    """f64[new, old]: the weights of cubic interpolation of `old` samples at `new` places, by pixel centres.

    torch.nn.functional.interpolate(mode="bicubic", antialias=False) with a size given: four neighbours whatever the
    ratio, those outside being the nearest inside. The identity for old == new.

    Args:
      corners: the first and last samples stay where they are (align_corners=True), and not the pixels' outer edges.
    """
    at = np.arange(new) * (old - 1) / max(new - 1, 1) if corners else (np.arange(new) + 0.5) * old / new - 0.5
    weights = np.zeros((new, old))
    for tap in range(-1, 3):
        where = np.floor(at) + tap
        d = np.abs(at - where)
        near = (A + 2) * d ** 3 - (A + 3) * d ** 2 + 1
        far = A * (d ** 3 - 5 * d ** 2 + 8 * d - 4)
        np.add.at(weights, (np.arange(new), np.clip(where, 0, old - 1).astype(int)), np.where(d <= 1, near, far))
    return weights


def resize(table, prefix: int, old: tuple[int, int], new: tuple[int, int]):
    """A learned table float[prefix + old height * old width, D] for a grid of another size.

    The first `prefix` positions, of class tokens, stay; the others are interpolated, as DINOv2 and its copy in
    Transformers do it (the first DINO code adds 0.1 to the sizes; big_vision zooms linearly).
    """
    if tuple(old) == tuple(new):
        return table
    rows, columns = (jnp.asarray(bicubic(o, n), table.dtype) for o, n in zip(old, new))
    grid = table[prefix:].reshape(*old, -1)
    # In full precision: on accelerators a product's default may be bf16, and these weights make a difference of taps.
    grid = jnp.einsum("hy,wx,yxd->hwd", rows, columns, grid, precision="highest")
    return jnp.concatenate([table[:prefix], grid.reshape(new[0] * new[1], -1)])
