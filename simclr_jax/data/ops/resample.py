"""Resampling a window: for one image of any size, and for a batch of images of one size as two matrix products."""
from simclr_jax.data.host_tf import tensorflow
from simclr_jax.data.ops.kinds import Spatial

tf = tensorflow()


def one(op: Spatial, image, window):
    """Cuts and resizes one image with `tf.image.resize`.

    Args:
      image: u8 or f32 [H, W, 3]; bytes become [0, 1].
      window: i32[4]: y, x, height, width.

    Returns:
      f32[h, w, 3].
    """
    y, x, h, w = tf.unstack(window)
    image = image[y:y + h, x:x + w]                                # first, so that only the window is converted
    scale = 1 / 255 if image.dtype == tf.uint8 else 1.0
    if op.method == "none":
        out = tf.cast(image, tf.float32)
    else:
        out = tf.image.resize(image, tf.stack(op.target(h, w)), method=op.method, antialias=op.antialias)
    out = out * scale
    return tf.clip_by_value(out, 0.0, 1.0) if op.clip else out


def batch(op: Spatial, images, windows):
    """The same for images of one size: `one` on every row to 1e-5.

    Args:
      images: u8 or f32 [n, H, W, 3], H and W static.
      windows: i32[n, 4].

    Returns:
      f32[n, h, w, 3].
    """
    if images.dtype == tf.uint8:
        images = tf.cast(images, tf.float32) * (1 / 255)
    height, width = images.shape[1:3]
    if op.method == "none":
        y, x, h, w = tf.unstack(windows[0])
        return images[:, y:y + h, x:x + w]
    rows, columns = op.target(height, width)
    by = weights(windows[:, 0], windows[:, 2], height, rows, op.method, op.antialias)
    bx = weights(windows[:, 1], windows[:, 3], width, columns, op.method, op.antialias)
    n = tf.shape(images)[0]
    out = tf.matmul(by, tf.reshape(images, [n, height, width * 3]))
    out = tf.transpose(tf.reshape(out, [n, rows, width, 3]), [0, 1, 3, 2])
    out = tf.matmul(tf.reshape(out, [n, rows * 3, width]), bx, transpose_b=True)
    out = tf.transpose(tf.reshape(out, [n, rows, 3, columns]), [0, 1, 3, 2])
    return tf.clip_by_value(out, 0.0, 1.0) if op.clip else out


def weights(start, length, size: int, out: int, method: str, antialias: bool):
    """The linear map of `tf.image.resize` along one axis, for a window of each row.

    Output pixel i is centred at (i + .5) * length / out - .5 of the window; taps outside the window get no weight and
    the others are scaled to sum to 1. Kernels: triangle, and Keys' cubic with a = -.5 (Keys 1981).

    Args:
      start, length: i32[n], the windows.
      size: pixels of the image along this axis.
      out: pixels wanted.

    Returns:
      f32[n, out, size], rows summing to 1.
    """
    start, length = tf.cast(start, tf.float32)[:, None, None], tf.cast(length, tf.float32)[:, None, None]
    scale = length / out
    centre = (tf.range(out, dtype=tf.float32)[:, None] + 0.5) * scale - 0.5
    if method == "bicubic" and not antialias:
        # TensorFlow looks the cubic up in a table of 1024 steps a pixel; without this the two differ by up to 1e-3.
        whole = tf.floor(centre)
        centre = whole + tf.round((centre - whole) * 1024) / 1024
    at = tf.range(size, dtype=tf.float32) - start                 # places of the image's pixels in the window
    t = tf.abs(at - centre)
    if antialias:
        t = t / tf.maximum(scale, 1.0)
    if method == "bilinear":
        w = tf.maximum(1.0 - t, 0.0)
    else:
        w = tf.where(t < 1, (1.5 * t - 2.5) * t * t + 1, tf.where(t < 2, ((-0.5 * t + 2.5) * t - 4) * t + 2, 0.0))
    w = tf.where((at >= 0) & (at < length), w, 0.0)
    return w / tf.reduce_sum(w, axis=-1, keepdims=True)
