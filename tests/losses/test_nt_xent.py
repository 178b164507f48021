"""NT-Xent: value and gradient against a written-out float64 reference, closed forms and the original's own numbers."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from oracle import cases
from simclr_jax import dist
from simclr_jax.losses import nt_xent


def reference(z1, z2, temperature, normalize=True):
    """The paper's equation 1, row by row, in float64; with its gradient written out from the softmax."""
    z = np.concatenate([z1, z2]).astype(np.float64)
    norm = np.sqrt(np.maximum((z ** 2).sum(1, keepdims=True), 1e-12)) if normalize else np.ones((len(z), 1))
    u = z / norm
    n, b = len(z), len(z1)
    total, du = 0.0, np.zeros_like(u)
    for i in range(n):
        j = (i + b) % n
        others = [k for k in range(n) if k != i]
        s = np.array([u[i] @ u[k] for k in others]) / temperature
        p = np.exp(s - s.max())
        total += np.log(p.sum()) + s.max() - u[i] @ u[j] / temperature
        p /= p.sum()
        for w, k in zip(p, others):
            g = (w - (k == j)) / temperature / n
            du[i] += g * u[k]
            du[k] += g * u[i]
    dz = (du - u * (du * u).sum(1, keepdims=True)) / norm if normalize else du
    return total / n, dz[:b], dz[b:]


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


def assert_gradients(got, want, ratio=1e-4, cosine=0.99999):
    got, want = (np.concatenate([np.ravel(g) for g in gs]).astype(np.float64) for gs in (got, want))
    norms = np.linalg.norm(got), np.linalg.norm(want)
    assert abs(norms[0] / norms[1] - 1) < ratio  # the check that catches a gradient N times too large
    assert got @ want / norms[0] / norms[1] > cosine


# All of them by `make test-all`; each device count, way to meet and tiling at least once by `make test`.
FULL = [(n, options) for n in (1, 2, 4, 8) for options in
        ({}, {"block": 8}, {"block": 5}, {"comm": "ring"}, {"comm": "ring", "block": 3})]
COVER = [(1, {}), (1, {"block": 5}), (2, {"comm": "ring"}), (4, {"block": 8}), (4, {"comm": "ring", "block": 3}), (8, {})]


@pytest.mark.parametrize("n, options", [pytest.param(*c, marks=() if c in COVER else pytest.mark.slow) for c in FULL],
                         ids=str)
@pytest.mark.parametrize("temperature", [0.1, pytest.param(0.5, marks=pytest.mark.slow)])
def test_equals_the_reference_on_any_number_of_devices(n, options, temperature):
    z = views(16, 12)
    loss, *gradients = on_devices(n, temperature=temperature, **options)(*z)
    want, *want_gradients = reference(*z, temperature)
    np.testing.assert_allclose(loss, want, rtol=1e-5)
    assert_gradients(gradients, want_gradients)


@pytest.mark.parametrize("options", [{}, {"block": 7}, {"comm": "ring"}], ids=str)
def test_equals_the_reference_in_float64(options):
    with jax.enable_x64(True):
        z = views(10, 6, dtype=jnp.float64)
        loss, *gradients = jax.value_and_grad(functools.partial(nt_xent, temperature=0.07, **options), argnums=(0, 1))(*z)[:2]
        want, *want_gradients = reference(*map(np.asarray, z), 0.07)
        np.testing.assert_allclose(loss, want, rtol=1e-12)
        np.testing.assert_allclose(np.asarray(gradients[0]), want_gradients, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("normalize", [True, False])
def test_equals_the_released_tensorflow_code(normalize):
    for parameters, c in cases("simclr_ntxent"):
        if parameters["hidden_norm"] != normalize:
            continue
        n, temperature = parameters["n"], parameters["temperature"]
        loss, gradient = jax.value_and_grad(
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


@pytest.mark.parametrize("n", [1, 8])
def test_a_random_encoder_sits_at_the_log_of_all_candidates(n):
    z1, z2 = jax.random.normal(jax.random.key(1), (2, 64, 256))
    loss, *_ = on_devices(n, temperature=1.0)(z1, z2)
    assert abs(loss / np.log(2 * 64 - 1) - 1) < 0.05


def test_symmetries():
    z1, z2 = views(16, 8)
    loss = nt_xent(z1, z2, temperature=0.2)
    order = jax.random.permutation(jax.random.key(2), 16)
    np.testing.assert_allclose(nt_xent(z2, z1, temperature=0.2), loss, rtol=1e-6)
    np.testing.assert_allclose(nt_xent(z1[order], z2[order], temperature=0.2), loss, rtol=1e-6)


def test_large_similarities_stay_finite():
    z1, z2 = views(8, 4)
    for options in ({}, {"block": 3}):
        loss, g = jax.value_and_grad(functools.partial(nt_xent, temperature=1e-3, **options))(50 * z1, z2)
        assert np.isfinite(loss) and np.isfinite(g).all()
    zero = jnp.zeros((8, 4))
    assert np.isfinite(jax.grad(functools.partial(nt_xent, temperature=0.1))(zero, z2)).all()


def test_bfloat16_rows_are_compared_in_float32():
    z = views(32, 16, dtype=jnp.bfloat16)
    loss = nt_xent(*z, temperature=0.1, normalize=False)
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, reference(*(np.asarray(x, np.float64) for x in z), 0.1, normalize=False)[0], rtol=1e-5)


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
    want = {"accuracy": np.mean(hits), "entropy": np.mean(entropies), "negative": np.mean(negatives),
            "positive": np.mean([s[i, (i + 16) % 32] for i in range(32)])}
    assert 0 < want["accuracy"] < 1
    for name, value in want.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-5, atol=1e-6, err_msg=name)


def test_metrics_carry_no_gradient():
    z1, z2 = views(8, 4)
    for name in ("accuracy", "entropy", "positive", "negative"):
        g = jax.grad(lambda z: nt_xent(z, z2, temperature=0.5, metrics=True)[1][name])(z1)
        assert not np.any(g), name


MUTATIONS = {
    "gather under stop_gradient": lambda local, z: jax.lax.pmean(local(z, stop=True), "data"),
    "pmean dropped": lambda local, z: local(z),
    "pmean doubled by a psum": lambda local, z: jax.lax.psum(jax.lax.pmean(local(z), "data"), "data"),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_the_gradient_check_goes_red_for_the_usual_mistakes(name, monkeypatch):
    z1, z2 = views(16, 12)
    mesh = dist.make_mesh({"data": 4}, jax.devices()[:4])
    gather = dist.all_gather

    def local(z, stop=False):
        if stop:
            monkeypatch.setattr(dist, "all_gather", lambda x, axis, dim=0: jax.lax.stop_gradient(gather(x, axis, dim=dim)))
        return nt_xent(*z, temperature=0.1, axis="data")

    def shard(z1, z2):
        return jax.grad(lambda z: MUTATIONS[name](local, z))((z1, z2))
    got = jax.jit(jax.shard_map(shard, mesh=mesh, in_specs=P("data"), out_specs=P("data")))(z1, z2)
    with pytest.raises(AssertionError):
        assert_gradients(got, reference(z1, z2, 0.1)[1:])


def test_refuses_what_it_cannot_compare():
    with pytest.raises(ValueError, match="one shape"):
        nt_xent(jnp.ones((4, 2)), jnp.ones((4, 3)), temperature=0.1)
    with pytest.raises(ValueError, match="comm='all'"):
        nt_xent(jnp.ones((4, 2)), jnp.ones((4, 2)), temperature=0.1, comm="all")
