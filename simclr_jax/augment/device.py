"""A recipe as one function of a batch, jitted wherever the batch is: inside the step, or on the host's own cores."""
from typing import Callable

import jax.numpy as jnp

from simclr_jax.augment import draws, resample, stage
from simclr_jax.augment.recipe import Recipe, View, consumes


def make(recipe: Recipe, seed: int) -> Callable:
    """The recipe as batch -> batch, a pure function that JAX can trace; rows do not know of each other.

    Takes a batch with "id" u32[b, 2] (index and epoch, by which a row draws) and either "image" u8[b, H, W, 3], with
    "size" i32[b, 2] where images were squeezed into one size (the originals' height and width), or the crops made on
    the host: "views" u8, u16 or f32 [b, V, S, S, 3] (see `stage.run`) and, in multi-crop recipes, "crops" alike. What it adds in
    their place is "views" f32[b, V, S, S, 3] and "crops" f32[b, K, s, s, 3]; other keys pass.
    """
    def augment(batch):
        keys = draws.row_keys(seed, batch["id"])
        out = {k: v for k, v in batch.items() if k not in ("image", "size", "views", "crops")}
        for key in recipe.shapes():
            members, made = recipe.of(key), []
            groups = _alike(members)
            for alike in groups:
                images = batch["image"] if "image" in batch else _picked(batch[key], members, alike)
                made.append(_run(alike, images, batch.get("size"), keys, cropped="image" not in batch))
            out[key] = made[0] if len(made) == 1 else _in_order(made, groups)
        return out
    return augment


def _alike(views):
    """Views that do the same, together: one program serves them all."""
    groups = {}
    for view in views:
        groups.setdefault(view.ops, []).append(view)
    return list(groups.values())


def _picked(images, members, alike):
    """[b, n, S, S, 3], flattened to rows: the crops of some of the views."""
    places = [i for i, view in enumerate(members) if view in alike]
    if len(places) < images.shape[1]:
        images = images[:, jnp.asarray(places)]
    return images.reshape(-1, *images.shape[2:])


def _in_order(made, groups):
    """[b, V, S, S, 3] of the groups' [b, n, S, S, 3], in the order of the recipe."""
    numbers = [view.number for alike in groups for view in alike]
    order = sorted(range(len(numbers)), key=numbers.__getitem__)
    views = [found[:, i] for found in made for i in range(found.shape[1])]
    return jnp.stack([views[i] for i in order], axis=1)


def _run(alike: list[View], images, sizes, keys, cropped: bool):
    """f32[b, len(alike), S, S, 3]."""
    chain, pixels = (() if cropped else alike[0].chain), alike[0].pixels
    first = len(alike[0].chain)

    def numbers(op, count):  # of all rows and views, the views of a row side by side
        drawn = [draws.uniforms(keys, view.number, op, count) for view in alike]
        return jnp.stack(drawn, axis=1).reshape(len(keys) * len(alike), count)

    windows, (height, width) = [], images.shape[1:3]
    for j, op in enumerate(chain):
        u = numbers(j, op.uniforms)
        if j == 0 and sizes is not None:
            windows.append(_squeezed(op, u, jnp.repeat(sizes, len(alike), axis=0), height, width))
        else:
            windows.append(op.windows(u, height, width, jnp))
        height, width = resample.shape(op, height, width)
    u = tuple(numbers(first + j, consumes(op)) for j, op in enumerate(pixels))
    out = stage.run(chain, pixels, images, tuple(windows), u)
    return out.reshape(len(keys), len(alike), *out.shape[1:])


def _squeezed(op, u, sizes, height: int, width: int):
    """Windows f32[n, 4] on images squeezed to height x width, drawn for originals of i32[n, 2] pixels."""
    windows = op.windows(u, sizes[:, 0], sizes[:, 1], jnp)
    scale = jnp.asarray([height, width], jnp.float32) / sizes
    return windows * jnp.tile(scale, 2)
