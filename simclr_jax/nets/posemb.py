"""Position embeddings of grids of patches: sines and cosines, and learned ones at another resolution."""
import functools

import jax.numpy as jnp
import numpy as np

A = -0.75  # the free parameter of Keys' cubic kernel (1981, equation 4) in PyTorch and OpenCV; -0.5 elsewhere
RESIZES = "size", "offset", "antialias"


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
def bicubic(old: int, new: int, corners: bool = False, offset: float = 0.0) -> np.ndarray:
    """f64[new, old]: the weights of cubic interpolation of `old` samples at `new` places, by pixel centres.

    torch.nn.functional.interpolate(mode="bicubic", antialias=False) with a size given: four neighbours whatever the
    ratio, those outside being the nearest inside. The identity for old == new.

    Args:
      corners: the first and last samples stay where they are (align_corners=True), and not the pixels' outer edges.
      offset: places are those of new + offset samples, as where a scale_factor of (new + offset) / old is given.
    """
    places = (np.arange(new) + 0.5) * old / (new + offset) - 0.5
    at = np.arange(new) * (old - 1) / max(new - 1, 1) if corners else places
    weights = np.zeros((new, old))
    for tap in range(-1, 3):
        where = np.floor(at) + tap
        d = np.abs(at - where)
        np.add.at(weights, (np.arange(new), np.clip(where, 0, old - 1).astype(int)), _keys(d, A))
    return weights


@functools.lru_cache(maxsize=None)
def antialiased(old: int, new: int) -> np.ndarray:
    """f64[new, old]: the same with antialias=True: where samples become fewer, the kernel is as much wider.

    A is -0.5, and there is nothing outside.
    """
    places, wide = (np.arange(new)[:, None] + 0.5) * old / new, max(old / new, 1.0)
    weights = _keys(np.abs(np.arange(old) + 0.5 - places) / wide, -0.5)
    return weights / weights.sum(axis=1, keepdims=True)


def _keys(d, a):
    """Keys' kernel at distances d from 0 on; 0 from 2 on."""
    near = (a + 2) * d ** 3 - (a + 3) * d ** 2 + 1
    far = a * (d ** 3 - 5 * d ** 2 + 8 * d - 4)
    return np.where(d <= 1, near, np.where(d < 2, far, 0.0))


def resize(table, prefix: int, old: tuple[int, int], new: tuple[int, int], how: str = "size"):
    """A learned table float[prefix + old height * old width, D] for a grid of another size.

    The first `prefix` positions, of class tokens, stay; the others are interpolated. (big_vision zooms linearly.)

    Args:
      how: "size": `bicubic`, as Transformers' Dinov2Model. "offset": 0.1 is added to the new sizes, as in DINO and
        DINOv2. "antialias": `antialiased`, as in the released DINOv2 nets with registers, and timm.
    """
    if tuple(old) == tuple(new):
        return table
    made = antialiased if how == "antialias" else functools.partial(bicubic, offset=0.1 if how == "offset" else 0.0)
    rows, columns = (jnp.asarray(made(o, n), table.dtype) for o, n in zip(old, new))
    grid = table[prefix:].reshape(*old, -1)
    # In full precision: on accelerators a product's default may be bf16, and these weights make a difference of taps.
    grid = jnp.einsum("hy,wx,yxd->hwd", rows, columns, grid, precision="highest")
    return jnp.concatenate([table[:prefix], grid.reshape(new[0] * new[1], -1)])
