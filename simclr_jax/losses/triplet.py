"""Triplet loss: the positive should be nearer to the anchor than the negative, by a margin."""
import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

from simclr_jax import dist
from simclr_jax.losses.distance import distance, labelled, pairs, rounding, squared_distance
from simclr_jax.losses.mean import mean_over
from simclr_jax.losses.sweep import OUT, TILE, sweep


def triplet(embeddings, labels, *, margin, mining="all", swap=False, smooth=False, normalize=True, axis=None,
            comm="gather", block=None, metrics=False):
    """Triplet loss (Schroff et al. 2015, arXiv:1503.03832, equation 1; Hermans et al. 2017, arXiv:1703.07737).

    Of anchors a, their positives p and their negatives n among all rows of the whole batch:

        loss = mean over triplets of relu(d_ap - d_an + margin)

    where the mean is over the triplets whose term is not zero and d is the Euclidean distance, as is usual today.
    Schroff et al. sum over triplets and have d^2.

    Args:
      embeddings: float[b, D], this shard's rows. Any float dtype; distances and all after them are computed in f32 (f64
        for f64).
      labels: int[b], below 0: unlabelled, no positives and a negative of everyone.
      margin: number or scalar array, differentiated if traced.
      mining: "all" triplets; or "hard", one for each anchor that has both: its farthest positive and its nearest
        negative (Hermans et al., equation 5, there a sum). Equally hard ones share the gradient.
      swap: the smaller of d_an and d_pn instead of d_an (Balntas et al. 2016, "Learning local feature descriptors with
        triplets and shallow convolutional neural networks"). For mining="all".
      smooth: softplus instead of relu, and so the mean over all triplets (Hermans et al.: the soft margin, margin 0).
      normalize: make rows unit length first (squared norm clamped at 1e-12), so that d is in [0, 2].
      axis, comm: how other rows are met, as in `nt_xent`. For all triplets, "ring" goes round once with the positives
        and, for each tile of these, once with the negatives.
      block: rows in a tile. With "all", of positives and of negatives both: O(b * block^2) memory and O(b B^2)
        arithmetic (and O(b B^2 D / block) in matrix products) for b rows here and B in all; None: tiles of about 2^22
        triplets. With "hard", as in `nt_xent`: O(b * block) and O(b B D), twice.
      metrics: also return {"active", "positive", "negative"} under `stop_gradient`: the share of triplets that violate
        the margin (d_ap - d_an + margin > 0), and the mean distances d_ap and d_an of the triplets, active or not.

    Returns:
      f32[]: this shard's part, of its own anchors; its `pmean` over `axis` is the loss of the global batch. 0 if there
      is no triplet. With `metrics`, (f32[], {name: f32[]}).

    Raises:
      ValueError: embeddings are not [b, D], labels not integers [b], mining or comm is unknown, or swap with "hard".

    >>> x, labels = jnp.array([[1., 0], [0, 1], [0, 1]]), jnp.array([0, 0, 1])
    >>> round(float(triplet(x, labels, margin=0.2)), 4)  # 0.2 of anchor 0 and sqrt(2) + 0.2 of anchor 1
    0.9071
    """
    if mining not in ("all", "hard"):
        raise ValueError(f"triplet: mining={mining!r}, wanted 'all' or 'hard'")
    if swap and mining == "hard":
        raise ValueError("triplet: swap=True with mining='hard', wanted mining='all'")
    rows = labelled("triplet", embeddings, labels, normalize, axis, comm)
    margin = jnp.asarray(margin, rows["x"].dtype)
    if mining == "hard":
        far, near, valid = _hardest(rows, axis, comm, block)
        total = {k: x.sum() for k, x in _terms(far, near, valid, margin, smooth, False, metrics).items()}
    else:
        total = _all(rows, margin, swap, smooth, axis, comm, block, metrics)
    loss = mean_over(total["loss"], total["counted"], axis)
    if not metrics:
        return loss
    return loss, {k: mean_over(total[k], total["triplets"], axis) for k in ("active", "positive", "negative")}


def _terms(far, near, valid, margin, smooth, swapped, metrics):
    """What is summed over triplets. far, near: d_ap and d_an; swapped: d_pn (False: none); all broadcast to `valid`."""
    violation = far - (near if swapped is False else jnp.minimum(near, swapped)) + margin
    term = jax.nn.softplus(violation) if smooth else jax.nn.relu(violation)
    count = lambda which: which.astype(term.dtype)
    out = {"loss": jnp.where(valid, term, 0), "counted": count(valid if smooth else valid & (violation > 0))}
    if metrics:
        mean = lambda d: lax.stop_gradient(jnp.where(valid, d, 0))
        out |= {"active": count(valid & (violation > 0)), "triplets": count(valid), "positive": mean(far),
                "negative": mean(near)}
    return out


def _all(rows, margin, swap, smooth, axis, comm, block, metrics):
    """The sums over all triplets of this shard's anchors: a sweep over positives, inside it one over negatives."""
    if comm == "gather":  # once for both sweeps
        keys, axis = dist.all_gather(rows, axis), None
    else:
        keys = rows
    block = block or max(8, math.isqrt(TILE // rows["x"].shape[0]))
    anchors = jax.tree.map(lambda x: x[None], rows)  # one row, that of all anchors: only their total is wanted
    tile = functools.partial(_positives, swap=swap, smooth=smooth, axis=axis, block=block, metrics=metrics)
    seen = sweep(tile, anchors, keys, {"negatives": keys, "margin": margin}, axis=axis, comm="ring", block=block)["sum"]
    return {k: x[0] for k, x in seen.items()}


def _positives(rows, keys, theta, swap, smooth, axis, block, metrics):
    anchors = {k: x[0] for k, x in rows.items()}
    each = {"x": keys["x"], "far": distance(keys["x"], anchors["x"]), "valid": pairs(keys, anchors)[0]}  # [p, a]
    tile = functools.partial(_negatives, swap=swap, smooth=smooth, metrics=metrics)
    seen = sweep(tile, each, theta["negatives"], {"anchors": anchors, "margin": theta["margin"]},
                 axis=axis, comm="ring", block=block)["sum"]
    return {"sum": {k: x[None] for k, x in seen.items()}}


def _negatives(rows, keys, theta, swap, smooth, metrics):
    anchors = theta["anchors"]
    near, (_, negative) = distance(anchors["x"], keys["x"]), pairs(anchors, keys)  # [a, n]
    swapped = swap and distance(rows["x"], keys["x"])[:, None]  # [p, 1, n]
    valid = rows["valid"][:, :, None] & negative
    terms = _terms(rows["far"][:, :, None], near, valid, theta["margin"], smooth, swapped, metrics)
    return {"sum": {k: x.sum(axis=1) for k, x in terms.items()}}  # [p, a, n] -> [p, n]


def _hardest(rows, axis, comm, block):
    """(f[b], f[b], bool[b]): d to the farthest positive and to the nearest negative, and whether an anchor has both."""
    meet = functools.partial(sweep, keys=rows, axis=axis, comm=comm, block=block)
    # A maximum has no gradient in a sweep: the first finds how far the hardest are, the second sums over those so far.
    extreme = meet(_extremes, rows=rows)["max"]
    seen = meet(_at_extremes, rows=rows | extreme)["sum"]
    mean = lambda k: seen[k] / jnp.maximum(seen[f"{k}s"], 1)
    return mean("far"), mean("near"), (seen["fars"] > 0) & (seen["nears"] > 0)


def _extremes(rows, keys, theta):
    squared, (positive, negative) = squared_distance(rows["x"], keys["x"]), pairs(rows, keys)
    return {"max": {"farthest": jnp.where(positive, squared, OUT), "nearest": jnp.where(negative, -squared, OUT)}}


def _at_extremes(rows, keys, theta):
    squared, (positive, negative) = squared_distance(rows["x"], keys["x"]), pairs(rows, keys)
    d, within = distance(rows["x"], keys["x"]), rounding(rows["x"], keys["x"])  # a number met twice may differ by this
    far = positive & (squared >= rows["farthest"][:, None] - within)
    near = negative & (-squared >= rows["nearest"][:, None] - within)
    return {"sum": {"far": jnp.where(far, d, 0), "fars": far.astype(d.dtype),
                    "near": jnp.where(near, d, 0), "nears": near.astype(d.dtype)}}
