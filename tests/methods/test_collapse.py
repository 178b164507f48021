"""What keeps BYOL and SimSiam from collapsing: without it they do, and the guard says so."""
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from simclr_jax import dist, names
from simclr_jax.evals.health import Guard
from simclr_jax.nets import mlp
from simclr_jax.train.state import init_state
from simclr_jax.train.step import make_step
from simclr_jax.types import Net

STEPS, ROWS, NOISE = 150, 64, 2.0


def flat(width):
    """One layer of rectified units on the pixels."""
    net = mlp.make(axis=dist.DATA, layers=2, hidden=width, out=width, last_bn=False, hidden_bn=False, std=0.0)
    flatten = lambda x: x.reshape(len(x), -1)
    return Net(lambda key, x: net.init(key, jnp.zeros((1, x[0].size))),
               lambda params, stats, x, *, train, key=None, mask=None: net.apply(params, stats, flatten(x), train=train))


def run(name, **spec):
    """Trains on 64 pictures of ten kinds with noise for views; (spread at the end, the guard's warnings)."""
    rng = np.random.default_rng(0)
    pictures = rng.normal(size=(10, 4, 4, 3))[rng.integers(0, 10, ROWS)] + 0.5 * rng.normal(size=(ROWS, 4, 4, 3))
    nets = {"backbone": flat(32), "projector": mlp.make(axis=dist.DATA, layers=2, hidden=32, out=16, last_bn=False, std=0.0),
            "predictor": mlp.make(axis=dist.DATA, layers=2, hidden=32, out=16, last_bn=False, std=0.0)}
    method = names.make("methods", dict(name=name, **spec), nets, batch=ROWS, steps=STEPS, examples=ROWS)
    mesh, tx, guard, warnings = dist.make_mesh({"data": 1}, jax.devices()[:1]), optax.adamw(0.03, weight_decay=0.1), Guard(STEPS), []
    batch = {"views": np.zeros((ROWS, 2, 4, 4, 3), np.float32), "id": np.zeros((ROWS, 2), np.uint32)}
    state, step = init_state(method, tx, mesh, batch, seed=0), make_step(method, tx, mesh, seed=0)
    for i in range(STEPS):
        noise = NOISE * rng.normal(size=(ROWS, 2, 4, 4, 3))
        batch["views"] = (pictures[:, None] + noise).astype(np.float32)
        state, metrics = step(state, dist.place_batch(batch, mesh))
        if (i + 1) % 50 == 0:
            warnings += guard(i + 1, {f"train/{k}": float(v) for k, v in metrics.items()})[1]
    return float(metrics["spread"]), warnings


@pytest.mark.slow
@pytest.mark.parametrize("name, spec", [("byol", dict(momentum=0.9)), ("simsiam", {})])
def test_as_published_it_does_not_collapse(name, spec):
    spread, warnings = run(name, **spec)
    assert spread > 0.5 and warnings == []


@pytest.mark.parametrize("name, spec", [("byol", dict(momentum=0.9, predictor=False)),
                                        pytest.param("simsiam", dict(stop_gradient=False), marks=pytest.mark.slow)])
def test_without_it_it_collapses_and_the_guard_says_so(name, spec):
    spread, warnings = run(name, **spec)
    assert spread < 0.05
    assert len(warnings) == 1 and "collapsed: all examples get nearly one embedding" in warnings[0]
