"""The log-sum-exp over SimCLR's negatives: each row of both views against all rows of other examples.

The matrix of similarities is symmetric. On one device a triangular sweep computes half of it: each tile serves its
rows and, transposed, its columns. On several devices each computes its own rows against all, and symmetry spares the
gradient its way home: row i's gradient needs P_ij and P_ji, and P_ji = exp(s_ij - lse_j) needs of row j two numbers only,
its log-sum-exp and its cotangent. So no reduce-scatter follows.
"""
import functools

import jax
import jax.numpy as jnp
from jax import lax

from simclr_jax import dist
from simclr_jax.losses.pairs import cut
from simclr_jax.losses.sweep import DENSE, OUT, dot, over, sweep, tile_of

FAINT = 1e-26  # a sum of exponentials below this has lost terms to underflow


def others(z, scale, *, axis=None, comm="gather", block=None, metrics=False):
    """Log-sum-exp over the rows of other examples.

        lse_i = log sum_{k not in (i, j(i))} exp(scale z_i.z_k),  j(i) the other view of i's example

    Args:
      z: f32[2b, D] (or f64), this shard's rows: view one of its b examples, then view two in the same order.
      scale: f32[], 1 / temperature.
      axis, comm: how other shards' rows are met, as in `sweep`.
      block: side of a tile (one device), or candidates in a tile (several).
      metrics: also, without gradient and all f32[2b], "max" of scale z_i.z_k, its "mean" under the softmax, and "close",
        the sum of exp(-2 |z_i - z_k|^2).

    Returns:
      {"lse": f32[2b], ...}; -inf where there is no other example.

    Up to 2^20 pairs on one device are kept for the gradient, which is quicker. Else memory is O(b D + block^2) on one
    device, and on several O(B D + b block) with "gather", O(b D + b block) with "ring". Arithmetic, in products of
    2b x 2B x D: half a product, and 1.5 for the gradient, on one device; one and two on several.
    """
    scale = dist.varying(jnp.asarray(scale, z.dtype), axis)
    if axis is None and block is None and len(z) ** 2 <= DENSE:
        lse, extra = _running(axis, comm, block, metrics, z, scale)
    else:
        lse, extra = _others(axis, comm, block, metrics, z, scale)
    return {"lse": lse} | extra


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def _others(axis, comm, block, metrics, z, scale):
    return _forward(axis, comm, block, metrics, z, scale)[0]


def _forward(axis, comm, block, metrics, z, scale):
    b = z.shape[0] // 2
    running = functools.partial(_running, axis, comm, block, metrics)
    if axis is not None or b == 1:
        out, bounded = running(z, scale), None
    else:
        lse, extra, bounded = _triangle(z, scale, block, metrics)
        out = lax.cond(bounded, lambda z, scale: (lse, extra), running, z, scale)
    return out, (z, scale, out[0], bounded)


def _backward(axis, comm, block, metrics, saved, g):
    z, scale, lse, bounded = saved
    g = jnp.where(lse == OUT, 0, g[0])
    lse = jnp.where(lse == OUT, 0, lse)
    if bounded is None:
        dz = _square_gradient(axis, comm, block, z, scale, lse, g)
    else:
        gradient = functools.partial(_triangle_gradient, block)
        dz = lax.cond(bounded, functools.partial(gradient, True), functools.partial(gradient, False), z, scale, lse, g)
    # A pair's share in the gradient of scale is in two rows of dz, which may be on two devices; half from each.
    return scale * dz, jnp.sum(dz * z) / 2


_others.defvjp(_forward, _backward)


# One device: tiles (i, j) with i <= j.


def _mask(x, i, j, n, padded, fill):
    """Fills tile (i, j) where row and column are of one example or, if any are, beyond the n real ones."""
    row = i * x.shape[0] + lax.broadcasted_iota(jnp.int32, x.shape, 0)
    column = j * x.shape[0] + lax.broadcasted_iota(jnp.int32, x.shape, 1)
    out = (row == column) | (abs(row - column) == n // 2)
    return jnp.where(out | (row >= n) | (column >= n) if padded else out, fill, x)


def _bound(z, scale):
    """No logit is above it, by Cauchy-Schwarz. The one shift for all rows lets an exponential serve row and column."""
    return abs(scale) * jnp.max(jnp.sum(z * z, axis=1))


def _close(similarity, x, y):
    """exp(-2 |x - y|^2) from the inner products of rows x and y; 0 where these are `OUT`."""
    return jnp.exp(4 * similarity - 2 * jnp.sum(x * x, axis=1)[:, None] - 2 * jnp.sum(y * y, axis=1))


def _triangle(z, scale, block, metrics):
    """lse and metrics under one shift for all rows, and whether it bounded them well: nothing over- or underflowed."""
    n, tiles = z.shape[0], cut(z, block)
    count, side, _ = tiles.shape
    shift = _bound(z, scale)

    def reduce(s, e, dim, close):
        if not metrics:
            return {"total": e.sum(axis=dim)}
        return {"total": e.sum(axis=dim), "weighted": jnp.where(e == 0, 0, s * e).sum(axis=dim), "max": s.max(axis=dim),
                "close": close.sum(axis=dim)}

    def merge(seen, i, new):
        return {k: x.at[i].max(new[k]) if k == "max" else x.at[i].add(new[k]) for k, x in seen.items()}

    def row(seen, i):
        mine = scale * tiles[i]

        def tile(j, seen):
            s = _mask(dot(mine, tiles[j]) - shift, i, j, n, count * side > n, OUT)
            close = _close((s + shift) / scale, tiles[i], tiles[j]) if metrics else None
            s, e, close = lax.optimization_barrier((s, jnp.exp(s), close))  # else each sum takes its own exponentials
            columns = reduce(s, e, 0, close)
            # A tile of the diagonal is its own transpose, and has been counted by its rows.
            columns = {k: x if k == "max" else jnp.where(i == j, 0, x) for k, x in columns.items()}
            return merge(merge(seen, i, reduce(s, e, 1, close)), j, columns)
        return lax.fori_loop(i, count, tile, seen), None

    seen = {"total": 0, "weighted": 0, "max": OUT, "close": 0} if metrics else {"total": 0}
    seen = {k: lax.full_like(tiles, v, shape=(count, side)) for k, v in seen.items()}
    seen = {k: x.reshape(-1)[:n] for k, x in lax.scan(row, seen, jnp.arange(count))[0].items()}
    total = seen["total"]
    bounded = jnp.all((total > FAINT) & (total < jnp.inf))
    extra = {}
    if metrics:
        extra = {"max": seen["max"] + shift, "mean": seen["weighted"] / total + shift, "close": seen["close"]}
    return shift + jnp.log(total), extra, bounded


def _triangle_gradient(block, bounded, z, scale, lse, g):
    """sum_j (g_i P_ij + g_j P_ji) z_j for every row i: each tile is made again once and serves both its sides."""
    n, tiles = z.shape[0], cut(z, block)
    count, side, _ = tiles.shape
    shift = _bound(z, scale)
    lse, g = cut(lse, block), cut(g, block)
    weight = g * jnp.exp(shift - lse)

    def shares(s, i, j):
        if bounded:  # one exponential for both softmaxes
            return jnp.exp(s - shift) * (weight[i][:, None] + weight[j])
        return jnp.exp(s - lse[i][:, None]) * g[i][:, None] + jnp.exp(s - lse[j]) * g[j]

    def row(dz_t, i):
        mine, turned = scale * tiles[i], tiles[i].T

        def tile(j, carry):
            dz, dz_t = carry
            p = _mask(shares(dot(mine, tiles[j]), i, j), i, j, n, count * side > n, 0)
            p = lax.optimization_barrier(p)
            # The columns' part is kept turned, [D, side]: on CPUs the product p.T @ z is three times as slow.
            part = jnp.where(i == j, 0, jnp.matmul(turned, p, precision="highest"))
            return dz + jnp.matmul(p, tiles[j], precision="highest"), dz_t.at[j].add(part)
        dz, dz_t = lax.fori_loop(i, count, tile, (jnp.zeros_like(tiles[i]), dz_t))
        return dz_t, dz + dz_t[i].T  # all tiles above the diagonal in column i are done

    turned = lax.full_like(tiles, 0, shape=(count, tiles.shape[2], side))
    return lax.scan(row, turned, jnp.arange(count))[1].reshape(-1, z.shape[1])[:n]


# Several devices: own rows against all.


def _logits(rows, keys, scale):
    s = dot(rows["z"], keys["z"]) * scale
    return jnp.where(rows["example"][:, None] == keys["example"], OUT, s)


def _rows(z, axis):
    example = dist.rows(z.shape[0] // 2, axis)
    return {"z": z, "example": jnp.concatenate([example, example])}


def _keys(rows, axis, comm):
    """(this shard's rows or, with "gather", those of all shards; axis of the ring, if they are to be sent round one)"""
    if axis is None or comm == "ring":
        return rows, axis
    shards, b = dist.size(axis), rows["z"].shape[0] // 2
    # Which example each gathered row is of is known, so not sent.
    example = jnp.tile(jnp.arange(shards * b, dtype=jnp.int32).reshape(shards, b), 2).reshape(-1)
    return {k: dist.all_gather(x, axis) for k, x in rows.items() if k != "example"} | {"example": example}, None


def _running(axis, comm, block, metrics, z, scale):
    def tile(rows, keys, scale):
        s = _logits(rows, keys, scale)
        if not metrics:
            return {"lse": {"": s}}
        return {"lse": {"": s}, "max": {"": s}, "sum": {"": _close(s / scale, rows["z"], keys["z"])}}
    rows = _rows(z, axis)
    keys, ring = _keys(rows, axis, comm)
    out = sweep(tile, rows, keys, scale, axis=ring, comm="ring", block=block, means=metrics)
    return out["lse"][""], {k: out[g][""] for k, g in (("max", "max"), ("mean", "mean"), ("close", "sum")) if metrics}


def _square_gradient(axis, comm, block, z, scale, lse, g):
    """As `_triangle_gradient`, of this shard's rows against the keys of all."""
    rows = _rows(z, axis)
    keys, ring = _keys(rows | {"of": jnp.stack([lse, g], axis=1)}, axis, comm)

    def visit(dz, keys, valid):
        s = _logits(rows, keys, scale)
        of_keys = keys["of"].T
        p = jnp.exp(s - lse[:, None]) * g[:, None] + jnp.exp(s - of_keys[0]) * of_keys[1]
        p = p if valid is None else jnp.where(valid, p, 0)
        return dz + jnp.matmul(p, keys["z"], precision="highest")
    return over(keys, visit, jnp.zeros_like(z), axis=ring, block=tile_of(block, z.shape[0]))
