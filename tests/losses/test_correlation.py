"""Barlow Twins and VICReg: numbers of lightly's code, and what is refused."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from oracle import cases
from simclr_jax.losses import barlow_twins, spread, vicreg


@pytest.mark.parametrize("case", range(4))
def test_equals_lightly(case):
    p, c = cases("lightly_vicreg_barlow")[case]
    if p["kind"] == "VICReg":
        loss = functools.partial(vicreg, invariance=p["lambda_param"], variance=p["mu_param"], covariance=p["nu_param"],
                                 eps=p["eps"])
    else:
        loss = functools.partial(barlow_twins, off_diagonal=p["lambda_param"])
    with jax.enable_x64(True):
        a, b = (jnp.asarray(c[k], jnp.float64) for k in ("z_a", "z_b"))
        value, grads = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(a, b)
        np.testing.assert_allclose(value, c["out_loss_f64"], rtol=1e-9)
        for got, k in zip(grads, ("grad_z_a_f64", "grad_z_b_f64")):
            np.testing.assert_allclose(got, c[k], rtol=1e-6, atol=1e-10)


def test_metrics_are_the_terms():
    a, b = jax.random.normal(jax.random.key(0), (2, 16, 4))
    loss, terms = vicreg(a, b, metrics=True)
    np.testing.assert_allclose(loss, 25 * terms["invariance"] + 25 * terms["variance"] + terms["covariance"], rtol=1e-6)
    assert abs(barlow_twins(a, 2 * a + 1, metrics=True)[1]["diagonal"] - 1) < 1e-4


def test_spread_of_even_and_equal_rows():
    assert abs(spread(jax.random.normal(jax.random.key(0), (512, 64))) - 1) < 0.02
    value, grad = jax.value_and_grad(spread)(jnp.ones((4, 3)))
    assert value < 1e-6 and np.isfinite(grad).all()


def test_refusals():
    with pytest.raises(ValueError, match="barlow_twins wants two arrays of one shape"):
        barlow_twins(jnp.ones((4, 2)), jnp.ones((4, 3)))
    with pytest.raises(ValueError, match="two rows or more"):
        vicreg(jnp.ones((1, 2)), jnp.ones((1, 2)))
