"""NT-Xent: the numbers of released code on one device and on four, closed forms, metrics, the edges of f32."""
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from exactness import value_and_grad
from oracle import DATA, cases
from simclr_jax import dist
from simclr_jax.losses import nt_xent


def views(b, d, seed=0, dtype=jnp.float32):
    a, c = jax.random.normal(jax.random.key(seed), (2, b, d))
    return a.astype(dtype), (a + 0.5 * c).astype(dtype)


@functools.lru_cache(maxsize=None)
def on_devices(n, **options):
    """Loss and gradients of the global batch, from n shards: the mean is inside what is differentiated."""
    mesh = dist.make_mesh({"data": n}, jax.devices()[:n])

    def local(z1, z2):
        return jax.lax.pmean(nt_xent(z1, z2, axis="data", **options), "data")

    def shard(z1, z2):
        loss, (g1, g2) = jax.value_and_grad(local, argnums=(0, 1))(z1, z2)
        return loss, g1, g2
    return jax.jit(jax.shard_map(shard, mesh=mesh, in_specs=P("data"), out_specs=(P(), P("data"), P("data"))))


@pytest.mark.parametrize("normalize", [True, False])
def test_equals_the_released_tensorflow_code(normalize):
    for parameters, c in cases("simclr_ntxent"):
        if parameters["hidden_norm"] != normalize:
            continue
        n, temperature = parameters["n"], parameters["temperature"]
        loss, gradient = value_and_grad(
            lambda h: nt_xent(h[:n], h[n:], temperature=temperature, normalize=normalize))(c["hidden"])
        # The released code returns the sum of both directions, twice the paper's mean over 2N rows.
        np.testing.assert_allclose(2 * loss, c["out_loss_f32"], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(2 * gradient, c["grad_hidden_f32"], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("comm", ["gather", "ring"])
def test_equals_the_released_tensorflow_code_on_four_replicas(comm):
    for parameters, c in cases("simclr_ntxent_sharded"):
        n = parameters["n_per_replica"]
        z1, z2 = (np.concatenate([h[s] for h in c["hidden"]]) for s in (slice(0, n), slice(n, None)))
        loss, g1, g2 = on_devices(4, temperature=parameters["temperature"], comm=comm)(z1, z2)
        want = c["grad_hidden_of_global_loss_f32"]
        np.testing.assert_allclose(2 * loss, c["out_global_loss_f32"], rtol=1e-5)
        np.testing.assert_allclose(2 * np.asarray(g1), np.concatenate([w[:n] for w in want]), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(2 * np.asarray(g2), np.concatenate([w[n:] for w in want]), rtol=1e-4, atol=1e-6)


def test_closed_forms():
    b, t = 8, 0.3
    same = jnp.ones((b, 5))
    np.testing.assert_allclose(nt_xent(same, same, temperature=t), np.log(2 * b - 1), rtol=1e-6)
    apart = jnp.eye(b)
    want = np.log(np.exp(1 / t) + 2 * b - 2) - 1 / t
    np.testing.assert_allclose(nt_xent(apart, apart, temperature=t), want, rtol=1e-6)


@pytest.mark.scorecard(5)
@pytest.mark.parametrize("n", [1, 8])
def test_a_random_encoder_sits_at_the_log_of_all_candidates(n):
    z1, z2 = jax.random.normal(jax.random.key(1), (2, 64, 256))
    loss, *_ = on_devices(n, temperature=1.0)(z1, z2)
    assert abs(loss / np.log(2 * 64 - 1) - 1) < 0.05


@pytest.mark.scorecard(4)
def test_symmetries():
    z1, z2 = views(16, 8)
    loss = nt_xent(z1, z2, temperature=0.2)
    order = jax.random.permutation(jax.random.key(2), 16)
    np.testing.assert_allclose(nt_xent(z2, z1, temperature=0.2), loss, rtol=1e-6)
    np.testing.assert_allclose(nt_xent(z1[order], z2[order], temperature=0.2), loss, rtol=1e-6)


@pytest.mark.slow
def test_large_similarities_stay_finite():
    z1, z2 = views(8, 4)
    for options in ({}, {"block": 3}):
        loss, g = value_and_grad(functools.partial(nt_xent, temperature=1e-3, **options))(50 * z1, z2)
        assert np.isfinite(loss) and np.isfinite(g).all()
    zero = jnp.zeros((8, 4))
    assert np.isfinite(jax.grad(functools.partial(nt_xent, temperature=0.1))(zero, z2)).all()


@pytest.mark.slow
def test_bfloat16_rows_are_compared_in_float32():
    z = views(32, 16, dtype=jnp.bfloat16)
    loss = nt_xent(*z, temperature=0.1, normalize=False)
    assert loss.dtype == jnp.float32
    wide = [x.astype(jnp.float32) for x in z]
    np.testing.assert_allclose(loss, nt_xent(*wide, temperature=0.1, normalize=False), rtol=1e-6)


@pytest.mark.parametrize("block", [5, pytest.param(None, marks=pytest.mark.slow)])
@pytest.mark.parametrize("temperature, norm", [pytest.param(0.01, 1, marks=pytest.mark.slow), (1e-3, 1), (0.05, 30)])
def test_sharp_softmaxes_are_exact_where_one_shift_for_all_rows_underflows(temperature, norm, block):
    """Rows of very unlike logits leave the triangular sweep's common shift behind: its guard must notice."""
    z1, z2 = views(8, 6)
    z1 = (z1 / jnp.linalg.norm(z1, axis=1, keepdims=True)).at[0].multiply(norm)
    z2 = z2 / jnp.linalg.norm(z2, axis=1, keepdims=True)
    f = functools.partial(nt_xent, temperature=temperature, normalize=False, block=block)
    loss, grads = value_and_grad(f, argnums=(0, 1))(z1, z2)
    z = np.concatenate([z1, z2]).astype(np.float64)
    i, other = np.arange(16), (np.arange(16) + 8) % 16
    s = z @ z.T / temperature
    s[i, i] = -np.inf
    top = s.max(1, keepdims=True)
    p = np.exp(s - top)
    want = np.mean(np.log(p.sum(1)) + top[:, 0] - s[i, other])
    p /= p.sum(1, keepdims=True)
    p[i, other] -= 1
    np.testing.assert_allclose(loss, want, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(np.concatenate(grads), (p + p.T) @ z / temperature / 16, rtol=1e-3, atol=1e-4 / temperature)


def test_a_batch_of_one_has_nothing_to_tell_apart():
    loss, g = value_and_grad(functools.partial(nt_xent, temperature=0.1))(jnp.ones((1, 4)), jnp.ones((1, 4)))
    assert loss == 0 and not np.any(g)


@pytest.mark.parametrize("how", [{"block": 5}, pytest.param({"block": 8}, marks=pytest.mark.slow),
                                 pytest.param({}, marks=pytest.mark.slow)], ids=str)
def test_equals_lightly(how):
    with jax.enable_x64(True):
        for parameters, c in cases("lightly_ntxent"):
            z = [jnp.asarray(c[k], jnp.float64) for k in ("out0", "out1")]
            loss, grads = value_and_grad(
                lambda a, b: nt_xent(a, b, temperature=parameters["temperature"], **how), argnums=(0, 1))(*z)
            np.testing.assert_allclose(loss, c["out_loss_f64"], rtol=1e-9)
            for g, k in zip(grads, ("grad_out0_f64", "grad_out1_f64")):
                np.testing.assert_allclose(g, c[k], rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("comm", ["gather", "ring"])
@pytest.mark.parametrize("case", ["ntxent0", "ntxent1"])
def test_equals_lightly_on_four_processes(case, comm):
    z = np.load(DATA / "distributed4.npz")
    c = {k.split("/")[1]: z[k] for k in z.files if k.startswith(case + "/")}
    temperature = json.loads(str(z["meta"]))["cases"][case]["temperature"]
    with jax.enable_x64(True):
        loss, *grads = on_devices(4, temperature=temperature, comm=comm)(
            *(np.concatenate(c[k]).astype(np.float64) for k in "ab"))
    np.testing.assert_allclose(loss, c["out_loss_f64"].mean(), rtol=1e-9)
    for g, k in zip(grads, "ab"):  # ranks are left with the gradient of the sum of their losses, not of the mean
        np.testing.assert_allclose(4 * np.asarray(g), np.concatenate(c[f"grad_{k}_f64"]), rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("n, options", [(1, {}), (1, {"block": 5}), (4, {}), (4, {"comm": "ring", "block": 3})], ids=str)
def test_metrics_against_the_written_out_softmax(n, options):
    z1, z2 = views(16, 6)
    mesh = dist.make_mesh({"data": n}, jax.devices()[:n])
    fn = jax.shard_map(lambda a, b: jax.lax.pmean(nt_xent(a, b, temperature=0.5, axis="data", metrics=True, **options)[1],
                                                  "data"), mesh=mesh, in_specs=P("data"), out_specs=P())
    got = jax.jit(fn)(z1, z2)
    u = np.concatenate([z1, z2]).astype(np.float64)
    u /= np.linalg.norm(u, axis=1, keepdims=True)
    s = u @ u.T
    hits, entropies, negatives = [], [], []
    for i in range(32):
        j, p = (i + 16) % 32, np.exp(s[i] / 0.5)
        p[i] = 0
        p /= p.sum()
        hits.append(p.argmax() == j)
        entropies.append(-(p[p > 0] * np.log(p[p > 0])).sum())
        negatives += [s[i, k] for k in range(32) if k not in (i, j)]
    positives = np.array([s[i, (i + 16) % 32] for i in range(32)])
    want = {"accuracy": np.mean(hits), "entropy": np.mean(entropies), "negative": np.mean(negatives),
            "positive": positives.mean(), "alignment": (2 - 2 * positives).mean(),
            "uniformity": np.log(np.mean(np.exp(-2 * (2 - 2 * np.array(negatives)))))}
    assert got.keys() == want.keys()
    assert 0 < want["accuracy"] < 1
    for name, value in want.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-5, atol=1e-6, err_msg=name)


def test_metrics_carry_no_gradient():
    z1, z2 = views(8, 4)
    for name in ("accuracy", "entropy", "positive", "negative"):
        g = jax.grad(lambda z: nt_xent(z, z2, temperature=0.5, metrics=True)[1][name])(z1)
        assert not np.any(g), name


def test_refuses_what_it_cannot_compare():
    with pytest.raises(ValueError, match="one shape"):
        nt_xent(jnp.ones((4, 2)), jnp.ones((4, 3)), temperature=0.1)
    with pytest.raises(ValueError, match="comm='all'"):
        nt_xent(jnp.ones((4, 2)), jnp.ones((4, 2)), temperature=0.1, comm="all")
