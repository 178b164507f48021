"""InfoNCE: one key among negatives that come from the batch, from a queue or from sampling. MoCo, SimCSE, CPC."""
import jax
import jax.numpy as jnp
from jax import lax

from simclr_jax import dist
from simclr_jax.losses.sweep import OUT, dot, sweep, wide
from simclr_jax.losses.unit import unit


def info_nce(query, key, *, temperature, negatives=None, hard_negatives=None, hard_negative_weight=0.0,
             similarity="dot", normalize=True, axis=None, comm="gather", block=None, metrics=False):
    """Cross entropy of finding a query's key among negatives (van den Oord et al. 2018, arXiv:1807.03748, equation 4).

    With q_i and k_i the rows of query and key, s a similarity and N(i) the negatives of query i:

        loss = mean_i [ log( exp(s(q_i, k_i) / T) + sum_{n in N(i)} exp(s(q_i, n) / T) ) - s(q_i, k_i) / T ]

    One direction only; MoCo v3 and CLIP add the loss with the arguments exchanged.

    Args:
      query, key: float[b, D], this shard's rows; the positive of row i is key i. Any float dtype: everything is
        computed in f32 (in f64 for f64 input).
      temperature: T, a number or scalar array.
      negatives: where N(i) comes from.
        None: the other keys of the whole batch, of all shards (SimCSE, MoCo v3).
        float[K, D]: a queue, which all shards hold alike (He et al. 2020, arXiv:1911.05722, equation 1). No shard then
          needs another's rows.
        float[b, M, D]: each query's own (CPC). No shard needs another's rows.
      hard_negatives: float[b, D], one for each query, only with in-batch negatives. Those of the whole batch join the
        N(i) of every query (supervised SimCSE, Gao et al. 2021, arXiv:2104.08821, equation 5).
      hard_negative_weight: added to the logit of a query's own hard negative; number or scalar array.
      similarity: "dot", the inner product, or "mean", the inner product divided by D (CPC's released audio code, which
        has normalize=False and temperature=1).
      normalize: make rows of all arrays unit length first (squared norm clamped at 1e-12).
      axis: mesh axis whose shards hold the other rows of the batch; None if this is all of it.
      comm: how the other shards' keys are met: "gather" (one all-gather, O(B D) memory) or "ring" (O(b D)). Same value.
      block: negatives in a tile, for O(b * block) memory; tiles are computed again in the backward pass. A query's own
        negatives are walked through likewise. None: all at once where they are few, see `sweep`.
      metrics: also return {"accuracy", "entropy", "positive", "negative"} under `stop_gradient`: how often the key is
        nearer than all negatives, the entropy (nats) of the softmax over key and negatives, the mean similarity of
        keys and of negatives (cosine, if normalised); means over this shard's rows. The weight of hard negatives shows
        in the entropy only.

    For B rows in all, a shard multiplies O(b B D) in-batch, O(b K D) with a queue, O(b M D) with a query's own.

    Returns:
      f32[]: the mean over this shard's b rows; its `pmean` over `axis` is the loss of the global batch. With `metrics`,
      (f32[], {name: f32[]}).

    Raises:
      ValueError: shapes that do not fit, hard negatives beside other negatives than the batch's, an unknown similarity.

    >>> q = jnp.eye(4)
    >>> round(float(info_nce(q, q, temperature=1.0)), 4)  # log(e + 3) - 1: the key at 1, three negatives at 0
    0.7437
    >>> round(float(info_nce(q, q, negatives=jnp.zeros((5, 4)), temperature=1.0)), 4)  # log(e + 5) - 1
    1.0436
    """
    _check(query, key, negatives, hard_negatives, similarity)
    b, d = query.shape
    ready = unit if normalize else lambda x: x
    key = ready(key)
    query = wide(ready(query)) / (d if similarity == "mean" else 1)
    near = jnp.sum(query * wide(key), axis=1)  # [b], the similarity of the positives
    theta = {"scale": 1 / jnp.asarray(temperature, query.dtype)}
    positive = near * theta["scale"]

    def reduce(rows, keys, theta, axis=None):
        return sweep(_tile(metrics), rows, keys, theta, axis=axis, comm=comm, block=block, means=metrics)
    if negatives is None:
        ids, total = dist.rows(b, axis), b * dist.size(axis)
        count = total - 1
        rows, keys = {"query": query, "id": ids}, {"key": key, "id": ids}
        if hard_negatives is not None:
            # Beside the number of its query, -1 - that number says that a key is its hard negative.
            keys = {"key": jnp.concatenate([key, ready(hard_negatives)]), "id": jnp.concatenate([ids, -1 - ids])}
            theta["weight"] = jnp.asarray(hard_negative_weight, query.dtype)
            count += total
        seen = reduce(rows, keys, theta, axis)
    elif negatives.ndim == 2:
        # Typed as differing between shards, as the queries do, the queue and T get the sum of the shards' gradients.
        queue, theta = dist.varying((ready(negatives), theta), axis)
        count = len(queue)
        seen = reduce({"query": query}, {"key": queue}, theta)
    else:
        theta, count = dist.varying(theta, axis), negatives.shape[1]
        one = lambda q, own: reduce({"query": q[None]}, {"key": own}, theta)
        seen = jax.tree.map(lambda x: x[:, 0], jax.vmap(one)(query, ready(negatives)))

    each = jax.nn.softplus(seen["lse"]["negatives"] - positive)  # with no negatives at all: softplus(-inf) = 0
    loss = jnp.mean(each)
    if not metrics:
        return loss
    # Over negatives of mean logit m, a share p = exp(-loss) at the positive makes the entropy loss + (1 - p)(s - m).
    mean = seen["mean"]["negatives"]
    return loss, lax.stop_gradient({
        "accuracy": jnp.mean((near > seen["max"]["negatives"]).astype(near.dtype)),
        "entropy": jnp.mean(each - jnp.expm1(-each) * (positive - mean)),
        "positive": jnp.mean(near),
        "negative": jnp.mean(seen["sum"]["negatives"]) / max(count, 1),
    })


def _tile(metrics):
    def tile(rows, keys, theta):
        similarity = dot(rows["query"], keys["key"])  # [n, m]
        logit = similarity * theta["scale"]
        out = rows["id"][:, None] == keys["id"] if "id" in keys else False
        if "weight" in theta:
            logit = jnp.where(rows["id"][:, None] == -1 - keys["id"], logit + theta["weight"], logit)
        found = {"lse": {"negatives": jnp.where(out, OUT, logit)}}
        if metrics:
            similarity = lax.stop_gradient(similarity)
            found["sum"] = {"negatives": jnp.where(out, 0, similarity)}
            found["max"] = {"negatives": jnp.where(out, OUT, similarity)}
        return found
    return tile


def _check(query, key, negatives, hard_negatives, similarity):
    if query.shape != key.shape or query.ndim != 2:
        raise ValueError(f"info_nce wants query and key of one shape [b, D], got {query.shape} and {key.shape}")
    b, d = query.shape
    if negatives is not None and (negatives.ndim not in (2, 3) or negatives.shape[-1] != d
                                  or negatives.ndim == 3 and negatives.shape[0] != b):
        raise ValueError(f"info_nce wants negatives [K, {d}] or [{b}, M, {d}], got {negatives.shape}")
    if hard_negatives is not None and negatives is not None:
        raise ValueError("info_nce: hard_negatives go with in-batch negatives, got negatives too")
    if hard_negatives is not None and hard_negatives.shape != (b, d):
        raise ValueError(f"info_nce wants hard_negatives [{b}, {d}], got {hard_negatives.shape}")
    if similarity not in ("dot", "mean"):
        raise ValueError(f"info_nce: similarity={similarity!r}, wanted 'dot' or 'mean'")
