"""A recipe is plain data: a tuple of views, each a tuple of (op, kwargs). This file reads one and refuses what cannot be.

A view starts with its spatial ops (crops and resizes); the others work on images of the view's size.
"""
from typing import Mapping, NamedTuple, Sequence

import numpy as np

from simclr_jax import keys
from simclr_jax.augment import schema
from simclr_jax.augment.kinds import Pixel, Spatial
from simclr_jax.errors import UsageError


class View(NamedTuple):
    """One view of a recipe."""

    number: int  # its place in the recipe, by which it draws
    key: str  # what the batch calls its kind: "views", or "crops" for those of a second, smaller size
    chain: tuple[Spatial, ...]
    pixels: tuple[Pixel, ...]
    size: int  # S
    ops: tuple  # its (op, kwargs) as given, by which equal views are found


class Recipe(NamedTuple):
    """What a recipe makes of an image: views f32[V, S, S, 3] and, in multi-crop recipes, crops f32[K, s, s, 3]."""

    views: tuple[View, ...]

    def of(self, key: str) -> tuple[View, ...]:
        """The views that the batch calls `key`."""
        return tuple(view for view in self.views if view.key == key)

    def shapes(self) -> dict[str, tuple[int, int, int, int]]:
        """{"views": (V, S, S, 3)} and, in multi-crop recipes, {"crops": (K, s, s, 3)}."""
        kinds = {key: self.of(key) for key in ("views", "crops")}
        return {key: (len(of), of[0].size, of[0].size, 3) for key, of in kinds.items() if of}

    def numbers(self, seed: int, ids: np.ndarray) -> np.ndarray:
        """f32[n, views, ops, numbers]: what the spatial ops of rows with ids u32[n, 2] draw, in NumPy, padded."""
        keys_of = keys.row_keys(seed, ids)
        depth = max([len(view.chain) for view in self.views] + [1])
        most = max([op.uniforms for view in self.views for op in view.chain] + [1])
        of_views = keys.fold_in(keys_of[:, None], np.arange(len(self.views)))
        return keys.uniform(keys.fold_in(of_views[:, :, None], np.arange(depth)), most)


def build(views: Sequence) -> Recipe:
    """Reads a recipe.

    Args:
      views: one sequence of (op, kwargs) a view; lists and mappings as they come from JSON will do.

    Raises:
      UsageError: an unknown op or kwarg, a value of the wrong type or out of range, a spatial op after a pixel op,
        views of more than two sizes or of none.
    """
    if not isinstance(views, (list, tuple)) or not views:
        raise UsageError(f"views={views!r}; wanted a tuple of views, each a tuple of (op, kwargs)")
    parsed = [_parse(view, f"view {v}") for v, view in enumerate(views)]
    sizes = [size for _, _, size, _ in parsed]
    for v, size in enumerate(sizes):
        if size is None:
            raise UsageError(f"view {v} has no fixed size; start it with random_resized_crop, or end its crops with "
                             "resize or center_crop of a `size`")
    if len(set(sizes)) > 2:
        raise UsageError(f"views come out at sizes {sizes}; wanted one size, or two as in multi-crop recipes")
    return Recipe(tuple(View(v, "views" if size == max(sizes) else "crops", chain, pixels, size, ops)
                        for v, (chain, pixels, size, ops) in enumerate(parsed)))


def build_eval(ops: Sequence) -> View:
    """Reads one view without randomness.

    Raises:
      UsageError: as `build`, or an op that draws.
    """
    chain, pixels, size, given = _parse(ops, "eval")
    if size is None:
        raise UsageError("eval: images have no fixed size; end the crops with resize or center_crop of a `size`")
    for (name, _), op in zip(ops, chain + pixels):
        if consumes(op) if isinstance(op, Pixel) else op.uniforms:
            raise UsageError(f"eval: {name} is random; wanted ops that draw nothing, such as resize or normalize")
    return View(0, "image", chain, pixels, size, given)


def consumes(op: Pixel) -> int:
    """How many numbers a pixel op takes of a row, its chance included."""
    return op.uniforms + (op.p is not None)


def _parse(view, where: str):
    """A view's spatial ops, its pixel ops, its size (None if it varies) and its ops in a form that compares."""
    chain, pixels, size, ops = [], [], None, []
    if not isinstance(view, (list, tuple)):
        raise UsageError(f"{where}: {view!r}; wanted a tuple of (op, kwargs)")
    for j, item in enumerate(view):
        if not (isinstance(item, (list, tuple)) and len(item) == 2 and isinstance(item[0], str)
                and isinstance(item[1], Mapping)):
            raise UsageError(f"{where}, op {j}: {item!r}; wanted (op, kwargs), such as ('flip', {{'p': 0.5}})")
        name, op = item[0], schema.make(item[0], item[1], f"{where}, op {j}")
        ops.append((name, repr(sorted((k, schema.plain(v)) for k, v in item[1].items()))))
        if isinstance(op, Pixel):
            if op.p is not None and not 0 <= op.p <= 1:
                raise UsageError(f"{where}, op {j}: {name}: p={op.p}; wanted a chance between 0 and 1")
            pixels.append(op)
            continue
        if pixels:
            raise UsageError(f"{where}, op {j}: {name} comes after {view[j - 1][0]}; crops and resizes come first")
        if op.size is not None and op.size < 1:
            raise UsageError(f"{where}, op {j}: {name}: size={op.size}; wanted at least 1 pixel")
        chain.append(op)
        size = op.size
    return tuple(chain), tuple(pixels), size, tuple(ops)
