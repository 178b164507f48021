"""NT-Xent, the loss of SimCLR: the other view of an example among all other views of the batch."""
import jax
import jax.numpy as jnp
from jax import lax

from simclr_jax import dist
from simclr_jax.losses.unit import unit


def nt_xent(z1, z2, *, temperature, normalize=True, axis=None, comm="gather", block=None, metrics=False):
    """Normalised temperature-scaled cross entropy (Chen et al. 2020, arXiv:2002.05709, equation 1 and algorithm 1).

    With z_1..z_2B the rows of both views of the whole batch and j(i) the other view of i's example:

        loss = 1/2B sum_i [ log sum_{k != i} exp(z_i.z_k / T) - z_i.z_j(i) / T ]

    This is the paper's mean over the 2B rows. The released TensorFlow code returns twice that.

    Args:
      z1, z2: float[b, D], this shard's rows of the two views, row i of both from one example. Any float dtype: products
        accumulate and everything after them is computed in f32 (in f64 for f64 input).
      temperature: T, a number or scalar array.
      normalize: make rows unit length first (squared norm clamped at 1e-12).
      axis: mesh axis whose shards hold the other rows of the batch; None if this is all of it.
      comm: how the other shards' rows are met: "gather" (one all-gather, O(B D) memory) or "ring" (blocks passed from
        device to device, O(b D)). Same value.
      block: candidates in one tile of the similarity matrix: O(b * block) memory, tiles recomputed in the backward
        pass. None: all those at hand at once.
      metrics: also return {"accuracy", "entropy", "positive", "negative"} under `stop_gradient`: how often the positive
        is the nearest, the entropy (nats) of the softmax over candidates, the mean similarity (cosine, if normalised)
        of positives and of negatives; means over this shard's rows.

    Returns:
      f32[]: the mean over this shard's 2b rows; its `pmean` over `axis` is the loss of the global batch. With `metrics`,
      (f32[], {name: f32[]}).

    >>> z = jnp.eye(4)
    >>> round(float(nt_xent(z, z, temperature=1.0)), 4)  # log(e + 6) - 1: one positive at 1, six negatives at 0
    1.1654
    """
    if z1.shape != z2.shape or z1.ndim != 2:
        raise ValueError(f"nt_xent wants two arrays of one shape [b, D], got {z1.shape} and {z2.shape}")
    if comm not in ("gather", "ring"):
        raise ValueError(f"nt_xent: comm={comm!r}, wanted 'gather' or 'ring'")
    b = z1.shape[0]
    z = jnp.concatenate([z1, z2])  # [2b, D]
    z = unit(z) if normalize else z
    total = 2 * b * dist.size(axis)
    row = dist.rows(b, axis)
    ids = jnp.concatenate([row, row + total // 2])  # [2b]: who is who among the 2B rows
    other = (ids + total // 2) % total  # [2b]: the other view
    wide = jnp.promote_types(z.dtype, jnp.float32)
    scale = 1 / jnp.asarray(temperature, wide)
    low = jnp.finfo(wide).min  # finite: an infinity here would make gradients NaN

    def meet(seen, keys, key_ids):
        """Takes candidates into what each row has seen so far: a running log-sum-exp and, if asked, the metrics."""
        # "highest": accelerators round f32 products to fewer bits by default, and the positive below is exact.
        s = jnp.matmul(z, keys.T, precision="highest",
                       preferred_element_type=wide) * scale  # [2b,D] x [D,n] -> [2b,n]
        candidate = (ids[:, None] != key_ids) & (key_ids >= 0)
        masked = jnp.where(candidate, s, low)
        # The shift cancels in the log-sum-exp, so no gradient need flow through it.
        top = lax.stop_gradient(jnp.maximum(seen["max"], masked.max(axis=1)))
        shrink = jnp.exp(seen["max"] - top)
        e = jnp.where(candidate, jnp.exp(masked - top[:, None]), 0)  # [2b,n]
        now = {"max": top, "sum": seen["sum"] * shrink + e.sum(axis=1)}
        if metrics:
            s, e = lax.stop_gradient((jnp.where(candidate, s, 0), e))
            rival = jnp.where(candidate & (other[:, None] != key_ids), s, low)
            now["rival"] = jnp.maximum(seen["rival"], rival.max(axis=1))
            now["weighted"] = seen["weighted"] * lax.stop_gradient(shrink) + (s * e).sum(axis=1)
            now["total"] = seen["total"] + s.sum(axis=1)
        return now

    def meet_in_tiles(seen, keys, key_ids):
        n = keys.shape[0]
        if block is None or block >= n:
            return meet(seen, keys, key_ids)
        spare = -n % block  # the last tile is filled up with rows of id -1, which are no candidates
        keys = jnp.pad(keys, ((0, spare), (0, 0))).reshape(-1, block, keys.shape[1])
        key_ids = jnp.pad(key_ids, (0, spare), constant_values=-1).reshape(-1, block)
        tile = jax.checkpoint(lambda seen, tile: (meet(seen, *tile), None))
        return lax.scan(tile, seen, (keys, key_ids))[0]

    start = {"max": low, "sum": 0.0} | ({"rival": low, "weighted": 0.0, "total": 0.0} if metrics else {})
    seen = dist.varying({k: jnp.full(2 * b, v, wide) for k, v in start.items()}, axis)
    if comm == "ring" and axis is not None:
        def hop(state, _):
            seen, keys = state
            return (meet_in_tiles(seen, *keys), dist.send_next(keys, axis)), None
        (seen, _), _ = lax.scan(hop, (seen, (z, ids)), length=dist.size(axis))
    else:
        seen = meet_in_tiles(seen, dist.all_gather(z, axis), dist.all_gather(ids, axis))

    positive = jnp.sum(z.astype(wide) * jnp.roll(z, b, axis=0), axis=1) * scale  # [2b]
    lse = seen["max"] + jnp.log(seen["sum"])
    loss = jnp.mean(lse - positive)
    if not metrics:
        return loss
    lse, positive, scale, z_sum = lax.stop_gradient((lse, positive, scale, seen["sum"]))
    return loss, {
        "accuracy": jnp.mean((positive > seen["rival"]).astype(jnp.float32)),
        "entropy": jnp.mean(lse - seen["weighted"] / z_sum),
        "positive": jnp.mean(positive) / scale,
        "negative": jnp.mean(seen["total"] - positive) / (total - 2) / scale,
    }
