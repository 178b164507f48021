"""Decoupled, debiased and hard-negative losses: released code's numbers, what they reduce to, the edges of f32."""
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from exactness import value_and_grad, views
from oracle import DATA, cases
from simclr_jax import dist
from simclr_jax.losses import dcl, debiased, hard_negative, nt_xent

WAYS = {"block": 5}, pytest.param({"block": 8}, marks=pytest.mark.slow), pytest.param({}, marks=pytest.mark.slow)


def equal(loss, c, names):
    """Value and gradients in f64 against those the original left, which ran in f64."""
    args = [jnp.asarray(c[n], jnp.float64) for n in names]
    got, grads = value_and_grad(loss, argnums=(0, 1))(*args)
    np.testing.assert_allclose(got, c["out_loss_f64"], rtol=1e-9)
    for g, n in zip(grads, names):
        np.testing.assert_allclose(g, c[f"grad_{n}_f64"], rtol=1e-7, atol=1e-10, err_msg=n)


@pytest.mark.parametrize("how", WAYS, ids=str)
def test_decoupled_equals_lightly(how):
    with jax.enable_x64(True):
        for p, c in cases("lightly_dcl"):
            assert p["kind"] in ("DCL", "DCLW")
            equal(functools.partial(dcl, temperature=p["temperature"], sigma=p.get("sigma"), **how), c, ("out0", "out1"))


@pytest.mark.parametrize("n", [8, pytest.param(24, marks=pytest.mark.slow), pytest.param(32, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["DCL debiased", "DCL standard", "HCL hard", "HCL easy"])
def test_debiased_and_hard_equal_released_code(kind, n):
    """Both authors' code has the uncorrected loss as well: "standard" and "easy", which is NT-Xent."""
    with jax.enable_x64(True):
        for p, c in cases("debiased_hard"):
            if p["kind"] != kind or p["n"] != n:
                continue
            loss = {"DCL debiased": functools.partial(debiased, tau_plus=p["tau_plus"]),
                    "HCL hard": functools.partial(hard_negative, tau_plus=p["tau_plus"], beta=p.get("beta"))}.get(kind, nt_xent)
            equal(functools.partial(loss, temperature=p["temperature"], normalize=False), c, ("out_1", "out_2"))


@pytest.mark.parametrize("comm", ["gather", "ring"])
@pytest.mark.parametrize("case", ["dcl0", "dcl1"])
def test_decoupled_equals_lightly_on_four_processes(case, comm):
    z = np.load(DATA / "distributed4.npz")
    c = {k.split("/")[1]: z[k] for k in z.files if k.startswith(case + "/")}
    temperature = json.loads(str(z["meta"]))["cases"][case]["temperature"]
    mesh = dist.make_mesh({"data": 4}, jax.devices()[:4])

    def shard(a, b):
        return jax.value_and_grad(lambda a, b: dist.pmean(dcl(a, b, temperature=temperature, axis="data", comm=comm), "data"),
                                  argnums=(0, 1))(a, b)
    fn = jax.shard_map(shard, mesh=mesh, in_specs=P("data"), out_specs=(P(), (P("data"), P("data"))))
    with jax.enable_x64(True):
        loss, grads = jax.jit(fn)(*(np.concatenate(c[k]).astype(np.float64) for k in "ab"))
    np.testing.assert_allclose(loss, c["out_loss_f64"].mean(), rtol=1e-9)
    for g, k in zip(grads, "ab"):  # ranks are left with the gradient of the sum of their losses, not of the mean
        np.testing.assert_allclose(4 * np.asarray(g), np.concatenate(c[f"grad_{k}_f64"]), rtol=1e-7, atol=1e-10)


@pytest.mark.slow
def test_without_correction_and_concentration_they_are_nt_xent():
    z = views(8)
    want = nt_xent(*z, temperature=0.3)
    np.testing.assert_allclose(debiased(*z, temperature=0.3, tau_plus=0.0), want, rtol=1e-6)
    np.testing.assert_allclose(hard_negative(*z, temperature=0.3, tau_plus=0.0, beta=0.0), want, rtol=1e-6)
    np.testing.assert_allclose(hard_negative(*z, temperature=0.3, tau_plus=0.1, beta=0.0),
                               debiased(*z, temperature=0.3, tau_plus=0.1), rtol=1e-6)


@pytest.mark.parametrize("loss", [
    dcl, functools.partial(dcl, sigma=0.5), functools.partial(debiased, tau_plus=0.1),
    functools.partial(hard_negative, tau_plus=0.1, beta=2.0)], ids=["dcl", "weighted", "debiased", "hard"])
def test_values_and_gradients_stay_finite(loss):
    fn = value_and_grad(lambda z, t: loss(z, z, temperature=t), argnums=(0, 1))
    for z in (views(8)[0], np.zeros((16, 8), np.float32), np.ones((16, 8), np.float32)):
        for temperature in (1e-2, 0.5, 100.0):
            value, grads = fn(z, jnp.float32(temperature))
            assert np.isfinite(value) and all(np.isfinite(g).all() for g in grads)


def test_metrics_are_those_of_nt_xent():
    z = views(8)
    want = jax.jit(functools.partial(nt_xent, temperature=0.3, metrics=True))(*z)[1]
    for loss in (functools.partial(dcl, sigma=0.5), functools.partial(hard_negative, tau_plus=0.1, beta=1.5)):
        got = jax.jit(functools.partial(loss, temperature=0.3, metrics=True))(*z)[1]
        for name in want.keys() - ({"entropy"} - got.keys()):
            np.testing.assert_allclose(got[name], want[name], rtol=1e-5, err_msg=name)


def test_shapes_that_do_not_pair_are_refused():
    for loss in (dcl, functools.partial(debiased, tau_plus=0.1), functools.partial(hard_negative, tau_plus=0.1, beta=1.0)):
        with pytest.raises(ValueError, match="two arrays of one shape"):
            loss(jnp.ones((4, 2)), jnp.ones((4, 3)), temperature=0.1)
