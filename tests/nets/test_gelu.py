"""The exact GELU: values and derivatives against the standard library's erf, and inside a step on devices."""
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

from simclr_jax.nets import gelu

X = np.concatenate([np.linspace(-9, 9, 61), [0, -1e-4, 1e-4, 40, -40]])


@pytest.mark.parametrize("dtype, tolerance", [("float64", 1e-14), ("float32", 1e-6), ("bfloat16", 1e-2)])
def test_value_and_derivatives(dtype, tolerance):
    with jax.enable_x64(dtype == "float64"):
        x = jnp.asarray(X, dtype)
        at = np.asarray(x, np.float64)
        phi, bell = np.array([math.erfc(-v / 2 ** 0.5) / 2 for v in at]), np.exp(-at * at / 2) / math.sqrt(2 * math.pi)
        slope = jax.vmap(jax.grad(gelu.exact))
        curve = jax.vmap(jax.grad(jax.grad(gelu.exact)))
        wanted = at * phi, phi + at * bell, (2 - at * at) * bell
        for got, want in zip((gelu.exact(x), slope(x), curve(x)), wanted):
            assert got.dtype == x.dtype
            np.testing.assert_allclose(np.asarray(got, np.float64), want, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-6), ("bfloat16", 1e-2)])
def test_its_gradient_is_traced_where_rows_are_spread_over_devices(mesh, dtype, tolerance):
    def gradient(x):
        return jax.grad(lambda x: lax.pmean(jnp.sum(gelu.exact(x)), "data"))(x)
    run = jax.shard_map(gradient, mesh=mesh(2), in_specs=P("data"), out_specs=P("data"))
    x = jnp.asarray(X[:64], dtype)
    alone = jax.vmap(jax.grad(gelu.exact))(x) / 2
    got, want = (np.asarray(y, np.float32) for y in (jax.jit(run)(x), alone))
    np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance)
