"""BatchNorm against plain float64 numpy: values, running statistics and gradients, however rows share statistics."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from simclr_jax import dist
from simclr_jax.errors import UsageError
from simclr_jax.nets.norm import BatchNorm, parse

C, ROWS = 5, 16
CASES = [("global", n) for n in (1, 2, 4, 8)] + [("local", n) for n in (1, 4, 8)] + [
    ("devices=2", 2), ("devices=2", 8), ("devices=4", 8), ("devices=8", 8), ("devices=8", 1),
    ("rows=2", 1), ("rows=2", 8), ("rows=4", 4), ("rows=16", 1), ("rows=1", 8)]


def groups(bn, devices):
    """The rows of a batch of ROWS, split evenly over devices, that share statistics: a list of slices."""
    local = ROWS // devices
    kind, _, k = bn.partition("=")
    size = {"global": ROWS, "local": local, "devices": local * int(k or 1), "rows": int(k or 1)}[kind]
    size = min(size, ROWS)
    return [slice(i, i + size) for i in range(0, ROWS, size)]


def reference(x, scale, offset, w, bn, devices):
    """Value, statistics after a first step, and gradients of mean over rows of sum(w * y), by hand in float64."""
    x, scale, offset, w = (np.asarray(a, np.float64) for a in (x, scale, offset, w))
    over = tuple(range(x.ndim - 1))
    y, dx, means, variances = np.zeros_like(x), np.zeros_like(x), [], []
    dscale, doffset = np.zeros(C), np.zeros(C)
    for rows in groups(bn, devices):
        g, dy = x[rows], w[rows] / ROWS
        mean, var = g.mean(over), g.var(over)
        hat = (g - mean) / np.sqrt(var + 1e-5)
        y[rows] = hat * scale + offset
        dx[rows] = scale / np.sqrt(var + 1e-5) * (dy - dy.mean(over) - hat * (dy * hat).mean(over))
        dscale += (dy * hat).sum(over)
        doffset += dy.sum(over)
        means.append(mean)
        variances.append(var)
    stats = {"mean": 0.1 * np.mean(means, 0), "var": 0.9 + 0.1 * np.mean(variances, 0)}
    return y, stats, {"x": dx, "scale": dscale, "bias": doffset}


def ours(x, scale, offset, w, bn, mesh, dtype=jnp.float32):
    """The same by BatchNorm in `shard_map`, differentiating the pmean of each shard's mean over its rows."""
    norm = BatchNorm(bn, dist.DATA, dtype=dtype)
    stats = {"mean": jnp.zeros(C), "var": jnp.ones(C)}

    def sharded(params, x, w):
        def loss(params, x):
            y, after = norm.apply({"params": params, "batch_stats": stats}, x, train=True, mutable=["batch_stats"])
            return dist.pmean(jnp.sum(w * y) / x.shape[0], dist.DATA), (y, after["batch_stats"])
        (_, aux), (dparams, dx) = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, x)
        return aux, dparams, dx

    rows, whole = P(dist.DATA), P()  # out_specs=P() makes JAX refuse statistics that are not replicated
    run = jax.jit(jax.shard_map(sharded, mesh=mesh, in_specs=(whole, rows, rows),
                                out_specs=((rows, whole), whole, rows)))
    (y, after), dparams, dx = run({"scale": scale, "bias": offset}, x, w)
    return y, after, {"x": dx, **dparams}


def draws(shape, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(1.0, 2.0, (ROWS, *shape, C)) * np.linspace(0.5, 3, C)
    w = rng.normal(size=(ROWS, *shape, C))
    return [a.astype(np.float32) for a in (x, rng.uniform(0.5, 2, C), rng.normal(size=C), w)]


def check(got, want, tolerance, what):
    error = np.max(np.abs(np.asarray(got, np.float64) - want)) / np.max(np.abs(want))
    assert error <= tolerance, f"{what}: {error:.1e} of the largest value"


@pytest.mark.scorecard(6)
@pytest.mark.parametrize("bn, devices", CASES)
def test_against_float64(mesh, bn, devices):
    args = draws((2, 3))
    got, want = ours(*args, bn, mesh(devices)), reference(*args, bn, devices)
    check(got[0], want[0], 2e-6, "value")
    for name in ("mean", "var"):
        check(got[1][name], want[1][name], 1e-6, f"running {name}")
    for name in ("x", "scale", "bias"):
        check(got[2][name], want[2][name], 5e-6, f"gradient of {name}")


@pytest.mark.parametrize("bn, devices", [("global", 8), ("devices=4", 8)])
def test_two_rows_a_device_without_positions(mesh, bn, devices):
    """A projector on 8 devices: two feature vectors each, and no positions to average over."""
    args = draws(())
    got, want = ours(*args, bn, mesh(devices)), reference(*args, bn, devices)
    check(got[0], want[0], 2e-6, "value")
    check(got[2]["x"], want[2]["x"], 5e-6, "gradient of x")


@pytest.mark.parametrize("bn, devices", [("global", 1), ("global", 8), ("devices=2", 4), ("rows=4", 2)])
def test_a_mean_far_from_zero_keeps_the_variance(mesh, bn, devices):
    """Mean 1000 standard deviations away, where E[x^2] - E[x]^2 in f32 has no correct digit."""
    x, scale, offset, w = draws((4, 4))
    x = (x + 1000 * np.linspace(0.5, 3, C)).astype(np.float32)
    naive = np.mean(x * x, (0, 1, 2), dtype=np.float32) - np.mean(x, (0, 1, 2), dtype=np.float32) ** 2
    assert np.max(np.abs(naive / x.var((0, 1, 2), dtype=np.float64) - 1)) > 0.02
    got, want = ours(x, scale, offset, w, bn, mesh(devices)), reference(x, scale, offset, w, bn, devices)
    check(got[1]["var"], want[1]["var"], 1e-4, "running var")
    check(got[2]["x"], want[2]["x"], 1e-3, "gradient of x")


def test_no_axis_is_one_device():
    x, scale, offset, w = draws((2,))
    stats = {"mean": jnp.zeros(C), "var": jnp.ones(C)}
    for bn in ("global", "local", "devices=8"):
        y, _ = BatchNorm(bn).apply({"params": {"scale": scale, "bias": offset}, "batch_stats": stats}, x, train=True,
                                   mutable=["batch_stats"])
        check(y, reference(x, scale, offset, w, "global", 1)[0], 2e-6, bn)


def test_evaluation_uses_the_running_statistics():
    x, scale, offset, _ = draws((2,))
    stats = {"mean": np.arange(C, dtype=np.float32), "var": np.linspace(0.1, 4, C).astype(np.float32)}
    y, after = BatchNorm().apply({"params": {"scale": scale, "bias": offset}, "batch_stats": stats}, x, train=False,
                                 mutable=["batch_stats"])
    check(y, (x - stats["mean"]) / np.sqrt(stats["var"] + 1e-5) * scale + offset, 1e-6, "value")
    np.testing.assert_array_equal(after["batch_stats"]["mean"], stats["mean"])


def test_statistics_are_f32_in_bf16():
    """2048 rows of mean 3: summed in bf16 the mean would stop growing at 256 rows."""
    x = (3 + np.random.default_rng(0).normal(size=(2048, C))).astype(jnp.bfloat16)
    y, after = BatchNorm(dtype=jnp.bfloat16).apply(
        {"params": {"scale": jnp.ones(C), "bias": jnp.zeros(C)},
         "batch_stats": {"mean": jnp.zeros(C), "var": jnp.ones(C)}},
        x, train=True, mutable=["batch_stats"])
    wide = np.asarray(x, np.float64)
    assert y.dtype == jnp.bfloat16 and after["batch_stats"]["mean"].dtype == jnp.float32
    check(after["batch_stats"]["mean"], 0.1 * wide.mean(0), 1e-6, "running mean")
    check(after["batch_stats"]["var"], 0.9 + 0.1 * wide.var(0), 1e-6, "running var")


@pytest.mark.parametrize("bad", ["globl", "devices", "devices=0", "rows=-1", "rows=2.5", "local=2", ""])
def test_a_bad_mode_is_one_line(bad):
    with pytest.raises(UsageError, match=r"bn='.*wanted 'global', 'local', 'devices=k' or 'rows=k'"):
        parse(bad, "nets/resnet")


@pytest.mark.parametrize("bn, devices, message", [("rows=3", 1, "does not divide the 16 rows"),
                                                  ("rows=4", 8, "does not divide the 2 rows"),
                                                  ("devices=3", 4, "does not divide the 4 devices")])
def test_groups_that_do_not_divide(mesh, bn, devices, message):
    with pytest.raises(UsageError, match=message):
        ours(*draws((2,)), bn, mesh(devices))
