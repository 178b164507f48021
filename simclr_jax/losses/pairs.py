"""Tiles of the matrix between two kinds of rows, such as images and texts, both sides served from each tile.

This shard's rows meet the keys of all shards. What a tile holds for its rows stays; what it holds for its keys goes home
with them. So the matrix is made once for both directions of a loss, and once more for the gradient.
"""
import jax.numpy as jnp
from jax import lax

from simclr_jax import dist
from simclr_jax.losses.sweep import round_trip

SIDE = 1024  # of a tile by default: 4 MiB of f32, the fastest power of two on CPUs


def side(block, n):
    return min(block or SIDE, n)


def cut(x, block):
    """Rows as [tiles, side, ...], the last filled up with zeros (with -1 where they are numbers)."""
    spare = -x.shape[0] % side(block, x.shape[0])
    x = jnp.pad(x, ((0, spare),) + ((0, 0),) * (x.ndim - 1), constant_values=-1 if x.dtype == jnp.int32 else 0)
    return x.reshape(-1, side(block, x.shape[0]), *x.shape[1:])


def everyone(keys, axis, comm):
    """(this shard's keys or, with "gather", those of all shards; their numbers in the whole batch; axis of the ring)"""
    b = keys.shape[0]
    if comm == "gather" and axis is not None:
        return dist.all_gather(keys, axis), jnp.arange(b * dist.size(axis), dtype=jnp.int32), None
    return keys, dist.rows(b, axis), axis


def meet(tile, rows, seen, keys, found, merge, *, axis, block, home=lambda found: found):
    """Every tile of rows by keys once.

    Args:
      tile: (rows of a tile, what they have seen, keys of a tile, what was found for them, out) -> (seen, found);
        out: bool[rows, keys], True for pairs of one example and where the tile is only filled up.
      rows, seen: trees of [tiles, side, ...], by `cut`; rows["id"] are numbers in the whole batch.
      keys: tree of [m, ...] with "id".
      found: (shape of keys, (k,)) -> what is known of them before anything is found.
      merge: of what two shards found.
      home: makes trees of [keys, ...] of what was found.

    Returns:
      (seen, found for the keys [m, ...]); with an axis, for this shard's from all shards.
    """
    def visit(seen, keys, valid):
        def one(found, x):
            mine, seen = x
            out = (mine["id"][:, None] == keys["id"]) | (mine["id"] < 0)[:, None]
            out = out if valid is None else out | ~valid
            seen, found = tile(mine, seen, keys, found, out)
            return found, seen
        found_here, seen = lax.scan(one, found(keys["id"].shape), (rows, seen))
        return seen, home(found_here)
    return round_trip(keys, visit, seen, merge, axis=axis, block=side(block, keys["id"].shape[0]))
