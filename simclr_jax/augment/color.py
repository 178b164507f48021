"""Colour: jitter, grayscale, solarize, gain and bias, clipping, normalisation. An image is three planes f32[S, S]."""
import itertools
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jax import lax

from simclr_jax.augment.kinds import Pixel
from simclr_jax.errors import UsageError

_GRAY = (0.2989, 0.5870, 0.1140)  # ITU-R BT.601 luma, as tf.image.rgb_to_grayscale and torchvision round it
_ORDERS = np.array(list(itertools.permutations(range(4))), np.int32)
_TINY = 1e-30  # in place of a spread of 0 in divisions, whose results are then not used


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

    Raises:
      UsageError: a negative range, or hue beyond half a turn.
    """
    b, c, s, h = ranges = tuple(strength * r for r in (brightness, contrast, saturation, hue))
    if min(ranges) < 0 or h > 0.5:
        raise UsageError(f"color_jitter: brightness, contrast, saturation, hue times strength are {ranges}; "
                         "wanted none negative, hue at most 0.5")
    low, high = np.array([(-b, b) if brightness_mode == "add" else (max(0.0, 1 - b), 1 + b),
                          (max(0.0, 1 - c), 1 + c), (max(0.0, 1 - s), 1 + s), (-h, h)], np.float32).T
    ops = (add if brightness_mode == "add" else gain,
           channel_contrast if style == "tf" else gray_contrast,
           hsv_saturation if style == "tf" else gray_saturation,
           rotate_hue)

    def draw(u, size):
        number = jnp.minimum((u[0] * len(_ORDERS)).astype(jnp.int32), len(_ORDERS) - 1)
        chosen = np.arange(len(_ORDERS))[:, None] == number  # not a look-up, which accelerators are slow at
        return {"order": jnp.sum(jnp.where(chosen, _ORDERS, 0), axis=0), "factors": low + u[1:5] * (high - low)}

    def branch(k):
        def run(planes, factors):
            if ranges[k] == 0:
                return planes
            planes = ops[k](planes, factors[k])
            return tuple(jnp.clip(x, 0.0, 1.0) for x in planes) if clip else planes
        return run

    def apply(planes, params):
        for slot in range(4):
            planes = lax.switch(params["order"][slot], [branch(k) for k in range(4)], planes, params["factors"])
        return planes

    return Pixel(p, 5, draw, apply)


def grayscale(*, p: float = 0.2) -> Pixel:
    """Luma in all three channels."""
    return Pixel(p, 0, _nothing, lambda planes, params: (gray(planes),) * 3)


def solarize(*, p: float = 0.2, threshold: float = 0.5) -> Pixel:
    """x -> 1 - x where x >= threshold (BYOL, torchvision)."""
    return Pixel(p, 0, _nothing, lambda planes, params: tuple(jnp.where(x < threshold, x, 1.0 - x) for x in planes))


def intensity(*, contrast: tuple[float, float] = (1.0, 1.0), brightness: tuple[float, float] = (0.0, 0.0),
              p: float = 1.0) -> Pixel:
    """x -> gain * x + bias, cut to [0, 1]: one gain from `contrast`, one bias from `brightness`, for gray pictures."""
    def draw(u, size):
        return {"gain": contrast[0] + u[0] * (contrast[1] - contrast[0]),
                "bias": brightness[0] + u[1] * (brightness[1] - brightness[0])}

    def apply(planes, params):
        return tuple(jnp.clip(x * params["gain"] + params["bias"], 0.0, 1.0) for x in planes)

    return Pixel(p, 2, draw, apply)


def clip(*, low: float = 0.0, high: float = 1.0) -> Pixel:
    """Values cut to [low, high] (the end of SimCLR's preprocess_image)."""
    return Pixel(None, 0, _nothing, lambda planes, params: tuple(jnp.clip(x, low, high) for x in planes))


def normalize(*, mean: tuple[float, float, float], std: tuple[float, float, float]) -> Pixel:
    """(x - mean) / std of each channel.

    Raises:
      UsageError: a std that is not above 0.
    """
    if min(std) <= 0:
        raise UsageError(f"normalize: std={std}; wanted every one above 0")
    return Pixel(None, 0, _nothing,
                 lambda planes, params: tuple((x - m) * (1 / s) for x, m, s in zip(planes, mean, std)))


# The parts of the jitter: three planes f32[S, S] and a factor f32[] -> three planes.

def gain(planes, factor):
    """Multiplies."""
    return tuple(x * factor for x in planes)


def add(planes, delta):
    """Adds."""
    return tuple(x + delta for x in planes)


def channel_contrast(planes, factor):
    """Spreads about each channel's mean, as tf.image.adjust_contrast."""
    return _blend(planes, [_mean(x) for x in planes], factor)


def gray_contrast(planes, factor):
    """Spreads about the image's mean gray, as torchvision's adjust_contrast."""
    return _blend(planes, [gray([_mean(x) for x in planes])] * 3, factor)


def gray_saturation(planes, factor):
    """Spreads about each pixel's gray, as torchvision's adjust_saturation."""
    return _blend(planes, [gray(planes)] * 3, factor)


def hsv_saturation(planes, factor):
    """Multiplies S of HSV and cuts it at 1, as tf.image.adjust_saturation.

    With H and V kept, each channel is V - S * something, so scaling S spreads channels about V = max(r, g, b); S = 1
    where the smallest channel reaches 0, hence the cap on the factor.
    """
    top, low = _top_low(planes)
    factor = jnp.minimum(factor, top / jnp.maximum(top - low, _TINY))
    return tuple(top - (top - x) * factor for x in planes)


def rotate_hue(planes, turns):
    """Adds to H of HSV, as tf.image.adjust_hue."""
    r, g, b = planes
    top, low = _top_low(planes)
    chroma = top - low
    to_sixths = 1.0 / jnp.maximum(chroma, _TINY)
    h = jnp.where(top == r, (g - b) * to_sixths,
                  jnp.where(top == g, (b - r) * to_sixths + 2.0, (r - g) * to_sixths + 4.0)) + 6.0 * turns
    h = h - 6.0 * jnp.floor(h * (1 / 6))  # sixths of a turn, in [0, 6]; the shares meet at both ends
    shares = (jnp.abs(h - 3.0) - 1.0, 2.0 - jnp.abs(h - 2.0), 2.0 - jnp.abs(h - 4.0))
    return tuple(low + chroma * jnp.clip(share, 0.0, 1.0) for share in shares)


def gray(planes):
    """Luma: three arrays of one shape -> one."""
    r, g, b = planes
    return (r * _GRAY[0] + g * _GRAY[1]) + b * _GRAY[2]


def _nothing(u, size):
    return {}


def _blend(planes, bases, factor):
    return tuple((x - base) * factor + base for x, base in zip(planes, bases))


def _top_low(planes):
    r, g, b = planes
    return jnp.maximum(jnp.maximum(r, g), b), jnp.minimum(jnp.minimum(r, g), b)


def _mean(x):
    """Mean of a plane: rows are added up first, which CPUs do many columns at a time. The factor between keeps XLA from
    making one sum of the two, which they do one number after the other, and with more rounding."""
    return jnp.sum(jnp.sum(x, axis=0) * (1 / x.size))
