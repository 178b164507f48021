"""Crops and resizes: where to cut, in NumPy on the host and in JAX on a device. How to resample is in resample.py.

`area` and `ratio` are a window's share of the image and its width over its height, in pixels. The laws are written for
either library (`xp`) in f32, so that both cut the same windows from the same numbers.
"""
import math
from typing import Literal

import numpy as np

from simclr_jax.augment.kinds import Spatial
from simclr_jax.errors import UsageError

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
        tries, law = TF_TRIES, lambda *a: _tf_window(*a, area, ratio, min_covered)
    else:
        tries = TORCH_TRIES if sampling == "torch" else 1
        law = lambda *a: _torch_window(*a, area, ratio)  # noqa: E731

    def windows(u, height, width, xp):
        if sampling == "tf" and xp is np and u.ndim == 2 and len(u) <= 8 and np.ndim(height) == 0:
            return np.array([_tf_one(row, height, width, area, ratio, min_covered) for row in u.tolist()], np.int32)
        return law(u[..., :tries], u[..., tries:2 * tries], u[..., -2:], height, width, xp)

    return Spatial(2 * tries + 2, windows, lambda h, w: (size, size), size, method, antialias, clip)


def center_crop(*, size: int = 0, proportion: float = 0.0, floor: bool = False) -> Spatial:
    """The middle of an image, not resampled: `size` pixels square, or `proportion` of the shorter side.

    For `proportion` the side is rounded (SimCLR, tf2/data_util.py) or, with `floor`, cut (BYOL, utils/dataset.py) and
    offsets are rounded up; for `size` offsets are rounded half to even (torchvision). A `size` beyond the image is cut
    to the image.
    """
    if (size > 0) == (proportion > 0) or not 0 <= proportion <= 1:
        raise UsageError(f"center_crop: size={size}, proportion={proportion}; set one of them, proportion at most 1")

    def window(height, width):
        if size:
            h, w = min(size, height), min(size, width)
            return round((height - h) / 2), round((width - w) / 2), h, w  # Python rounds half to even
        side = proportion * min(height, width)
        side = math.floor(side) if floor else round(side)
        return (height - side + 1) // 2, (width - side + 1) // 2, side, side

    def windows(u, height, width, xp):
        # Sizes are known when tracing here, unlike those of a random crop.
        return xp.broadcast_to(xp.asarray(window(int(height), int(width)), xp.int32), (*u.shape[:-1], 4))

    return Spatial(0, windows, lambda h, w: (h, w), size or None, "none", False, False)


def resize(*, size: int, shorter: bool = False, method: Literal["bicubic", "bilinear"] = "bicubic",
           antialias: bool = False, clip: bool = True) -> Spatial:
    """The whole image at `size` x `size` or, with `shorter`, its shorter side at `size` and its shape kept."""
    def target(height, width):
        if not shorter:
            return size, size
        short = min(height, width)
        return size * height // short, size * width // short  # torchvision floors the longer side

    def windows(u, height, width, xp):
        zero = xp.zeros(u.shape[:-1], xp.int32)
        return xp.stack([zero, zero, zero + height, zero + width], axis=-1).astype(xp.int32)

    return Spatial(0, windows, target, None if shorter else size, method, antialias, clip)


def _tf_window(u_ratio, u_height, u_place, height, width, xp, area, ratio, min_covered):
    """Windows with the law of TensorFlow's sample_distorted_bounding_box; see GenerateRandomCrop in its kernel."""
    H, W = _f32(height, xp), _f32(width, xp)
    whole = H * W
    low, high = area[0] * whole, area[1] * whole
    a = ratio[0] + u_ratio * (ratio[1] - ratio[0])
    h_max = xp.round(xp.sqrt(high / a))
    fits = xp.floor((W + 0.5 - 1e-7) / a)  # the tallest whose rounded width is within the image
    fits = fits - (xp.round(fits * a) > W)
    h_max = xp.minimum(xp.where(xp.round(h_max * a) > W, fits, h_max), H)
    h_min = xp.minimum(xp.round(xp.sqrt(low / a)), h_max)
    h = h_min + _below(u_height, h_max - h_min + 1, xp)
    # Rounding may have pushed the area just outside its range: one pixel more or less is tried before giving up.
    h = h + (xp.round(h * a) * h < low)
    h = h - (xp.round(h * a) * h > high)
    w = xp.round(h * a)
    covered = w * h
    ok = ((covered >= xp.maximum(low, min_covered * whole)) & (covered <= high) & (w <= W) & (h <= H) & (w > 0)
          & (h > 0))
    h, w = _first(ok, h, w, H[..., 0], W[..., 0], xp)
    # TensorFlow draws offsets below `height - h`, so a window never touches the last row unless it spans all of them.
    y, x = _below(u_place[..., 0], H[..., 0] - h, xp), _below(u_place[..., 1], W[..., 0] - w, xp)
    return xp.stack([y, x, h, w], axis=-1).astype(xp.int32)


def _tf_one(u, height, width, area, ratio, min_covered):
    """`_tf_window` of one row, try by try in plain Python: a tenth of the time of NumPy's calls, for threads that read.

    Sums, products, quotients and roots of f32 are the f64 ones rounded once more, so numbers are the same.
    """
    r = np.float32
    H, W = float(height), float(width)
    whole = float(r(H * W))
    low, high, covered = (float(r(r(share) * r(whole))) for share in (area[0], area[1], min_covered))
    least, spread = float(r(ratio[0])), float(r(ratio[1] - ratio[0]))
    for k in range(TF_TRIES):
        a = float(r(least + float(r(u[k] * spread))))
        h_max = float(np.rint(r(math.sqrt(r(high / a)))))
        if round(float(r(h_max * a))) > W:
            h_max = float(math.floor(r(float(r(W + (0.5 - 1e-7))) / a)))
            h_max -= round(float(r(h_max * a))) > W
        h_max = min(h_max, H)
        h_min = min(float(round(float(r(math.sqrt(r(low / a)))))), h_max)
        h = h_min + _below_one(u[TF_TRIES + k], h_max - h_min + 1)
        h += round(float(r(h * a))) * h < low
        h -= round(float(r(h * a))) * h > high
        w = float(round(float(r(h * a))))
        if max(low, covered) <= w * h <= high and 0 < w <= W and 0 < h <= H:
            break
    else:
        h, w = H, W
    return _below_one(u[-2], H - h), _below_one(u[-1], W - w), h, w


def _below_one(u, count):
    return max(min(math.floor(np.float32(u * count)), count - 1), 0.0)


def _torch_window(u_area, u_ratio, u_place, height, width, xp, area, ratio):
    """Windows with the law of torchvision's RandomResizedCrop.get_params or, with one try, of BYOL's crop."""
    H, W = _f32(height, xp), _f32(width, xp)
    target = H * W * (area[0] + u_area * (area[1] - area[0]))
    low, high = math.log(ratio[0]), math.log(ratio[1])
    a = xp.exp(low + u_ratio * (high - low))
    h, w = xp.round(xp.sqrt(target / a)), xp.round(xp.sqrt(target * a))
    H, W = H[..., 0], W[..., 0]
    middle = False
    if u_area.shape[-1] == 1:
        h, w = xp.clip(h[..., 0], 1.0, H), xp.clip(w[..., 0], 1.0, W)
    else:
        ok = (w <= W[..., None]) & (h <= H[..., None]) & (w > 0) & (h > 0)
        narrow, wide = W / H < ratio[0], W / H > ratio[1]
        h, w = _first(ok, h, w, xp.where(narrow, xp.minimum(xp.round(W / ratio[0]), H), H),
                      xp.where(wide, xp.minimum(xp.round(H * ratio[1]), W), W), xp)
        middle = ~ok.any(axis=-1)
    y = xp.where(middle, xp.floor((H - h) / 2), _below(u_place[..., 0], H - h + 1, xp))
    x = xp.where(middle, xp.floor((W - w) / 2), _below(u_place[..., 1], W - w + 1, xp))
    return xp.stack([y, x, h, w], axis=-1).astype(xp.int32)


def _f32(side, xp):
    """A side as f32[..., 1], to stand beside the tries."""
    return xp.asarray(side, xp.float32)[..., None]


def _below(u, count, xp):
    """Whole numbers (as f32) uniform in [0, count), and 0 where count is 0; `u * count` may round up to count."""
    return xp.maximum(xp.minimum(xp.floor(u * count), count - 1), 0.0)


def _first(ok, h, w, otherwise_h, otherwise_w, xp):
    """The first valid try of each row, or what to take where none is valid: f32[...] heights and widths."""
    at, found = xp.argmax(ok, axis=-1)[..., None], ok.any(axis=-1)
    return (xp.where(found, xp.take_along_axis(h, at, axis=-1)[..., 0], otherwise_h),
            xp.where(found, xp.take_along_axis(w, at, axis=-1)[..., 0], otherwise_w))
