"""Blur. An image is three planes f32[S, S]."""
from typing import Literal

import jax.numpy as jnp
from jax import lax

from simclr_jax.augment.kinds import Pixel
from simclr_jax.errors import UsageError

_BLOCK = 32  # lines that one product makes: the band is 1 + 2 radius wide, so blocks spare most of a full matrix' zeros


def blur(*, kernel: int, p: float = 0.5, sigma: tuple[float, float] = (0.1, 2.0),
         padding: Literal["zero", "reflect"] = "zero") -> Pixel:
    """Gaussian blur with `kernel` taps (odd) and a sigma in pixels, uniform in its range, of each row's own.

    SimCLR's released code draws one sigma for all images of a batch on a device (tf2/data_util.py,
    batch_random_blur); ours is per row, as in BYOL, since a row may not depend on its neighbours. Outside the image
    SimCLR and BYOL read zeros; torchvision reflects, the edge pixel itself not repeated.

    Raises:
      UsageError: an even number of taps, or a range of sigma that is empty or not above 0.
    """
    if kernel < 1 or kernel % 2 == 0:
        raise UsageError(f"blur: kernel={kernel}; wanted an odd number of taps, such as 23")
    if not 0 < sigma[0] <= sigma[1]:
        raise UsageError(f"blur: sigma={sigma}; wanted 0 < lowest <= highest, in pixels")

    def draw(u, size):
        return {"sigma": sigma[0] + u[0] * (sigma[1] - sigma[0])}

    def apply(planes, params):
        size, radius = planes[0].shape[0], kernel // 2
        band = _band(params["sigma"], radius, min(_BLOCK, size))
        mode = "constant" if padding == "zero" else "reflect"
        # Down the columns of all planes side by side, then along their rows.
        x = jnp.pad(jnp.concatenate(planes, axis=1), ((radius, radius), (0, 0)), mode)
        x = jnp.concatenate([_dot(band[:stop - start, :stop - start + 2 * radius], x[start:stop + 2 * radius])
                             for start, stop in _blocks(size)])
        x = jnp.pad(x.reshape(3 * size, size), ((0, 0), (radius, radius)), mode)
        x = jnp.concatenate([_dot(x[:, start:stop + 2 * radius], band[:stop - start, :stop - start + 2 * radius].T)
                             for start, stop in _blocks(size)], axis=1)
        return tuple(x.reshape(size, 3, size)[:, k] for k in range(3))

    return Pixel(p, 1, draw, apply)


def _band(sigma, radius, block):
    """The blur of `block` neighbours in a line as a matrix f32[block, block + 2 radius]."""
    weight = lambda distance: jnp.exp(-0.5 * (distance / sigma) ** 2)
    total = 2 * jnp.sum(weight(jnp.arange(1, radius + 1, dtype=jnp.float32))) + 1
    at = jnp.arange(block + 2 * radius, dtype=jnp.float32) - radius
    distance = jnp.abs(jnp.arange(block, dtype=jnp.float32)[:, None] - at)
    return jnp.where(distance <= radius, weight(distance) / total, 0.0)


def _blocks(size):
    return [(start, min(start + _BLOCK, size)) for start in range(0, size, _BLOCK)]


def _dot(a, b):
    return jnp.dot(a, b, precision=lax.Precision.HIGHEST)
