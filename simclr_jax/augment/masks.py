"""Which patches of a view are hidden from the student: the block masks of iBOT and DINOv2.

Blocks as in BEiT (Bao et al. 2022, arXiv:2106.08254, algorithm 1) and dinov2 data/masking.py: a place and a shape at
random, kept if it hides something new and not too much, until the view's share is hidden or ten blocks in a row were
refused. There the hidden views are a half of every batch and their shares evenly spaced; here each row draws for itself,
so that it is the same in any company.
"""
from typing import Callable

import jax
import jax.numpy as jnp
from jax import lax

from simclr_jax.augment import draws
from simclr_jax.augment.recipe import Recipe
from simclr_jax.errors import UsageError

SALT = 0x6D61736B  # "mask": no view of a recipe has this number
LEAST, PATIENCE = 4, 10  # fewest patches of a block as drawn; refusals in a row that end the search
ROUNDS = 40  # blocks that are tried at most, a fixed number


def make(recipe: Recipe, seed: int, *, patch: int, chance: float = 0.5, least: float = 0.1, most: float = 0.5,
         aspect: float = 0.3) -> Callable:
    """batch -> batch with "mask" bool[b,V,N], drawn by "id" u32[b,2]: True where a patch of one of the V views is hidden.

    Args:
      patch: side of the backbone's patches in pixels; N = (size of the views / patch)^2, row by row.
      chance: of a view to have hidden patches at all.
      least, most: between which its share of hidden patches is drawn; no more than `most` are hidden.
      aspect: blocks are between `aspect` and 1 / aspect times as high as wide.

    Raises:
      UsageError: a patch that does not divide the views, shares out of order.
    """
    views, size = recipe.shapes()["views"][:2]
    if patch < 1 or size % patch:
        raise UsageError(f"config.augment.mask.patch={patch} does not divide views of {size} pixels; wanted the "
                         "backbone's patch")
    if not (0 <= chance <= 1 and 0 <= least <= most <= 1 and 0 < aspect <= 1):
        raise UsageError(f"config.augment.mask: chance={chance}, least={least}, most={most}, aspect={aspect}: wanted a "
                         "chance, two shares in order and a ratio above 0, at most 1")
    side = size // patch

    def of_view(key):
        coin, share, blocks = jax.random.split(key, 3)
        share = jax.random.uniform(share, minval=least, maxval=most)
        count = jnp.where(jax.random.uniform(coin) < chance, share * side * side, 0).astype(jnp.int32)
        return block(blocks, side, count, aspect).reshape(-1)

    def add(batch):
        keys = jax.vmap(lambda key: jax.random.fold_in(key, SALT))(draws.row_keys(seed, batch["id"]))
        of_row = lambda key: jax.vmap(lambda v: of_view(jax.random.fold_in(key, v)))(jnp.arange(views))
        return {**batch, "mask": jax.vmap(of_row)(keys)}
    return add


def block(key, side: int, count, aspect: float):
    """bool[side,side] with at most `count` (i32[]) patches True, in blocks."""
    def attempt(i, carry):
        mask, refused = carry
        u = jax.random.uniform(jax.random.fold_in(key, i), (4,))
        left = count - jnp.sum(mask)
        area = LEAST + u[0] * (left - LEAST)
        ratio = jnp.exp(jnp.log(aspect) * (1 - 2 * u[1]))
        height, width = (jnp.round(jnp.sqrt(jnp.maximum(area, 0) * r)).astype(jnp.int32) for r in (ratio, 1 / ratio))
        top, first = ((v * (side - extent + 1)).astype(jnp.int32) for v, extent in ((u[2], height), (u[3], width)))
        y, x = jnp.arange(side)[:, None], jnp.arange(side)
        inside = (y >= top) & (y < top + height) & (x >= first) & (x < first + width)
        new = jnp.sum(inside & ~mask)
        fits = (height < side) & (width < side) & (new > 0) & (new <= left) & (refused < PATIENCE)
        return mask | (inside & fits), jnp.where(fits, 0, refused + 1)
    count = jnp.asarray(count, jnp.int32)
    # Made of the count, so that within the step the loop starts from what differs between devices, as it goes on.
    start = lax.full_like(count, False, bool, (side, side)), lax.full_like(count, 0)
    return lax.fori_loop(0, ROUNDS, attempt, start)[0]
