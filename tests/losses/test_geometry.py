"""Alignment and uniformity: closed forms, limits and what is refused."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from simclr_jax import dist
from simclr_jax.losses.geometry import alignment, uniformity


def rows(b=16, d=6, seed=0):
    return jax.random.normal(jax.random.key(seed), (b, d))


def test_closed_forms():
    z = rows()
    moved = z + jnp.array([3., 4., 0, 0, 0, 0])
    found = jax.jit(lambda z: (alignment(z, 2 * z), alignment(z, -z, alpha=3),
                               alignment(z, moved, alpha=1, normalize=False), uniformity(jnp.ones((4, 3))),
                               uniformity(jnp.eye(5), t=3)))(z)
    np.testing.assert_allclose(found, [0, 8, 5, 0, -6], rtol=1e-5, atol=1e-6)


def test_rows_spread_at_random_reach_the_papers_limit():
    """In many dimensions nearly all squared distances are 2."""
    assert abs(jax.jit(uniformity)(rows(64, 2048)) / -4 - 1) < 0.02


def test_uniformity_is_the_same_on_every_shard():
    mesh = dist.make_mesh({"data": 4}, jax.devices()[:4])
    got = jax.jit(jax.shard_map(lambda z: uniformity(z, axis="data")[None], mesh=mesh, in_specs=P("data"),
                                out_specs=P("data")))(rows())
    np.testing.assert_allclose(got, np.full(4, jax.jit(uniformity)(rows())), rtol=1e-6)


@pytest.mark.parametrize("how", [{}, {"block": 3}], ids=str)
def test_rows_far_apart_do_not_underflow(how):
    z = 100 * jnp.arange(8, dtype=jnp.float32)[:, None]
    value, g = jax.jit(jax.value_and_grad(lambda z: uniformity(z, normalize=False, **how)))(z)
    np.testing.assert_allclose(value, -2e4 + np.log(14 / 56), rtol=1e-6)  # 14 ordered pairs of neighbours, 100 apart
    assert np.isfinite(g).all()


def test_zero_and_equal_rows_stay_finite():
    z = rows()
    of_pairs = jax.jit(jax.value_and_grad(lambda x, y, alpha: alignment(x, y, alpha=alpha), argnums=(0, 1, 2)))
    of_rows = jax.jit(jax.value_and_grad(uniformity))
    for x in (jnp.zeros_like(z), jnp.ones_like(z), z.at[0].set(0)):
        for found in (of_rows(x), *(of_pairs(x, y, alpha) for alpha in (0.5, 1.0, 2.0) for y in (z, x))):
            assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))


def test_refusals():
    with pytest.raises(ValueError, match="one shape"):
        alignment(jnp.ones((4, 2)), jnp.ones((4, 3)))
    with pytest.raises(ValueError, match="two rows or more"):
        uniformity(jnp.ones((1, 3)))
    with pytest.raises(ValueError, match="comm='all'"):
        uniformity(jnp.ones((4, 3)), comm="all")
