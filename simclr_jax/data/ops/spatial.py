"""Crops and resizes: where to cut. How to resample is in resample.py.

`area` and `ratio` are a window's share of the image and its width over its height, in pixels.
"""
import math
from typing import Literal

from simclr_jax.data.host_tf import tensorflow
from simclr_jax.data.ops.kinds import Spatial
from simclr_jax.errors import UsageError

tf = tensorflow()

# TensorFlow tries 100 times and then takes the whole image. With SimCLR's ranges a try fails with a chance of .06 on a
# 4:3 image, .12 on 3:1 and .22 on 5:1 (simulated): 16 tries all fail with chances of 2e-20, 2e-15 and 4e-11.
TF_TRIES = 16
TORCH_TRIES = 10


def random_resized_crop(*, size: int, area: tuple[float, float] = (0.08, 1.0),
                        ratio: tuple[float, float] = (3 / 4, 4 / 3), method: Literal["bicubic", "bilinear"] = "bicubic",
                        antialias: bool = False, sampling: Literal["tf", "torch", "byol"] = "tf",
                        min_covered: float = 0.1, clip: bool = True) -> Spatial:
    """A random window resized to `size` x `size`.

    sampling="tf" has the distribution of `tf.image.sample_distorted_bounding_box` for one box that is the whole image
    (SimCLR): ratio uniform, then height uniform among those that fit, then `area` and `min_covered` checked; only this
    one looks at `min_covered`. sampling="torch" has that of torchvision's RandomResizedCrop (MoCo, SimSiam): area
    uniform, log-ratio uniform, ten tries, then the largest centred window within `ratio`. sampling="byol" is one such
    try, with a side that is too long cut to the image's (byol/utils/dataset.py).
    """
    if not 0 < area[0] <= area[1] <= 1:
        raise UsageError(f"random_resized_crop: area={area}; wanted 0 < lowest <= highest <= 1")
    if not 0 < ratio[0] <= ratio[1]:
        raise UsageError(f"random_resized_crop: ratio={ratio}; wanted 0 < lowest <= highest")
    if sampling == "tf":
        uniforms, draw = 2 * TF_TRIES + 2, lambda u, h, w: _tf_window(u, h, w, area, ratio, min_covered)
    else:
        tries = TORCH_TRIES if sampling == "torch" else 1
        uniforms, draw = 2 * tries + 2, lambda u, h, w: _torch_window(u, h, w, area, ratio, tries)
    return Spatial(uniforms, draw, lambda h, w: (size, size), size, method, antialias, clip)


def center_crop(*, size: int = 0, proportion: float = 0.0, floor: bool = False) -> Spatial:
    """The middle of an image, not resampled: `size` pixels square, or `proportion` of the shorter side.

    For `proportion` the side is rounded (SimCLR, tf2/data_util.py) or, with `floor`, cut (BYOL, utils/dataset.py) and
    offsets are rounded up; for `size` offsets are rounded half to even (torchvision). A `size` beyond the image is cut
    to the image.
    """
    if (size > 0) == (proportion > 0) or not 0 <= proportion <= 1:
        raise UsageError(f"center_crop: size={size}, proportion={proportion}; set one of them, proportion at most 1")

    def draw(u, height, width):
        if size:
            h, w = tf.minimum(size, height), tf.minimum(size, width)
            y, x = (tf.cast(tf.round(tf.cast(a - b, tf.float32) / 2), tf.int32) for a, b in ((height, h), (width, w)))
        else:
            side = proportion * tf.cast(tf.minimum(height, width), tf.float32)
            h = w = tf.cast(tf.floor(side) if floor else tf.round(side), tf.int32)
            y, x = (height - h + 1) // 2, (width - w + 1) // 2
        return tf.tile(tf.stack([y, x, h, w])[None], [tf.shape(u)[0], 1])

    return Spatial(0, draw, lambda h, w: (h, w), size or None, "none", False, False)


def resize(*, size: int, shorter: bool = False, method: Literal["bicubic", "bilinear"] = "bicubic",
           antialias: bool = False, clip: bool = True) -> Spatial:
    """The whole image at `size` x `size` or, with `shorter`, its shorter side at `size` and its shape kept."""
    def target(height, width):
        if not shorter:
            return size, size
        short = tf.minimum(height, width)
        return size * height // short, size * width // short       # torchvision floors the longer side

    def draw(u, height, width):
        return tf.tile(tf.stack([0, 0, height, width])[None], [tf.shape(u)[0], 1])

    return Spatial(0, draw, target, None if shorter else size, method, antialias, clip)


def _tf_window(u, height, width, area, ratio, min_covered):
    """Windows with the law of TensorFlow's sample_distorted_bounding_box; see GenerateRandomCrop in its kernel."""
    H, W = tf.cast(height, tf.float32), tf.cast(width, tf.float32)
    low, high = area[0] * H * W, area[1] * H * W
    a = ratio[0] + u[:, :TF_TRIES] * (ratio[1] - ratio[0])
    h_max = tf.round(tf.sqrt(high / a))
    fits = tf.floor((W + 0.5 - 1e-7) / a)                          # the tallest whose rounded width is within the image
    fits -= tf.cast(tf.round(fits * a) > W, tf.float32)
    h_max = tf.minimum(tf.where(tf.round(h_max * a) > W, fits, h_max), H)
    h_min = tf.minimum(tf.round(tf.sqrt(low / a)), h_max)
    h = h_min + _below(u[:, TF_TRIES:2 * TF_TRIES], h_max - h_min + 1)
    # Rounding may have pushed the area just outside its range: one pixel more or less is tried before giving up.
    h += tf.cast(tf.round(h * a) * h < low, tf.float32)
    h -= tf.cast(tf.round(h * a) * h > high, tf.float32)
    w = tf.round(h * a)
    ok = (w * h >= tf.maximum(low, min_covered * H * W)) & (w * h <= high) & (w <= W) & (h <= H) & (w > 0) & (h > 0)
    h, w = _first(ok, h, w, H, W)
    # TensorFlow draws offsets below `height - h`, so a window never touches the last row unless it spans all of them.
    y, x = _below(u[:, -2], H - h), _below(u[:, -1], W - w)
    return tf.cast(tf.stack([y, x, h, w], axis=1), tf.int32)


def _torch_window(u, height, width, area, ratio, tries):
    """Windows with the law of torchvision's RandomResizedCrop.get_params or, with one try, of BYOL's crop."""
    H, W = tf.cast(height, tf.float32), tf.cast(width, tf.float32)
    target = H * W * (area[0] + u[:, :tries] * (area[1] - area[0]))
    low, high = math.log(ratio[0]), math.log(ratio[1])
    a = low + u[:, tries:2 * tries] * (high - low)
    a = tf.cast(tf.exp(tf.cast(a, tf.float64)), tf.float32)        # f32 `exp` depends on the place in the array
    h, w = tf.round(tf.sqrt(target / a)), tf.round(tf.sqrt(target * a))
    middle = tf.zeros_like(u[:, 0], tf.bool)
    if tries == 1:
        h, w = tf.clip_by_value(h[:, 0], 1.0, H), tf.clip_by_value(w[:, 0], 1.0, W)
    else:
        ok = (w <= W) & (h <= H) & (w > 0) & (h > 0)
        narrow, wide = W / H < ratio[0], W / H > ratio[1]
        h, w = _first(ok, h, w, tf.where(narrow, tf.minimum(tf.round(W / ratio[0]), H), H),
                      tf.where(wide, tf.minimum(tf.round(H * ratio[1]), W), W))
        middle = ~tf.reduce_any(ok, axis=1)
    y = tf.where(middle, tf.floor((H - h) / 2), _below(u[:, -2], H - h + 1))
    x = tf.where(middle, tf.floor((W - w) / 2), _below(u[:, -1], W - w + 1))
    return tf.cast(tf.stack([y, x, h, w], axis=1), tf.int32)


def _below(u, count):
    """Whole numbers (as f32) uniform in [0, count), and 0 where count is 0; `u * count` may round up to count."""
    return tf.maximum(tf.minimum(tf.floor(u * count), count - 1), 0.0)


def _first(ok, h, w, otherwise_h, otherwise_w):
    """The first valid try of each row, or what to take where none is valid: f32[n] heights and widths."""
    index, found = tf.argmax(tf.cast(ok, tf.int32), axis=1), tf.reduce_any(ok, axis=1)
    return (tf.where(found, tf.gather(h, index, batch_dims=1), otherwise_h),
            tf.where(found, tf.gather(w, index, batch_dims=1), otherwise_w))
