"""Classic metric-learning losses: rows with labels, pulled together and pushed apart by their distances.

Every row meets every other row of the whole batch. Rows of one label are positives of each other, all others are
negatives. A label below 0 means unlabelled: such a row has no positives and is a negative of everyone.
"""
import functools

import jax
import jax.numpy as jnp
from jax import lax

from simclr_jax import dist
from simclr_jax.losses.distance import distance, labelled, numbers, pair_means, pair_sums, pairs, squared_distance
from simclr_jax.losses.mean import mean_over
from simclr_jax.losses.sweep import OUT, check_comm, dot, sweep, wide
from simclr_jax.losses.unit import unit


def contrastive(embeddings, labels, *, pos_margin=0.0, neg_margin=1.0, squared=False, normalize=True, axis=None,
                comm="gather", block=None, metrics=False):
    """Contrastive loss of pairs (Hadsell et al. 2006, "Dimensionality reduction by learning an invariant mapping").

    With d the Euclidean distance of two rows of the whole batch, and ordered pairs of different rows:

        loss = mean over positive pairs of relu(d - pos_margin) + mean over negative pairs of relu(neg_margin - d)

    Each mean is over the pairs of its kind whose term is not zero, as is usual today: pairs that are where they should
    be do not dilute the others. The paper sums over pairs. `squared` gives the terms of its equation 4, relu(.)^2 / 2,
    there with pos_margin 0; the means stay.

    Args:
      embeddings: float[b, D], this shard's rows. Any float dtype; distances and all after them are computed in f32 (f64
        for f64).
      labels: int[b], below 0: unlabelled, no positives and a negative of everyone.
      pos_margin, neg_margin: number or scalar array, differentiated if traced.
      squared: half the squares of both terms.
      normalize: make rows unit length first (squared norm clamped at 1e-12), so that d is in [0, 2].
      axis, comm, block: how other rows are met, as in `nt_xent`; O(b * block) memory and O(b B D) arithmetic for b rows
        here and B in all.
      metrics: also return {"positive", "negative"} under `stop_gradient`: the mean distance of all positive and of all
        negative pairs.

    Returns:
      f32[]: this shard's part; its `pmean` over `axis` is the loss of the global batch. A mean over no pairs is 0. With
      `metrics`, (f32[], {name: f32[]}).

    Raises:
      ValueError: embeddings are not [b, D], labels not integers [b], or comm is unknown.

    >>> x = jnp.array([[1., 0], [1, 0], [0, 1]])
    >>> round(float(contrastive(x, jnp.array([0, 0, 1]), neg_margin=2.0)), 4)  # positives at 0, negatives 2 - sqrt(2)
    0.5858
    """
    rows = labelled("contrastive", embeddings, labels, normalize, axis, comm)
    theta = numbers(rows, pos_margin=pos_margin, neg_margin=neg_margin)
    seen = sweep(functools.partial(_contrastive, squared=squared, metrics=metrics), rows, rows, theta,
                 axis=axis, comm=comm, block=block)["sum"]
    total = {k: x.sum() for k, x in seen.items()}
    loss = mean_over(total["pull"], total["pulled"], axis) + mean_over(total["push"], total["pushed"], axis)
    return (loss, pair_means(total, axis)) if metrics else loss


def _contrastive(rows, keys, theta, squared, metrics):
    d, (positive, negative) = distance(rows["x"], keys["x"]), pairs(rows, keys)
    pull = jnp.where(positive, jax.nn.relu(d - theta["pos_margin"]), 0)
    push = jnp.where(negative, jax.nn.relu(theta["neg_margin"] - d), 0)
    term = (lambda x: x * x / 2) if squared else lambda x: x
    return {"sum": {"pull": term(pull), "pulled": (pull > 0).astype(d.dtype),
                    "push": term(push), "pushed": (push > 0).astype(d.dtype),
                    **(pair_sums(d, positive, negative) if metrics else {})}}


def n_pair(anchor, positive, *, temperature=1.0, l2=0.0, normalize=True, axis=None, comm="gather", block=None,
           metrics=False):
    """Multi-class N-pair loss (Sohn 2016, "Improved deep metric learning with multi-class N-pair loss", equation 7).

    One pair (a_i, p_i) of each class; the positives of the others are the negatives:

        loss = 1/B sum_i log(1 + sum_{j != i} exp((a_i.p_j - a_i.p_i) / T)) + l2/B sum_i (|a_i|^2 + |p_i|^2)

    The paper has T = 1 and, instead of normalising, holds rows small by l2: that is normalize=False with an l2 above 0.

    Args:
      anchor, positive: float[b, D], this shard's rows, row i of both from one class and no class twice in the batch.
        Any float dtype; similarities and all after them are computed in f32 (f64 for f64).
      temperature: T, a number or scalar array.
      l2: weight of the squared norms of the rows as given, before any normalising.
      normalize: make rows unit length first (squared norm clamped at 1e-12).
      axis, comm, block: how other rows are met, as in `nt_xent`; O(b * block) memory and O(b B D) arithmetic for b rows
        here and B in all.
      metrics: also return {"accuracy", "entropy", "positive", "negative"} as `nt_xent` defines them, of the b anchors.

    Returns:
      f32[]: the mean over this shard's anchors; its `pmean` over `axis` is the loss of the global batch. With
      `metrics`, (f32[], {name: f32[]}).

    Raises:
      ValueError: the arrays are not of one shape [b, D], or comm is unknown.

    >>> round(float(n_pair(jnp.eye(4), jnp.eye(4))), 4)  # log(1 + 3 exp(0 - 1))
    0.7437
    """
    if anchor.shape != positive.shape or anchor.ndim != 2:
        raise ValueError(f"n_pair wants two arrays of one shape [b, D], got {anchor.shape} and {positive.shape}")
    check_comm(comm)
    norms = l2 * jnp.mean(jnp.sum(wide(anchor) ** 2 + wide(positive) ** 2, axis=1))
    a, p = (unit(x) if normalize else wide(x) for x in (anchor, positive))
    b = a.shape[0]
    ids = dist.rows(b, axis)
    scale = 1 / jnp.asarray(temperature, a.dtype)
    seen = sweep(functools.partial(_n_pair, metrics=metrics), {"x": a, "id": ids}, {"x": p, "id": ids},
                 {"scale": scale}, axis=axis, comm=comm, block=block, means=metrics)
    lse, own = seen["lse"]["all"], jnp.sum(a * p, axis=1) * scale
    loss = jnp.mean(lse - own) + norms
    if not metrics:
        return loss
    lse, own, scale = lax.stop_gradient((lse, own, scale))
    rivals = max(b * dist.size(axis) - 1, 1)
    return loss, {
        "accuracy": jnp.mean((own > seen["max"]["rival"]).astype(jnp.float32)),
        "entropy": jnp.mean(lse - seen["mean"]["all"]),
        "positive": jnp.mean(own) / scale,
        "negative": jnp.mean(seen["sum"]["rivals"]) / rivals / scale,
    }


def _n_pair(rows, keys, theta, metrics):
    s = dot(rows["x"], keys["x"]) * theta["scale"]
    if not metrics:
        return {"lse": {"all": s}}
    rival, held = rows["id"][:, None] != keys["id"], lax.stop_gradient(s)
    return {"lse": {"all": s}, "sum": {"rivals": jnp.where(rival, held, 0)},
            "max": {"rival": jnp.where(rival, held, OUT)}}


def lifted_structure(embeddings, labels, *, pos_margin=0.0, neg_margin=1.0, generalized=False, normalize=True,
                     axis=None, comm="gather", block=None, metrics=False):
    """Lifted structured loss: each positive pair against all negatives of both its rows.

    With d the Euclidean distance, P(i) and N(i) the positives and negatives of row i (Oh Song et al. 2016,
    arXiv:1511.06452, equation 4):

        J_ij = log(sum_{k in N(i)} exp(neg_margin - d_ik) + sum_{k in N(j)} exp(neg_margin - d_jk)) + d_ij - pos_margin
        loss = mean over positive pairs of relu(J_ij)^2 / 2

    With `generalized`, all positives of an anchor take part at once (Hermans et al. 2017, arXiv:1703.07737, section 2):

        loss = mean over anchors of relu(log sum_{p in P(i)} exp(d_ip - pos_margin)
                                         + log sum_{n in N(i)} exp(neg_margin - d_in))

    The papers have pos_margin 0. Pairs or anchors without a negative count as 0, anchors without a positive not at all.
    O(b * block) memory and O(b B D) arithmetic for b rows here and B in all; the first formula goes over all pairs
    twice, as J_ij needs the sum of j.

    Args:
      embeddings, labels: float[b, D], int[b], this shard's, as in `contrastive`; so are normalize, axis, comm, block.
      pos_margin, neg_margin: number or scalar array, differentiated if traced.
      generalized: the second formula.
      metrics: also return {"positive", "negative"} under `stop_gradient`: the mean distance of all positive and of all
        negative pairs.

    Returns:
      f32[]: this shard's part; its `pmean` over `axis` is the loss of the global batch. With `metrics`,
      (f32[], {name: f32[]}).

    Raises:
      ValueError: embeddings are not [b, D], labels not integers [b], or comm is unknown.

    >>> x = jnp.array([[1., 0], [1, 0], [-1, 0]])
    >>> round(float(lifted_structure(x, jnp.array([0, 0, 1]), neg_margin=2.0)), 4)  # J = log(2 exp(2 - 2)) + 0
    0.2402
    """
    rows = labelled("lifted_structure", embeddings, labels, normalize, axis, comm)
    theta = numbers(rows, pos_margin=pos_margin, neg_margin=neg_margin)
    meet = functools.partial(sweep, axis=axis, comm=comm, block=block)
    seen = meet(functools.partial(_lifted_lse, generalized=generalized, metrics=metrics), rows, rows, theta)
    negatives = seen["lse"]["negatives"]
    if generalized:
        positives = seen["lse"]["positives"]
        anchors, full = positives > OUT, (positives > OUT) & (negatives > OUT)
        total = jnp.where(full, jax.nn.relu(jnp.where(full, positives, 0) + jnp.where(full, negatives, 0)), 0)
        loss = mean_over(total.sum(), anchors.astype(total.dtype).sum(), axis)
    else:
        # Of rows without negatives a finite stand-in for log 0: differences of infinities would make gradients NaN.
        none = jnp.finfo(negatives.dtype).min / 4
        rows = rows | {"negatives": jnp.where(negatives > OUT, negatives, none)}
        pair = meet(_lifted_pairs, rows, rows, theta)["sum"]
        loss = mean_over(pair["loss"].sum(), pair["pairs"].sum(), axis)
    return (loss, pair_means({k: x.sum() for k, x in seen["sum"].items()}, axis)) if metrics else loss


def _lifted_lse(rows, keys, theta, generalized, metrics):
    d, (positive, negative) = distance(rows["x"], keys["x"]), pairs(rows, keys)
    lse = {"negatives": jnp.where(negative, theta["neg_margin"] - d, OUT)}
    if generalized:
        lse["positives"] = jnp.where(positive, d - theta["pos_margin"], OUT)
    return {"lse": lse} | ({"sum": pair_sums(d, positive, negative)} if metrics else {})


def _lifted_pairs(rows, keys, theta):
    d, (positive, _) = distance(rows["x"], keys["x"]), pairs(rows, keys)
    j = jax.nn.relu(jnp.logaddexp(rows["negatives"][:, None], keys["negatives"]) + d - theta["pos_margin"])
    return {"sum": {"loss": jnp.where(positive, j * j / 2, 0), "pairs": positive.astype(d.dtype)}}


def soft_nearest_neighbor(embeddings, labels, *, temperature, normalize=True, axis=None, comm="gather", block=None,
                          metrics=False):
    """Soft nearest neighbour loss (Salakhutdinov & Hinton 2007; Frosst et al. 2019, arXiv:1902.01889, equation 1).

    Minus the log of the chance that a neighbour, drawn by its squared Euclidean distance, has the anchor's label:

        loss = - mean over anchors that have a positive of
               log( sum_{p in P(i)} exp(-d_ip^2 / T) / sum_{k != i} exp(-d_ik^2 / T) )

    The papers measure rows as they are: normalize=False. With unit rows d^2 is 2 - 2 cos. O(b * block) memory and
    O(b B D) arithmetic for b rows here and B in all.

    Args:
      embeddings, labels: float[b, D], int[b], this shard's, as in `contrastive`; so are normalize, axis, comm, block.
      temperature: T, a number or scalar array, differentiated if traced.
      metrics: also return {"accuracy", "entropy", "positive", "negative"} under `stop_gradient`: how often the nearest
        other row has the anchor's label and the entropy (nats) of the softmax over the other rows, both over anchors
        that have a positive; the mean distance d of all positive and of all negative pairs.

    Returns:
      f32[]: this shard's part; its `pmean` over `axis` is the loss of the global batch, 0 if there are no positives.
      With `metrics`, (f32[], {name: f32[]}).

    Raises:
      ValueError: embeddings are not [b, D], labels not integers [b], or comm is unknown.

    >>> x = jnp.array([[1., 0], [1, 0], [0, 1], [0, 1]])
    >>> loss = soft_nearest_neighbor(x, jnp.array([0, 0, 1, 1]), temperature=1.0)
    >>> round(float(loss), 4)  # -log(1 / (1 + 2 exp(-2))): the positive at 0, two negatives at d^2 = 2
    0.2395
    """
    rows = labelled("soft_nearest_neighbor", embeddings, labels, normalize, axis, comm)
    seen = sweep(functools.partial(_soft_nearest, metrics=metrics), rows, rows, numbers(rows, temperature=temperature),
                 axis=axis, comm=comm, block=block, means=metrics)
    anchors = seen["lse"]["positives"] > OUT
    every, positives = (jnp.where(anchors, seen["lse"][k], 0) for k in ("all", "positives"))
    mean = lambda x: mean_over(jnp.where(anchors, x, 0).sum(), anchors.astype(every.dtype).sum(), axis)
    loss = mean(every - positives)
    if not metrics:
        return loss
    return loss, {
        "accuracy": mean((seen["max"]["positive"] > seen["max"]["negative"]).astype(every.dtype)),
        "entropy": mean(lax.stop_gradient(every) - seen["mean"]["all"]),
        **pair_means({k: x.sum() for k, x in seen["sum"].items()}, axis),
    }


def _soft_nearest(rows, keys, theta, metrics):
    squared, (positive, negative) = squared_distance(rows["x"], keys["x"]), pairs(rows, keys)
    s = -squared / theta["temperature"]
    out = {"lse": {"all": jnp.where(positive | negative, s, OUT), "positives": jnp.where(positive, s, OUT)}}
    if metrics:
        d = distance(*lax.stop_gradient((rows["x"], keys["x"])))
        out["sum"] = pair_sums(d, positive, negative)
        out["max"] = {"positive": jnp.where(positive, -squared, OUT), "negative": jnp.where(negative, -squared, OUT)}
    return out
