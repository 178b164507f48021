"""Rows against candidates, tile by tile: what each row makes of all candidates, in memory linear in both.

Most losses here are log-sum-exps and sums over the candidates of a row. `sweep` forms them without ever holding the
matrix of rows by candidates, forward or backward, and meets the candidates of other devices on the way. `over` and
`round_trip` are the two ways round, for losses with gradients of their own.
"""
import functools

import jax
import jax.numpy as jnp
from jax import lax

from simclr_jax import dist
from simclr_jax.losses import running
from simclr_jax.losses.running import OUT

DENSE = 1 << 20  # up to so many pairs, keeping the matrix is cheaper than computing it twice
TILE = 1 << 22  # pairs in a tile where the caller leaves the size to us: 16 MiB of f32


def wide(x):
    """f32, or f64 for f64: what similarities and everything after them are computed in."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def dot(q, k):
    """f32[n, m], the inner products of q: f32[n, D] with k: f32[m, D], not rounded to fewer bits on accelerators."""
    return jnp.matmul(q, k.T, precision="highest")


def check_comm(comm):
    if comm not in ("gather", "ring"):
        raise ValueError(f"comm={comm!r}, wanted 'gather' or 'ring'")


def tile_of(block, n):
    """Candidates in a tile for n rows: what the caller asks, or what makes `TILE` pairs."""
    return block or max(128, TILE // n)


def sweep(tile, rows, keys, theta=None, *, axis=None, comm="gather", block=None, means=False):
    """Reduces `tile` over all candidates, for every row.

    Args:
      tile: (rows, keys, theta) -> {"lse": {name: f[n,m]}, "sum": {name: f[n,m]}, "max": {name: f[n,m]}}, each group as
        wanted. A pure function that closes over no array; `OUT` in "lse" and "max" is what does not take part.
      rows: tree of arrays [n, ...], this shard's rows.
      keys: tree of arrays [m, ...], this shard's candidates; those of the other shards of `axis` are met too.
      theta: tree of arrays that all rows share (temperature, margin). Floating leaves of all three are differentiated;
        floating rows and keys arrive in `tile` widened to f32.
      axis, comm: "gather" holds all candidates at once, O(m * shards); "ring" passes them from device to device, O(m),
        forward and backward.
      block: candidates in a tile. None: the whole matrix where it is small, else tiles of about `TILE` pairs.
      means: also reduce each of "lse" to the mean logit under its softmax, without gradient (entropy = lse - mean).

    Returns:
      {"lse": {name: f[n]}, "sum": ..., "max": ..., "mean": ...}; -inf for a row without candidates (0 in "mean").
      "max" and "mean" carry no gradient.
    """
    check_comm(comm)
    theta = dist.varying(theta, axis)
    if comm == "gather":
        keys, axis = dist.all_gather(keys, axis), None
    n, m = _count(rows), _count(keys)
    if axis is None and block is None and n * m <= DENSE:
        out = tile(_widen(rows), _widen(keys), theta)
        return _finish(_see(_start(out, _like(rows), means), out))
    diff, rest = zip(*map(_split, (rows, keys, theta)))
    return _sweep(tile, axis, tile_of(block, n), means, diff, rest)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def _sweep(tile, axis, block, means, diff, rest):
    return _forward(tile, axis, block, means, diff, rest)[0]


def _forward(tile, axis, block, means, diff, rest):
    rows, keys, theta = (_join(d, r) for d, r in zip(diff, rest))
    rows = _widen(rows)

    def visit(seen, keys, valid):
        out = tile(rows, _widen(keys), theta)
        keep = lambda x, fill: x if valid is None else jnp.where(valid, x, fill)
        return _see(seen, {g: {k: keep(x, 0 if g == "sum" else OUT) for k, x in out[g].items()} for g in out})

    shapes = jax.eval_shape(lambda k: tile(rows, _widen(k), theta), jax.tree.map(lambda x: x[:block], keys))
    seen = over(keys, visit, _start(shapes, _like(rows), means), axis=axis, block=block)
    out = _finish(seen)
    return out, (diff, rest, out.get("lse", {}))


def _backward(tile, axis, block, means, saved, g):
    diff, rest, lse = saved
    (rows, keys, theta), (rows_rest, keys_rest, theta_rest) = diff, rest
    rows_wide = _widen(rows)

    def visit(grads, keys, valid):
        keys, keys_rest = keys

        def part(rows, keys, theta):
            out = tile(_join(rows, rows_rest), _join(keys, keys_rest), _join(theta, theta_rest))
            return {k: out[k] for k in ("lse", "sum") if k in out}
        out, pull = jax.vjp(part, rows_wide, _widen(keys), theta)
        keep = lambda x: x if valid is None else jnp.where(valid, x, 0)
        weight = {}
        if "lse" in out:  # d lse_i / d s_ij is the softmax, made again from the row's log-sum-exp
            weight["lse"] = {k: keep(running.share(s, lse[k]) * g["lse"][k][:, None]) for k, s in out["lse"].items()}
        if "sum" in out:
            weight["sum"] = {k: keep(jnp.broadcast_to(g["sum"][k][:, None], s.shape).astype(s.dtype))
                             for k, s in out["sum"].items()}
        d_rows, d_keys, d_theta = pull(weight)
        return _add(grads, (d_rows, d_theta)), d_keys

    zero = jax.tree.map(jnp.zeros_like, (rows_wide, theta))
    (d_rows, d_theta), d_keys = round_trip((keys, keys_rest), visit, zero, _add, axis=axis, block=block)
    like = lambda d, x: jax.tree.map(lambda a, b: a.astype(b.dtype), d, x)
    return (like(d_rows, rows), like(d_keys, keys), d_theta), None


_sweep.defvjp(_forward, _backward)


# Ways round. Without an axis: over the keys at hand, tile by tile. With one: over those of all its shards, passed round
# the ring; what travels needs nothing of the hop's own work, so that it can travel meanwhile.


def over(keys, visit, carry, *, axis, block):
    """carry = visit(carry, keys[block, ...], valid) for all keys; valid: bool[block], or None if all of them are."""
    def at_hand(carry, keys):
        return _scan(lambda c, k, valid: (visit(c, k, valid), None), carry, keys, block)[0]

    def hop(state, _):
        carry, keys = state
        coming = dist.send_next(keys, axis)
        return (at_hand(carry, keys), coming), None
    if axis is not None:
        (carry, keys), _ = lax.scan(hop, (carry, keys), length=dist.size(axis) - 1)
    return at_hand(carry, keys)


def round_trip(keys, visit, carry, merge, *, axis, block):
    """(carry, found) = visit(carry, keys, valid) for all keys: `found` [block, ...] is for the keys, and comes home.

    Returns the carry and [m, ...], what all shards found for this shard's keys, combined by `merge(a, b)`. (With the keys
    of all shards gathered beforehand and no axis, what this shard found for all of them.)
    """
    def at_hand(carry, keys):
        carry, found = _scan(visit, carry, keys, block)
        m = _count(keys)
        return carry, jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:m], found)

    def hop(state, _):
        carry, keys, found = state
        coming, received = dist.send_next(keys, axis), dist.send_next(found, axis)
        carry, mine = at_hand(carry, keys)
        return (carry, coming, merge(received, mine)), None

    shards = 1 if axis is None else dist.size(axis)
    if shards == 1:
        return at_hand(carry, keys)
    coming = dist.send_next(keys, axis)
    carry, found = at_hand(carry, keys)
    (carry, keys, found), _ = lax.scan(hop, (carry, coming, found), length=shards - 2)
    received = dist.send_next(found, axis)
    carry, mine = at_hand(carry, keys)  # keys need not travel further
    return carry, dist.send_next(merge(received, mine), axis)


def _scan(visit, carry, keys, block):
    """visit over tiles of keys, the last filled up; what it finds is stacked, [tiles, block, ...]."""
    m = _count(keys)
    if block >= m:
        carry, found = visit(carry, keys, None)
        return carry, jax.tree.map(lambda x: x[None], found)
    spare = -m % block
    pad = lambda x: jnp.pad(x, ((0, spare),) + ((0, 0),) * (x.ndim - 1)).reshape(-1, block, *x.shape[1:])
    valid = (jnp.arange(m + spare) < m).reshape(-1, block) if spare else None
    return lax.scan(lambda c, k: visit(c, *k), carry, (jax.tree.map(pad, keys), valid))


def _like(tree):
    """An array for others to vary over the mesh like: a floating one, as numbers of rows may be the same everywhere."""
    return next(x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact))


def _start(out, like, means):
    """What rows have seen before the first tile."""
    fill = lambda x, value: lax.full_like(like, value, x.dtype, x.shape[:1])
    first = {"sum": lambda x: fill(x, 0), "max": lambda x: fill(x, OUT),
             "lse": lambda x: running.start(fill(x, 0), x.shape[:1], means)}
    return {group: {k: first[group](x) for k, x in members.items()} for group, members in out.items()}


def _see(seen, out):
    """Takes a tile's logits into what rows have seen so far."""
    take = {"sum": lambda old, x: old + x.sum(axis=1),
            "max": lambda old, x: jnp.maximum(old, lax.stop_gradient(x.max(axis=1, initial=OUT))), "lse": running.see}
    return {group: {k: take[group](seen[group][k], x) for k, x in members.items()} for group, members in out.items()}


def _finish(seen):
    out = {g: seen[g] for g in seen if g != "lse"}
    if "lse" in seen:
        done = {k: running.finish(state) for k, state in seen["lse"].items()}
        out["lse"] = {k: lse for k, (lse, _) in done.items()}
        out["mean"] = {k: extra["mean"] for k, (_, extra) in done.items() if "mean" in extra}
    return out


def _count(tree):
    return jax.tree.leaves(tree)[0].shape[0]


def _widen(tree):
    return jax.tree.map(lambda x: wide(x) if jnp.issubdtype(x.dtype, jnp.inexact) else x, tree)


def _split(tree):
    """A tree's floating leaves and its others, each with None where the other has a leaf."""
    inexact = jax.tree.map(lambda x: x if jnp.issubdtype(x.dtype, jnp.inexact) else None, tree)
    return inexact, jax.tree.map(lambda x: None if jnp.issubdtype(x.dtype, jnp.inexact) else x, tree)


def _join(inexact, rest):
    return jax.tree.map(lambda a, b: b if a is None else a, inexact, rest, is_leaf=lambda x: x is None)


def _add(a, b):
    return jax.tree.map(jnp.add, a, b)
