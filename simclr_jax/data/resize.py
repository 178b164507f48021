"""Crops and resizes of one image of any size, in a tf.data graph: the host's form of the spatial ops of a recipe.

An op is whatever has `uniforms`, `windows(u, height, width, numpy)`, `target(height, width)`, `method`, `antialias` and
`clip`; see `simclr_jax.augment.kinds.Spatial`.
"""
import numpy as np

from simclr_jax.data.host_tf import tensorflow


def places(op, u, height, width) -> np.ndarray:
    """Where op cuts and how large it makes it: i32[..., 8]: y, x, 0, height, width, 3, rows, columns.

    Args:
      u: f32[..., at least op.uniforms], numbers in [0, 1).
    """
    windows = np.asarray(op.windows(u[..., :op.uniforms], height, width, np), np.int32)
    made = np.empty((*windows.shape[:-1], 8), np.int32)
    made[..., :2], made[..., 2], made[..., 3:5], made[..., 5] = windows[..., :2], 0, windows[..., 2:], 3
    made[..., 6:] = np.reshape([op.target(h, w) for h, w in windows[..., 2:].reshape(-1, 2).tolist()],
                               (*windows.shape[:-1], 2))
    return made


def windows(places):
    """i32[..., 4] of `places`: y, x, height, width."""
    return places[..., [0, 1, 3, 4]]


def moved(places, windows):
    """`places` with other windows."""
    made = places.copy()
    made[..., :2], made[..., 3:5] = windows[..., :2], windows[..., 2:]
    return made


def chain(ops, image, first, numbers, clip: bool = True):
    """The ops in turn on one image.

    Args:
      ops: at least one. image: u8[H, W, 3]. first: i32[8], `places` of the first op on this image.
      numbers: f32[J, K]: row j for op j.
      clip: whether the last op cuts overshoot where it says so; what follows may do it anyway.

    Returns:
      f32[h, w, 3], in units of 0 to 255.
    """
    tf = tensorflow()
    last = len(ops) - 1
    x = _cut(ops[0], image, first, clip or last > 0)
    for j, op in enumerate(ops[1:], 1):
        def of(shape, u, op=op):
            return places(op, u, int(shape[0]), int(shape[1]))
        place = tf.numpy_function(of, [tf.shape(x), numbers[j]], tf.int32, stateful=False)
        x = _cut(op, x, tf.ensure_shape(place, [8]), clip or j < last)
    return tf.cast(x, tf.float32)


def _cut(op, image, place, clip):
    tf = tensorflow()
    begin, extent, size = tf.split(place, [3, 3, 2])
    image = tf.slice(image, begin, extent)  # first, so that only the window is read
    if op.method == "none":
        return image
    if op.antialias:
        out = tf.image.resize(image, size, method=op.method, antialias=True)
    else:  # straight from bytes
        resized = tf.raw_ops.ResizeBicubic if op.method == "bicubic" else tf.raw_ops.ResizeBilinear
        out = tf.squeeze(resized(images=tf.expand_dims(image, 0), size=size, half_pixel_centers=True), 0)
    return tf.raw_ops.ClipByValue(t=out, clip_value_min=0.0, clip_value_max=255.0) if op.clip and clip else out
