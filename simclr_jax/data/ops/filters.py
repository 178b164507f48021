"""Blur. Planar images f32[n, 3, S, S]."""
from typing import Literal

import numpy as np

from simclr_jax.data.host_tf import tensorflow
from simclr_jax.data.ops.kinds import Pixel
from simclr_jax.errors import UsageError

tf = tensorflow()


def blur(*, kernel: int, p: float = 0.5, sigma: tuple[float, float] = (0.1, 2.0),
         padding: Literal["zero", "reflect"] = "zero") -> Pixel:
    """Gaussian blur with `kernel` taps (odd) and a sigma in pixels, uniform in its range, of each row's own.

    SimCLR's released code draws one sigma for all images of a batch on a device (tf2/data_util.py,
    batch_random_blur); ours is per row, as in BYOL, since a row may not depend on its neighbours. Outside the image
    SimCLR and BYOL read zeros; torchvision reflects.
    """
    if kernel < 1 or kernel % 2 == 0:
        raise UsageError(f"blur: kernel={kernel}; wanted an odd number of taps, such as 23")
    if not 0 < sigma[0] <= sigma[1]:
        raise UsageError(f"blur: sigma={sigma}; wanted 0 < lowest <= highest, in pixels")

    def draw(u, size):
        return {"sigma": sigma[0] + u[:, 0] * (sigma[1] - sigma[0])}

    def apply(x, params):
        band = _band(params["sigma"], kernel // 2, x.shape[-1], padding)[:, None]
        return tf.matmul(tf.matmul(band, x), band, transpose_b=True)

    return Pixel(p, 1, draw, apply)


def _band(sigma, radius: int, size: int, padding: str):
    """The blur of a line of `size` pixels as a matrix: f32[n, size, size], out = band @ in."""
    # In f64: f32 `exp` differs in its last bit between the middle and the end of an array, hence from batch to batch.
    distance = tf.range(radius + 1, dtype=tf.float64)
    taps = tf.exp(-(distance ** 2) / (2 * tf.cast(sigma, tf.float64)[:, None] ** 2))
    taps = tf.cast(taps / (2 * tf.reduce_sum(taps, axis=1, keepdims=True) - 1), tf.float32)
    taps = tf.pad(taps, [[0, 0], [0, 1]])                          # place radius + 1: no weight

    def at(distance):
        return tf.gather(taps, np.minimum(distance, radius + 1), axis=1)

    i, j = np.arange(size)[:, None], np.arange(size)
    band = at(np.abs(i - j))
    if padding == "reflect":                                       # an edge pixel itself is not repeated
        never = radius + 1
        band += at(np.where(j > 0, i + j, never)) + at(np.where(j < size - 1, 2 * (size - 1) - i - j, never))
    return band
