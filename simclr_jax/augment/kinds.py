"""The two kinds of augmentation. Both keep the draw of parameters apart from their use."""
from typing import Callable, NamedTuple


class Spatial(NamedTuple):
    """Cuts a window from an image and resamples it; comes first in a view, where images may differ in size."""

    uniforms: int  # numbers in [0, 1) that a row consumes
    windows: Callable  # (u [..., uniforms], height, width, xp) -> [..., 4] i32: y, x, h, w; xp: numpy or jax.numpy
    target: Callable  # (height, width) of a window -> (rows, columns) of the output
    size: int | None  # S if the output is S x S whatever comes in, else None
    method: str  # "bilinear" or "bicubic"; "none": the window itself, which then has one size for all rows
    antialias: bool  # whether the kernel widens when shrinking
    clip: bool  # whether bicubic overshoot is cut to [0, 1]


class Pixel(NamedTuple):
    """Changes one image of a known size. Images are three planes here, so that each is contiguous."""

    p: float | None  # chance that a row gets the op; it then consumes one number more, its first; None: every row
    uniforms: int  # numbers in [0, 1) that `draw` consumes
    draw: Callable  # (u f32[uniforms], size) -> parameters of one row, a dict of small arrays
    apply: Callable  # (planes: three f32[S, S], red, green, blue; parameters) -> the same; may branch with lax.cond
