"""Resampling a window of an image of a known size as two matrix products."""
import jax.numpy as jnp
import numpy as np
from jax import lax

from simclr_jax.augment.kinds import Spatial


def shape(op: Spatial, height: int, width: int) -> tuple[int, int]:
    """(rows, columns) of what `op` makes of an image of this size."""
    if op.method == "none":
        _, _, height, width = op.windows(np.zeros([op.uniforms], np.float32), height, width, np)
    rows, columns = op.target(int(height), int(width))
    return int(rows), int(columns)


def row(op: Spatial, x, window):
    """Cuts and resizes one image.

    Args:
      x: f32[H, 3, W]; channels in the middle, so that neither product needs its operand turned.
      window: f32[4] or i32[4]: y, x, height, width in pixels; whole for method "none", where only y and x are used.

    Returns:
      f32[rows, 3, columns].
    """
    height, _, width = x.shape
    rows, columns = shape(op, height, width)
    if op.method == "none":
        y, left = jnp.round(window[:2]).astype(jnp.int32)
        return lax.dynamic_slice(x, (y, 0, left), (rows, 3, columns))
    window = window.astype(jnp.float32)
    down = weights(window[0], window[2], height, rows, op.method, op.antialias)
    along = weights(window[1], window[3], width, columns, op.method, op.antialias)
    x = jnp.dot(down, x.reshape(height, 3 * width), precision=lax.Precision.HIGHEST)
    x = jnp.dot(x.reshape(rows * 3, width), along.T, precision=lax.Precision.HIGHEST).reshape(rows, 3, columns)
    return jnp.clip(x, 0.0, 1.0) if op.clip else x


def weights(start, length, size: int, out: int, method: str, antialias: bool):
    """The linear map of `tf.image.resize` along one axis, for a window.

    Output pixel i is centred at (i + .5) * length / out - .5 of the window; taps outside the window get no weight and
    the others are scaled to sum to 1. Kernels: triangle, and Keys' cubic with a = -.5 (Keys 1981).

    Args:
      start, length: f32[], the window in pixels, which may be fractions: a pixel is a tap if its middle is inside. A
        length below 1 counts as 1.
      size: pixels of the image along this axis.
      out: pixels wanted.

    Returns:
      f32[out, size], rows summing to 1.
    """
    length = jnp.maximum(length, 1.0)
    scale = length * (1 / out)
    centre = (jnp.arange(out, dtype=jnp.float32)[:, None] + 0.5) * scale - 0.5
    if method == "bicubic" and not antialias:
        # TensorFlow looks the cubic up in a table of 1024 steps a pixel; without this the two differ by up to 1e-3.
        whole = jnp.floor(centre)
        centre = whole + jnp.round((centre - whole) * 1024) * (1 / 1024)
    at = jnp.arange(size, dtype=jnp.float32) - start  # places of the image's pixels in the window
    t = jnp.abs(at - centre)
    if antialias:
        t = t / jnp.maximum(scale, 1.0)
    if method == "bilinear":
        w = jnp.maximum(1.0 - t, 0.0)
    else:
        w = jnp.where(t < 1, (1.5 * t - 2.5) * t * t + 1, jnp.where(t < 2, ((-0.5 * t + 2.5) * t - 4) * t + 2, 0.0))
    w = jnp.where((at >= -0.5) & (at <= length - 0.5), w, 0.0)
    return w / jnp.sum(w, axis=-1, keepdims=True)
