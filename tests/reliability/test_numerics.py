"""Numerics across devices: the gradient of the parameters, which is what training sees, and proof that a slip shows."""
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

from methods.test_laws import build as toy
from simclr_jax import dist, names
from simclr_jax.train.state import init_state
from simclr_jax.train.step import make_gradients, make_step


@pytest.fixture
def case():
    """A small convolutional net, 16 x 16 noise, and the step's own gradient of its parameters on n devices."""
    nets = {"backbone": names.make("nets", {"name": "convnet", "channels": (4, 8)}, axis=dist.DATA),
            "projector": names.make("nets", {"name": "mlp", "hidden": 8, "out": 8, "layers": 2}, axis=dist.DATA)}
    method = names.make("methods", {"name": "simclr", "temperature": 0.5}, nets)
    ids = jnp.stack([jnp.arange(16), jnp.zeros(16, int)], axis=1).astype(jnp.uint32)
    batch = {"views": jax.random.uniform(jax.random.key(0), (16, 2, 16, 16, 3)), "id": ids}

    def measured(devices):
        mesh = dist.make_mesh({"data": devices}, jax.devices()[:devices])
        state = init_state(method, optax.sgd(0.1), mesh, batch, seed=0)
        gradients = make_gradients(method, dist.DATA, seed=0)
        fn = jax.shard_map(lambda s, b: gradients(s, b)[:2], mesh=mesh, in_specs=(P(), P(dist.DATA)), out_specs=P())
        loss, grads = jax.jit(fn)(state, dist.place_batch(batch, mesh))
        flat = np.concatenate([np.ravel(g).astype(np.float64) for g in jax.tree.leaves(jax.device_get(grads))])
        return float(loss), flat
    return measured


def compare(got, want):
    """The ratio of the norms is what a gradient that is N times too large fails by; its direction would be right."""
    np.testing.assert_allclose(got[0], want[0], rtol=1e-5)
    norms = np.linalg.norm(got[1]), np.linalg.norm(want[1])
    assert got[1] @ want[1] / norms[0] / norms[1] > 0.99999, "direction"
    assert abs(norms[0] / norms[1] - 1) < 1e-4, f"norm ratio {norms[0] / norms[1]}"


@pytest.mark.scorecard(1)
@pytest.mark.parametrize("devices", [8, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 4))])
def test_loss_and_parameter_gradient_are_those_of_one_device(case, devices):
    compare(case(devices), case(1))


def value_of(value, gradient):
    """A tree's values with the gradient of another's."""
    return jax.tree.map(lambda v, g: lax.stop_gradient(v - g) + g, value, gradient)


def mean_dropped(x, axis):
    return value_of(lax.pmean(x, axis), lax.psum(x, axis))


def mean_doubled(x, axis):
    return value_of(lax.pmean(x, axis), jax.tree.map(lambda m: m / lax.axis_size(axis), lax.pmean(x, axis)))


@pytest.mark.slow
@pytest.mark.scorecard(3)
@pytest.mark.parametrize("attribute, mistake", [("pmean", mean_dropped), ("pmean", mean_doubled)],
                         ids=lambda x: getattr(x, "__name__", x))
def test_a_slip_in_the_mean_turns_row_1_red(case, attribute, mistake, monkeypatch):
    want = case(1)
    monkeypatch.setattr(dist, attribute, mistake)
    with pytest.raises(AssertionError, match="norm ratio|direction"):
        compare(case(4), want)


@pytest.mark.slow
@pytest.mark.scorecard(3)
def test_a_gather_without_gradient_turns_row_1_red(case, monkeypatch):
    """NT-Xent's own rule gathers cotangents; what it gathers is what is cut off here."""
    want = case(1)
    own = dist.all_gather

    def cut(x, axis, *, dim=0):  # of the log-sum-exps and cotangents, the other devices' are lost
        everyone = own(x, axis, dim=dim)
        if x.ndim == 2 and x.shape[1] == 2:
            b = x.shape[0]
            mine = (jnp.arange(everyone.shape[0]) // b == dist.index(axis))[:, None]
            return jnp.where(mine, everyone, jnp.stack([everyone[:, 0], 0 * everyone[:, 1]], 1))
        return everyone
    monkeypatch.setattr(dist, "all_gather", cut)
    with pytest.raises(AssertionError, match="norm ratio|direction"):
        compare(case(4), want)


@pytest.mark.slow
@pytest.mark.scorecard(4)
def test_a_row_is_no_negative_of_itself():
    """With one row in all, nothing is left to tell apart."""
    from simclr_jax.losses import nt_xent
    z = jnp.ones((1, 4))
    assert nt_xent(z, z, temperature=0.1) == 0
    np.testing.assert_allclose(nt_xent(jnp.eye(2, 4), jnp.eye(2, 4), temperature=1.0),
                               np.log(np.e + 2) - 1, rtol=1e-6)  # own view e^1, the other example's two views e^0


@pytest.mark.slow
@pytest.mark.scorecard(9)
@pytest.mark.parametrize("rate", [1e3, -1e3])
def test_a_temperature_that_a_huge_rate_throws_ends_at_its_bound_and_is_reported(mesh, rate):
    from simclr_jax.train import optim
    method, batch = toy("clip")
    made = optim.make(name="sgd", lr=abs(rate), scaling="none", schedule="constant", momentum=0.0, weight_decay=0.0,
                      warmup_epochs=0.0, bounds=(("logit_scale$", 0.0, float(np.log(100))),),
                      rates=(("logit_scale$", 1.0), (".*", 0.0)), batch=16, steps=10, examples=160)
    if rate < 0:  # away from the optimum instead of towards it
        method = method._replace(criterion=_negated(method.criterion))
    state = init_state(method, made.tx, mesh(4), batch, seed=0)
    step = make_step(method, made.tx, mesh(4), seed=0)
    for _ in range(3):
        state, metrics = step(state, dist.place_batch(batch, mesh(4)))
    scale = float(jnp.exp(state.params["logit_scale"]))
    assert min(abs(scale / 100 - 1), abs(scale - 1)) < 1e-5 and metrics["skipped"] == 0
    np.testing.assert_allclose(metrics["scale"], scale, rtol=1e-5)  # what the step used: it sat there before, too
    assert len(made.at_bounds(state.params)) == 1


def _negated(criterion):
    def negated(*args):
        loss, aux = criterion(*args)
        return -loss, aux
    return negated
