"""Rows with labels: who is whose positive, and the Euclidean distances of all to all."""
import jax.numpy as jnp
from jax import lax

from simclr_jax import dist
from simclr_jax.losses.mean import mean_over
from simclr_jax.losses.sweep import check_comm, dot, wide
from simclr_jax.losses.unit import unit


def labelled(name, embeddings, labels, normalize, axis, comm):
    """{"x": f32[b, D], "label": int[b], "id": i32[b]}: this shard's rows, and who each is among all rows."""
    embeddings, labels = jnp.asarray(embeddings), jnp.asarray(labels)
    if embeddings.ndim != 2 or labels.shape != embeddings.shape[:1] or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(f"{name} wants embeddings [b, D] and integer labels [b], got {embeddings.shape} and "
                         f"{labels.dtype}{list(labels.shape)}")
    check_comm(comm)
    x = unit(embeddings) if normalize else wide(embeddings)
    return {"x": x, "label": labels, "id": dist.rows(x.shape[0], axis)}


def pairs(rows, keys):
    """(bool[n, m], bool[n, m]): which keys are a row's positives and which its negatives; neither is the row itself."""
    other = rows["id"][:, None] != keys["id"]
    same = (rows["label"][:, None] == keys["label"]) & (rows["label"][:, None] >= 0)
    return other & same, other & ~same


def squared_distance(x, y):
    """f32[n, m], the squared Euclidean distances of x: f32[n, D] and y: f32[m, D].

    |x|^2 + |y|^2 - 2 x.y is one matrix product; differences would be [n, m, D] and not on the matrix units. The price
    is an error of a few eps (|x|^2 + |y|^2). Of unit rows in f32, the distance and its gradient have a relative error
    of about 1e-6 at distance 1, 1e-4 at 0.1 and 1e-2 at 0.01 (worst of 256 pairs on a CPU, D up to 2048). Rows that
    near are together already; of other labels, they are pushed in about the right direction all the same.
    """
    return jnp.maximum(_norms(x, y) - 2 * dot(x, y), 0)


def distance(x, y):
    """f32[n, m], the Euclidean distances. What rounding cannot tell from 0 is 0, without gradient.

    So copies of a row are at distance 0, not at the root of a rounding error, and the root meets no 0. Of unit rows in
    f32 that is a distance below 0.0028.
    """
    squared = squared_distance(x, y)
    apart = squared > rounding(x, y)
    return jnp.where(apart, jnp.sqrt(jnp.where(apart, squared, 1)), 0)


def rounding(x, y):
    """f32[n, m], a bound of the error of `squared_distance`."""
    return 32 * jnp.finfo(x.dtype).eps * lax.stop_gradient(_norms(x, y))


def _norms(x, y):
    return jnp.sum(x * x, axis=1)[:, None] + jnp.sum(y * y, axis=1)


def numbers(rows, **values):
    """Hyperparameters as arrays of the rows' dtype, so that they are differentiated."""
    return {k: jnp.asarray(x, rows["x"].dtype) for k, x in values.items()}


def pair_sums(d, positive, negative):
    """What a sweep sums for `pair_means`: distances of both kinds of pairs, and how many there are; no gradient."""
    d = lax.stop_gradient(d)
    return {"positive": jnp.where(positive, d, 0), "positives": positive.astype(d.dtype),
            "negative": jnp.where(negative, d, 0), "negatives": negative.astype(d.dtype)}


def pair_means(total, axis):
    """{"positive", "negative"}: the mean distance of each kind of pairs, this shard's part."""
    return {k: mean_over(total[k], total[f"{k}s"], axis) for k in ("positive", "negative")}
