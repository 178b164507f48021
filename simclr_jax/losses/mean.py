"""The mean over what is counted on all shards, when their counts differ."""
import jax.numpy as jnp
from jax import lax

from simclr_jax import dist


def mean_over(total, count, axis):
    """This shard's part of total / count of the global batch, both f32[]: the `pmean` of it is the whole. 0 / 0 is 0."""
    number = dist.pmean(lax.stop_gradient(count), axis)
    return total / jnp.where(number > 0, number, 1)
