"""Flip, affine maps and erasing. An image is three planes f32[S, S]."""
import math

import jax.numpy as jnp

from simclr_jax.augment.kinds import Pixel
from simclr_jax.errors import UsageError


def flip(*, p: float = 0.5) -> Pixel:
    """Left and right swapped."""
    return Pixel(p, 0, lambda u, size: {}, lambda planes, params: tuple(x[:, ::-1] for x in planes))


def affine(*, degrees: float = 0.0, translate: float = 0.0, scale: tuple[float, float] = (1.0, 1.0),
           shear: float = 0.0, p: float = 1.0, fill: float = 0.0) -> Pixel:
    """Shear, then rotation, zoom and shift, about the image's centre; bilinear, `fill` outside.

    Args:
      degrees: angle uniform in (-degrees, degrees), counter-clockwise.
      translate: shift of each axis uniform in (-translate, translate) of the side.
      scale: zoom uniform in this range; 2 doubles what is seen.
      shear: angle of the horizontal shear uniform in (-shear, shear) degrees; above 0 the top goes right.

    Raises:
      UsageError: a range of zooms that is empty or not above 0, or a shear that is not within [0, 90).
    """
    if not 0 < scale[0] <= scale[1]:
        raise UsageError(f"affine: scale={scale}; wanted 0 < lowest <= highest")
    if not 0 <= shear < 90:
        raise UsageError(f"affine: shear={shear} degrees; wanted 0 <= shear < 90")

    def draw(u, size):
        angle, slant = ((2 * u[k] - 1) * math.radians(d) for k, d in ((0, degrees), (1, shear)))
        zoom = scale[0] + u[2] * (scale[1] - scale[0])
        dx, dy = ((2 * u[k] - 1) * translate * size for k in (3, 4))
        # The map from an output pixel to its input pixel: the inverse of shift * zoom * rotation * shear.
        cos, sin, tan = jnp.cos(angle), jnp.sin(angle), jnp.tan(slant)
        a0, a1 = (cos + tan * sin) / zoom, (tan * cos - sin) / zoom
        b0, b1 = sin / zoom, cos / zoom
        middle = (size - 1) / 2
        a2 = middle - a0 * (middle + dx) - a1 * (middle + dy)
        b2 = middle - b0 * (middle + dx) - b1 * (middle + dy)
        return {"map": jnp.stack([a0, a1, a2, b0, b1, b2])}  # x = a0 x' + a1 y' + a2, y = b0 x' + b1 y' + b2

    def apply(planes, params):
        size = planes[0].shape[0]
        at = jnp.arange(size, dtype=jnp.float32)
        a0, a1, a2, b0, b1, b2 = params["map"]
        x, y = (m0 * at + m1 * at[:, None] + m2 for m0, m1, m2 in ((a0, a1, a2), (b0, b1, b2)))
        left, top = jnp.floor(x), jnp.floor(y)
        right, down = x - left, y - top  # shares of the right and lower neighbours
        corners = [(left, top, (1 - right) * (1 - down)), (left + 1, top, right * (1 - down)),
                   (left, top + 1, (1 - right) * down), (left + 1, top + 1, right * down)]
        pixels, out = jnp.stack(planes, axis=-1).reshape(-1, 3), 0.0
        for i, j, share in corners:
            inside = (i >= 0) & (i < size) & (j >= 0) & (j < size)
            place = jnp.where(inside, j * size + i, 0).astype(jnp.int32)
            out += share[..., None] * jnp.where(inside[..., None], pixels[place], fill)
        return tuple(out[..., k] for k in range(3))

    return Pixel(p, 5, draw, apply)


def erase(*, area: tuple[float, float] = (0.02, 0.33), ratio: tuple[float, float] = (0.3, 3.3), p: float = 0.5,
          fill: float = 0.0) -> Pixel:
    """A random box is overwritten with `fill` (Zhong et al. 2017, "Random erasing", algorithm 1).

    Area uniform, log of height over width uniform; a box longer than the image is cut to it, where the paper draws
    again.

    Raises:
      UsageError: areas that are no range within [0, 1], or ratios that are no range above 0.
    """
    if not 0 <= area[0] <= area[1] <= 1:
        raise UsageError(f"erase: area={area}; wanted 0 <= lowest <= highest <= 1")
    if not 0 < ratio[0] <= ratio[1]:
        raise UsageError(f"erase: ratio={ratio}; wanted 0 < lowest <= highest")

    def draw(u, size):
        pixels = (area[0] + u[0] * (area[1] - area[0])) * size * size
        tall = jnp.exp(math.log(ratio[0]) + u[1] * (math.log(ratio[1]) - math.log(ratio[0])))
        h, w = (jnp.minimum(jnp.round(jnp.sqrt(v)), float(size)) for v in (pixels * tall, pixels / tall))
        y, x = (jnp.minimum(jnp.floor(u[k] * (size - v + 1)), size - v) for k, v in ((2, h), (3, w)))
        return {"box": jnp.stack([y, x, h, w])}

    def apply(planes, params):
        y, x, h, w = params["box"]
        at = jnp.arange(planes[0].shape[0], dtype=jnp.float32)
        inside = ((at >= y) & (at < y + h))[:, None] & (at >= x) & (at < x + w)
        return tuple(jnp.where(inside, fill, plane) for plane in planes)

    return Pixel(p, 4, draw, apply)
