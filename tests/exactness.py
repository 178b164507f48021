"""One question put to every loss: are value and gradients those of its written-out float64 formula, on any number of
devices, by either way of meeting other devices' rows, in tiles or whole, in f32 and in bf16?"""
import functools
from typing import Callable, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from simclr_jax import dist

BATCH = 16  # rows of the whole batch, over up to 8 devices


class Case(NamedTuple):
    """A loss with its reference.

    loss(rows, shared, **how) -> f32[]: `rows` holds this shard's arrays, `shared` what all shards have; `how` is what is
    asked of the loss: axis and, if `takes` names them, comm and block.
    reference(rows, shared) -> f64[]: the formula for the whole batch, written out densely.
    rows: {name: array[BATCH, ...]}; shared: {name: array}. Every floating array of both is differentiated.
    """

    loss: Callable
    reference: Callable
    rows: dict
    shared: dict = {}
    takes: tuple = ("comm", "block")


def value_and_grad(f, *args, **options):
    """jax.value_and_grad under jit: a test then compiles one program and not one for every operation."""
    return jax.jit(jax.value_and_grad(f, *args, **options))


def close(got, want, gradients=(), wanted=()):
    """What float64 input must meet."""
    np.testing.assert_allclose(got, want, rtol=1e-9)
    assert len(gradients) == len(wanted)
    for g, w in zip(gradients, wanted):
        np.testing.assert_allclose(g, w, rtol=1e-7, atol=1e-10)


def f64(x):
    return jnp.asarray(x, jnp.float64)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def views(d=12, seed=0):
    """Two arrays [BATCH, d], the second a noisy copy of the first."""
    a, noise = normal(2, BATCH, d, seed=seed)
    return a, (a + 0.5 * noise).astype(np.float32)


def cast(tree, dtype):
    """Floating arrays [BATCH, D] in dtype; scalars stay as they are."""
    return {k: jnp.asarray(x, dtype) if np.issubdtype(np.asarray(x).dtype, np.floating) and np.ndim(x) > 1
            else jnp.asarray(x) for k, x in tree.items()}


def floating(tree):
    return {k: x for k, x in tree.items() if jnp.issubdtype(x.dtype, jnp.floating)}


def expected(case, dtype=jnp.float32):
    """(value, {name: gradient}) of the reference, in f64, from the inputs as `dtype` has them."""
    rows, shared = cast(case.rows, dtype), cast(case.shared, dtype)
    with jax.enable_x64(True):
        rows, shared = ({k: np.asarray(x, np.float64) if jnp.issubdtype(x.dtype, jnp.floating) else np.asarray(x)
                         for k, x in tree.items()} for tree in (rows, shared))
        fn = jax.value_and_grad(lambda r, s: case.reference({**rows, **r}, {**shared, **s}), argnums=(0, 1))
        value, (of_rows, of_shared) = fn(floating(rows), floating(shared))
        assert value.dtype == jnp.float64, "the reference leaves float64"
        return np.asarray(value), {k: np.asarray(g) for k, g in {**of_rows, **of_shared}.items()}


def measured(case, devices, dtype=jnp.float32, weights=None, mean=dist.pmean, **how):
    """(value, {name: gradient}) of the loss of the global batch from `devices` shards: the mean is differentiated.

    weights: f32[devices], what each shard's loss is multiplied by before the mean.
    """
    mesh = dist.make_mesh({"data": devices}, jax.devices()[:devices])
    rows, shared = cast(case.rows, dtype), cast(case.shared, dtype)
    weights = jnp.ones(devices) if weights is None else jnp.asarray(weights, jnp.float32)

    def shard(rows, shared, weight):
        def whole(r, s):
            return mean(weight[0] * case.loss({**rows, **r}, {**shared, **s}, axis="data", **how), "data")
        value, (of_rows, of_shared) = jax.value_and_grad(whole, argnums=(0, 1))(floating(rows), floating(shared))
        return value, of_rows, of_shared
    fn = jax.shard_map(shard, mesh=mesh, in_specs=(P("data"), P(), P("data")), out_specs=(P(), P("data"), P()))
    value, of_rows, of_shared = jax.jit(fn)(rows, shared, weights)
    return value, {**of_rows, **of_shared}


def compare(got, want, dtype=jnp.float32):
    """Value, and of every gradient its norm (a wrong scale) and its direction (a wrong term)."""
    rtol, ratio, cosine = (1e-5, 1e-4, 0.99999) if dtype == jnp.float32 else (1e-4, 3e-3, 0.9999)
    np.testing.assert_allclose(got[0], want[0], rtol=rtol, atol=1e-7)
    assert got[1].keys() == want[1].keys()
    for name, w in want[1].items():
        g, w = np.ravel(np.asarray(got[1][name], np.float64)), np.ravel(w)
        norms = np.linalg.norm(g), np.linalg.norm(w)
        assert np.isfinite(g).all() and norms[1] > 0, name
        assert abs(norms[0] / norms[1] - 1) < ratio, f"{name}: norm {norms[0]}, wanted {norms[1]}"
        assert g @ w / norms[0] / norms[1] > cosine, f"{name}: cosine {g @ w / norms[0] / norms[1]}"


@functools.lru_cache(maxsize=None)
def ways(takes):
    """All ({comm, block}) that a loss taking these offers: whole, tiled and with a last tile that is not full."""
    comms = ("gather", "ring") if "comm" in takes else (None,)
    blocks = (None, 8, 3) if "block" in takes else (None,)
    named = lambda comm, block: {k: v for k, v in (("comm", comm), ("block", block)) if k in takes}
    return tuple(named(c, b) for c in comms for b in blocks)
