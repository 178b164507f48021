"""What the compiler sets aside for a loss and its gradient: no matrix, and in a ring no array of the whole batch."""
import functools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec as P

from simclr_jax import dist
from simclr_jax.losses import clip, info_nce, nt_xent, siglip

LOSSES = {"nt_xent": functools.partial(nt_xent, temperature=0.1), "clip": functools.partial(clip, scale=10.0),
          "siglip": functools.partial(siglip, scale=10.0, bias=-10.0),
          "info_nce": functools.partial(info_nce, temperature=0.1)}
D = 64


def temporary(name, devices, rows, **how):
    """Bytes a device needs beside arguments and results, `rows` rows to each device, forward and backward."""
    mesh = dist.make_mesh({"data": devices}, jax.devices()[:devices])

    def shard(x, y):
        return jax.grad(lambda x, y: dist.pmean(LOSSES[name](x, y, axis="data", **how), "data"), argnums=(0, 1))(x, y)
    fn = jax.jit(jax.shard_map(shard, mesh=mesh, in_specs=P("data"), out_specs=P("data")))
    x = jax.ShapeDtypeStruct((devices * rows, D), jnp.float32, sharding=NamedSharding(mesh, P("data")))
    return fn.lower(x, x).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.slow
@pytest.mark.parametrize("name", LOSSES)
def test_a_rings_memory_does_not_grow_with_the_devices(name):
    ring = [temporary(name, n, 256, comm="ring", block=64) for n in (3, 8)]
    gather = [temporary(name, n, 256, comm="gather", block=64) for n in (3, 8)]
    assert ring[1] < 1.05 * ring[0]
    assert gather[1] - gather[0] > 5 * 256 * D * 4 * 0.9  # the embeddings of five shards more


@pytest.mark.parametrize("name", ["nt_xent", *(pytest.param(n, marks=pytest.mark.slow) for n in LOSSES if n != "nt_xent")])
def test_memory_grows_with_the_rows_and_not_with_their_square(name):
    small, large = (temporary(name, 1, n, block=64) for n in (512, 2048))
    assert large < 4.5 * small and large < 4 * 2048 ** 2  # a matrix of f32 would be 4 n^2
