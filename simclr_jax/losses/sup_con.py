"""SupCon: several positives for one anchor, its other views and all views of the examples of its class."""
import jax.numpy as jnp
from jax import lax

from simclr_jax import dist
from simclr_jax.losses.mean import mean_over
from simclr_jax.losses.sweep import OUT, dot, sweep
from simclr_jax.losses.unit import unit


def sup_con(features, labels=None, *, temperature, base_temperature=None, contrast="all", normalize=True, axis=None,
            comm="gather", block=None, metrics=False):
    """Supervised contrastive loss (Khosla et al. 2020, arXiv:2004.11362, equation 2, L_out).

    With z_i the views of all examples of the whole batch, A(i) all of them but i, and P(i) those of A(i) that have i's
    label or are of i's example:

        loss = mean_i T/T_base 1/|P(i)| sum_{p in P(i)} [ log sum_{a in A(i)} exp(z_i.z_a / T) - z_i.z_p / T ]

    Args:
      features: float[b, V, D], V views of each of this shard's examples. Any float dtype: everything is computed in f32
        (in f64 for f64 input).
      labels: int[b], the examples' classes; below 0 is unlabelled, with only its own views as positives. None: all are
        unlabelled, which for V = 2 is NT-Xent.
      temperature: T, a number or scalar array.
      base_temperature: T_base; None is T itself, a factor of 1. The released code has 0.07 for both.
      contrast: "all", every view is an anchor; "one", the first view of each example is, against all views.
      normalize: make features unit length first (squared norm clamped at 1e-12).
      axis: mesh axis whose shards hold the other examples of the batch; None if this is all of it.
      comm: how the other shards' views are met: "gather" (one all-gather, O(B V D) memory) or "ring" (O(b V D)). Same
        value.
      block: candidates in a tile, for O(b V * block) memory; tiles are computed again in the backward pass. None: all
        at once where they are few, see `sweep`.
      metrics: also return {"accuracy", "entropy", "positive", "negative"} under `stop_gradient`: how often the nearest
        of A(i) is in P(i) and the entropy (nats) of the softmax over A(i), both over anchors that have a positive; the
        mean similarity (cosine, if normalised) over all pairs of anchor and positive, and of anchor and negative.

    For B examples in all, a shard multiplies O(b V * B V * D), with contrast="one" a V-th of that.

    Returns:
      f32[]: this shard's part of the mean over all anchors that have a positive (with one view not all need have): its
      `pmean` over `axis` is the loss of the global batch, 0 if there is none. With `metrics`, (f32[], {name: f32[]}).

    Raises:
      ValueError: shapes that do not fit, labels that are no integers, an unknown contrast.

    >>> z = jnp.eye(2)[:, None].repeat(2, axis=1)  # two examples, each with two equal views
    >>> round(float(sup_con(z, temperature=1.0)), 4)  # log(e + 2) - 1: the positive at 1, two negatives at 0
    0.5514
    >>> round(float(sup_con(z, jnp.array([7, 7]), temperature=1.0)), 4)  # log(e + 2) - (1 + 0 + 0)/3: three positives
    1.2181
    """
    if features.ndim != 3:
        raise ValueError(f"sup_con wants features [b, V, D], got {features.shape}")
    if contrast not in ("all", "one"):
        raise ValueError(f"sup_con: contrast={contrast!r}, wanted 'all' or 'one'")
    b, views, d = features.shape
    ids = dist.rows(b, axis)
    labels = ids if labels is None else classes("sup_con", labels, ids)
    z = unit(features) if normalize else features
    who = (ids[:, None] * views + jnp.arange(views)).astype(ids.dtype)  # [b, V], its number among all views
    every = {"z": z, "id": who, "label": jnp.broadcast_to(labels[:, None], who.shape)}
    flat = lambda n: {k: x[:, :n].reshape(b * n, *x.shape[2:]) for k, x in every.items()}
    scale = 1 / jnp.asarray(temperature, jnp.promote_types(z.dtype, jnp.float32))
    each, has, report = to_positives(flat(views if contrast == "all" else 1), flat(views), scale, own=False, axis=axis,
                                     comm=comm, block=block, metrics=metrics)
    loss = _mean(each, has, axis)
    if base_temperature is not None:
        loss = loss / (scale * base_temperature)
    return (loss, report) if metrics else loss


def to_positives(rows, keys, scale, *, own, axis, comm, block, metrics):
    """Cross entropy of a row's softmax over candidates against equal shares for its positives, those of its label.

    Args:
      rows, keys: {"z": float[n, D], "label": int[n], "id": int[n]}, this shard's rows and candidates.
      scale: f32[], what similarities are multiplied by.
      own: what the candidate of a row's own id is: True, a positive whatever its label; False, no candidate.
      axis, comm, block: as in `sweep`.

    Returns:
      f32[n], which is 0 for rows without a positive; bool[n], which rows have one; metrics as in `sup_con`, {} unless
      asked for.
    """
    def tile(rows, keys, theta):
        similarity = dot(rows["z"], keys["z"])  # [n, m]
        same, alike = (rows[k][:, None] == keys[k] for k in ("id", "label"))
        candidate, positive = (True, alike | same) if own else (~same, alike & ~same)
        found = {"lse": {"all": jnp.where(candidate, similarity * theta["scale"], OUT)},
                 "sum": {"positive": jnp.where(positive, similarity, 0),
                         "positives": positive.astype(similarity.dtype)}}
        if metrics:
            similarity, negative = lax.stop_gradient(similarity), candidate & ~positive
            found["sum"] |= {"negative": jnp.where(negative, similarity, 0),
                             "negatives": negative.astype(similarity.dtype)}
            found["max"] = {"positive": jnp.where(positive, similarity, OUT),
                            "negative": jnp.where(negative, similarity, OUT)}
        return found

    seen = sweep(tile, rows, keys, {"scale": scale}, axis=axis, comm=comm, block=block, means=metrics)
    total, lse = seen["sum"], seen["lse"]["all"]
    count = lax.stop_gradient(total["positives"])
    has = count > 0
    each = jnp.where(has, lse - scale * total["positive"] / jnp.maximum(count, 1), 0)
    if not metrics:
        return each, has, {}
    hit = seen["max"]["positive"] > seen["max"]["negative"]
    return each, has, lax.stop_gradient({
        "accuracy": _mean(hit.astype(each.dtype), has, axis),
        "entropy": _mean(jnp.where(has, lse - seen["mean"]["all"], 0), has, axis),
        "positive": _mean(total["positive"], total["positives"], axis),
        "negative": _mean(total["negative"], total["negatives"], axis),
    })


def classes(loss, labels, ids):
    """Labels in which every unlabelled example (below 0) is a class of its own."""
    if labels.shape != ids.shape or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(f"{loss} wants labels int[{len(ids)}], got {labels.dtype}{list(labels.shape)}")
    return jnp.where(labels < 0, -1 - ids, labels)


def _mean(x, count, axis):
    return mean_over(x.sum(), count.astype(x.dtype).sum(), axis)
