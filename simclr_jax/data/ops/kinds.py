"""The two kinds of augmentation. Both keep the draw of parameters apart from their use."""
from typing import Callable, NamedTuple


class Spatial(NamedTuple):
    """Cuts a window from an image and resamples it; comes first in a view, where images may differ in size."""
    uniforms: int        # numbers in [0, 1) that a row consumes
    draw: Callable       # (u f32[n, uniforms], height i32[], width i32[]) -> windows i32[n, 4]: y, x, height, width
    target: Callable     # (height i32[], width i32[]) of a window -> (height, width) of the output
    size: int | None     # S if the output is S x S whatever comes in, else None
    method: str          # "bilinear" or "bicubic"; "none": the window itself, which then has one size for all rows
    antialias: bool      # whether the kernel widens when shrinking
    clip: bool           # whether bicubic overshoot is cut to [0, 1]


class Pixel(NamedTuple):
    """Changes images of one size, in a batch. Images are planar here, f32[n, 3, S, S]: channels are then contiguous."""
    p: float | None      # chance that a row gets the op (it then consumes one number more, its first); None: every row
    uniforms: int        # numbers in [0, 1) that `draw` consumes
    draw: Callable       # (u f32[n, uniforms], size) -> {name: tensor with leading axis n}
    apply: Callable      # (images f32[n, 3, S, S], parameters) -> the same shape; n may be 0
