"""Two views of a batch side by side: what the losses over SimCLR's positives and negatives share."""
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from simclr_jax import dist
from simclr_jax.losses.others import others
from simclr_jax.losses.sweep import check_comm, wide
from simclr_jax.losses.unit import unit


class Views(NamedTuple):
    z: jax.Array  # f32[2b, D], view one then view two
    similarity: jax.Array  # f32[b], of the two views of an example
    scale: jax.Array  # 1 / temperature
    how: dict[str, Any]  # axis, comm, block, metrics

    @property
    def positive(self):
        """f32[2b], the logit of a row with its other view."""
        return jnp.tile(self.similarity * self.scale, 2)

    def negatives(self, sharpness=1.0):
        """{"lse": f32[2b], ...} of a row with the rows of other examples, logits times `sharpness`: see `others`."""
        return others(self.z, self.scale * sharpness, **self.how)


def stack(name, z1, z2, temperature, normalize, axis, comm, block, metrics) -> Views:
    if z1.shape != z2.shape or z1.ndim != 2:
        raise ValueError(f"{name} wants two arrays of one shape [b, D], got {z1.shape} and {z2.shape}")
    check_comm(comm)
    z1, z2 = (unit(x) if normalize else wide(x) for x in (z1, z2))
    return Views(jnp.concatenate([z1, z2]), jnp.sum(z1 * z2, axis=1), 1 / jnp.asarray(temperature, z1.dtype),
                 {"axis": axis, "comm": comm, "block": block, "metrics": metrics})


def geometry(views, negatives):
    """How the rows lie, without gradient: {"accuracy", "positive", "negative", "alignment", "uniformity"}.

    accuracy: is the other view the nearest; positive, negative: mean similarities; alignment: mean |z1 - z2|^2;
    uniformity: log mean exp(-2 |z_i - z_k|^2) over rows of different examples (Wang and Isola 2020, arXiv:2005.10242,
    with their alpha = t = 2), the same on all shards.
    """
    z, similarity, top, close = lax.stop_gradient((views.z, views.similarity, negatives["max"] / views.scale,
                                                   negatives["close"]))
    axis = views.how["axis"]
    rivals = max(len(z) * dist.size(axis) - 2, 1)
    squares = jnp.sum(z * z)
    every = jnp.sum(z.sum(axis=0) * dist.psum(z.sum(axis=0), axis)) - squares  # by the sum of all rows, no matrix
    return {"accuracy": jnp.mean((jnp.tile(similarity, 2) > top).astype(jnp.float32)),
            "positive": jnp.mean(similarity),
            "negative": (every - 2 * jnp.sum(similarity)) / rivals / len(z),
            "alignment": squares / len(similarity) - 2 * jnp.mean(similarity),
            "uniformity": jnp.log(dist.pmean(jnp.mean(close) / rivals, axis))}


def entropy(positive, lse, negatives):
    """{"entropy"}: mean entropy (nats) of the softmax over the positive and the negatives, whose log-sum-exp is lse."""
    positive, lse, mean = lax.stop_gradient((positive, lse, negatives["mean"]))
    p = jnp.exp(positive - lse)
    return {"entropy": jnp.mean(lse - p * positive - jnp.where(p < 1, (1 - p) * mean, 0))}
