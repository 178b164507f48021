"""Flip, affine maps and erasing. Planar images f32[n, 3, S, S]."""
import math

from simclr_jax.data.host_tf import tensorflow
from simclr_jax.data.ops.kinds import Pixel
from simclr_jax.errors import UsageError

tf = tensorflow()


def flip(*, p: float = 0.5) -> Pixel:
    """Left and right swapped."""
    return Pixel(p, 0, lambda u, size: {}, lambda x, params: tf.reverse(x, [3]))


def affine(*, degrees: float = 0.0, translate: float = 0.0, scale: tuple[float, float] = (1.0, 1.0),
           shear: float = 0.0, p: float = 1.0, fill: float = 0.0) -> Pixel:
    """Shear, then rotation, zoom and shift, about the image's centre; bilinear, `fill` outside.

    Args:
      degrees: angle uniform in (-degrees, degrees), counter-clockwise.
      translate: shift of each axis uniform in (-translate, translate) of the side.
      scale: zoom uniform in this range; 2 doubles what is seen.
      shear: angle of the horizontal shear uniform in (-shear, shear) degrees; above 0 the top goes right.
    """
    if not 0 < scale[0] <= scale[1]:
        raise UsageError(f"affine: scale={scale}; wanted 0 < lowest <= highest")
    if not 0 <= shear < 90:
        raise UsageError(f"affine: shear={shear} degrees; wanted 0 <= shear < 90")

    def draw(u, size):
        angle, slant = ((2 * u[:, k] - 1) * math.radians(d) for k, d in ((0, degrees), (1, shear)))
        zoom = scale[0] + u[:, 2] * (scale[1] - scale[0])
        dx, dy = ((2 * u[:, k] - 1) * translate * size for k in (3, 4))
        # TensorFlow wants the map from an output pixel to its input pixel: the inverse of zoom * rotation * shear.
        cos, sin, tan = _exact(tf.cos, angle), _exact(tf.sin, angle), _exact(tf.tan, slant)
        a0, a1 = (cos + tan * sin) / zoom, (tan * cos - sin) / zoom
        b0, b1 = sin / zoom, cos / zoom
        middle = (size - 1) / 2
        a2 = middle - a0 * (middle + dx) - a1 * (middle + dy)
        b2 = middle - b0 * (middle + dx) - b1 * (middle + dy)
        return {"map": tf.stack([a0, a1, a2, b0, b1, b2, tf.zeros_like(a0), tf.zeros_like(a0)], axis=1)}

    def apply(x, params):
        out = tf.raw_ops.ImageProjectiveTransformV3(
            images=tf.transpose(x, [0, 2, 3, 1]), transforms=params["map"], output_shape=tf.shape(x)[2:],
            fill_value=fill, interpolation="BILINEAR", fill_mode="CONSTANT")
        return tf.ensure_shape(tf.transpose(out, [0, 3, 1, 2]), x.shape)

    return Pixel(p, 5, draw, apply)


def erase(*, area: tuple[float, float] = (0.02, 0.33), ratio: tuple[float, float] = (0.3, 3.3), p: float = 0.5,
          fill: float = 0.0) -> Pixel:
    """A random box is overwritten with `fill` (Zhong et al. 2017, "Random erasing", algorithm 1).

    Area uniform, log of height over width uniform; a box longer than the image is cut to it, where the paper draws
    again.
    """
    if not 0 <= area[0] <= area[1] <= 1:
        raise UsageError(f"erase: area={area}; wanted 0 <= lowest <= highest <= 1")
    if not 0 < ratio[0] <= ratio[1]:
        raise UsageError(f"erase: ratio={ratio}; wanted 0 < lowest <= highest")

    def draw(u, size):
        pixels = (area[0] + u[:, 0] * (area[1] - area[0])) * size * size
        tall = _exact(tf.exp, math.log(ratio[0]) + u[:, 1] * (math.log(ratio[1]) - math.log(ratio[0])))
        h, w = (tf.minimum(tf.round(tf.sqrt(v)), float(size)) for v in (pixels * tall, pixels / tall))
        y, x = (tf.minimum(tf.floor(u[:, k] * (size - v + 1)), size - v) for k, v in ((2, h), (3, w)))
        return {"box": tf.stack([y, x, h, w], axis=1)}

    def apply(x, params):
        y, left, h, w = (v[:, None, None] for v in tf.unstack(params["box"], axis=1))
        at = tf.range(x.shape[-1], dtype=tf.float32)
        i, j = at[:, None], at
        inside = (i >= y) & (i < y + h) & (j >= left) & (j < left + w)
        return tf.where(inside[:, None], fill, x)

    return Pixel(p, 4, draw, apply)


def _exact(f, x):
    """f(x) by way of f64: in f32 its last bit depends on the place in the array, so a row would on its batch."""
    return tf.cast(f(tf.cast(x, tf.float64)), tf.float32)
