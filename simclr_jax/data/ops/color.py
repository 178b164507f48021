"""Colour: jitter, grayscale, solarize, gain and bias, normalisation. Planar images f32[n, 3, S, S]."""
import itertools
from typing import Literal

from simclr_jax.data.host_tf import tensorflow
from simclr_jax.data.ops.kinds import Pixel
from simclr_jax.errors import UsageError

tf = tensorflow()

_GRAY = (0.2989, 0.5870, 0.1140)          # ITU-R BT.601 luma, as tf.image.rgb_to_grayscale and torchvision round it
_ORDERS = tuple(itertools.permutations(range(4)))


def color_jitter(*, brightness: float, contrast: float, saturation: float, hue: float, p: float = 0.8,
                 strength: float = 1.0, brightness_mode: Literal["multiply", "add"] = "multiply",
                 style: Literal["tf", "torch"] = "tf", clip: bool = True) -> Pixel:
    """Brightness, contrast, saturation and hue, in an order drawn for each row (24 of them), each with its own factor.

    Factors: U(max(0, 1 - range), 1 + range), ranges being the arguments times `strength`; hue U(-range, range) turns.
    A range of 0 leaves its op out.

    Args:
      brightness_mode: "multiply" (SimCLR's "simclrv2" form, torchvision) or "add" U(-range, range) (SimCLR v1, BYOL).
      style: "tf": contrast about each channel's mean, saturation scales S of HSV (tf.image). "torch": contrast about
        the mean gray of the image, saturation blends with gray (torchvision).
      clip: cut to [0, 1] after each of the four (SimCLR, BYOL, torchvision all do).
    """
    b, c, s, h = ranges = tuple(strength * r for r in (brightness, contrast, saturation, hue))
    if min(ranges) < 0 or h > 0.5:
        raise UsageError(f"color_jitter: brightness, contrast, saturation, hue times strength are {ranges}; "
                         "wanted none negative, hue at most 0.5")
    bounds = [(-b, b) if brightness_mode == "add" else (max(0.0, 1 - b), 1 + b),
              (max(0.0, 1 - c), 1 + c), (max(0.0, 1 - s), 1 + s), (-h, h)]
    ops = (add if brightness_mode == "add" else gain,
           channel_contrast if style == "tf" else gray_contrast,
           hsv_saturation if style == "tf" else gray_saturation,
           rotate_hue)

    def draw(u, size):
        low, high = tf.constant(bounds)[:, 0], tf.constant(bounds)[:, 1]
        order = tf.gather(tf.constant(_ORDERS), tf.minimum(tf.cast(u[:, 0] * len(_ORDERS), tf.int32), 23))
        return {"order": order, "factors": low + u[:, 1:5] * (high - low)}

    def apply(x, params):
        # Slot by slot, each op on the rows that have it there: four ops' work in all, where `where` would do sixteen's.
        for slot in range(4):
            for k in range(4):
                if ranges[k] == 0:
                    continue
                rows = tf.where(params["order"][:, slot] == k)
                y = ops[k](tf.gather_nd(x, rows), tf.gather_nd(params["factors"][:, k], rows))
                x = tf.tensor_scatter_nd_update(x, rows, tf.clip_by_value(y, 0.0, 1.0) if clip else y)
        return x

    return Pixel(p, 5, draw, apply)


def grayscale(*, p: float = 0.2) -> Pixel:
    """Luma in all three channels."""
    return Pixel(p, 0, lambda u, size: {}, lambda x, params: tf.repeat(gray(x), 3, axis=1))


def solarize(*, p: float = 0.2, threshold: float = 0.5) -> Pixel:
    """x -> 1 - x where x >= threshold (BYOL, torchvision)."""
    return Pixel(p, 0, lambda u, size: {}, lambda x, params: tf.where(x < threshold, x, 1.0 - x))


def intensity(*, contrast: tuple[float, float] = (1.0, 1.0), brightness: tuple[float, float] = (0.0, 0.0),
              p: float = 1.0) -> Pixel:
    """x -> gain * x + bias, cut to [0, 1]: one gain from `contrast`, one bias from `brightness`, for gray pictures."""
    def draw(u, size):
        return {"gain": contrast[0] + u[:, 0] * (contrast[1] - contrast[0]),
                "bias": brightness[0] + u[:, 1] * (brightness[1] - brightness[0])}

    def apply(x, params):
        return tf.clip_by_value(x * _each(params["gain"]) + _each(params["bias"]), 0.0, 1.0)

    return Pixel(p, 2, draw, apply)


def clip(*, low: float = 0.0, high: float = 1.0) -> Pixel:
    """Values cut to [low, high] (the end of SimCLR's preprocess_image)."""
    return Pixel(None, 0, lambda u, size: {}, lambda x, params: tf.clip_by_value(x, low, high))


def normalize(*, mean: tuple[float, float, float], std: tuple[float, float, float]) -> Pixel:
    """(x - mean) / std of each channel."""
    if min(std) <= 0:
        raise UsageError(f"normalize: std={std}; wanted every one above 0")
    shift, scale = (tf.reshape(tf.constant(v, tf.float32), [1, 3, 1, 1]) for v in (mean, std))
    return Pixel(None, 0, lambda u, size: {}, lambda x, params: (x - shift) / scale)


# The parts of the jitter: images f32[n, 3, S, S] and a factor f32[n] -> images.

def gain(x, factor):
    """Multiplies."""
    return x * _each(factor)


def add(x, delta):
    """Adds."""
    return x + _each(delta)


def channel_contrast(x, factor):
    """Spreads about each channel's mean, as tf.image.adjust_contrast."""
    return _blend(x, _mean(x), factor)


def gray_contrast(x, factor):
    """Spreads about the image's mean gray, as torchvision's adjust_contrast."""
    return _blend(x, _mean(gray(x)), factor)


def gray_saturation(x, factor):
    """Spreads about each pixel's gray, as torchvision's adjust_saturation."""
    return _blend(x, gray(x), factor)


def hsv_saturation(x, factor):
    """Multiplies S of HSV and cuts it at 1, as tf.image.adjust_saturation.

    With H and V kept, each channel is V - S * something, so scaling S spreads channels about V = max(r, g, b); S = 1
    where the smallest channel reaches 0, hence the cap on the factor.
    """
    top, low = tf.reduce_max(x, axis=1, keepdims=True), tf.reduce_min(x, axis=1, keepdims=True)
    return top - (top - x) * tf.minimum(_each(factor), tf.math.divide_no_nan(top, top - low))


def rotate_hue(x, turns):
    """Adds to H of HSV, as tf.image.adjust_hue."""
    r, g, b = x[:, 0], x[:, 1], x[:, 2]
    top, low = tf.maximum(tf.maximum(r, g), b), tf.minimum(tf.minimum(r, g), b)
    chroma = top - low
    h = tf.math.divide_no_nan(tf.where(top == r, g - b, tf.where(top == g, b - r, r - g)), chroma)
    h = h + tf.where(top == r, 0.0, tf.where(top == g, 2.0, 4.0)) + 6.0 * turns[:, None, None]   # sixths of a turn
    h = h - 6.0 * tf.floor(h / 6.0)
    shares = (tf.abs(h - 3.0) - 1.0, 2.0 - tf.abs(h - 2.0), 2.0 - tf.abs(h - 4.0))
    return tf.stack([low + chroma * tf.clip_by_value(s, 0.0, 1.0) for s in shares], axis=1)


def gray(x):
    """Luma: f32[n, 3, S, S] -> f32[n, 1, S, S]."""
    return (x[:, 0:1] * _GRAY[0] + x[:, 1:2] * _GRAY[1]) + x[:, 2:3] * _GRAY[2]


def _each(factor):
    return factor[:, None, None, None]


def _blend(x, base, factor):
    return (x - base) * _each(factor) + base


def _mean(x):
    """Mean over each plane: one row of a matrix a plane, so that the order of summing does not depend on n."""
    return tf.reduce_mean(x, axis=[2, 3], keepdims=True)
