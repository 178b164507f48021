"""The laws that every method keeps (CONTRIBUTING.md lists them). Methods are found by listing the folder."""
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec as P

from simclr_jax import dist, names
from simclr_jax.train.state import init_state
from simclr_jax.train.step import make_step
from simclr_jax.types import Ctx, Net


def dense(width):
    """A net without batch statistics."""
    def init(key, x):
        return {"kernel": 0.3 * jax.random.normal(key, (int(np.prod(x.shape[1:])), width))}, {}

    def apply(params, stats, x, *, train, key=None, mask=None):
        return {"pooled": jnp.tanh(x.reshape(len(x), -1) @ params["kernel"])}, stats
    return Net(init, apply)


def patchwise(width):
    """A net that knows patches of 2x2, of images of any size: a class token, their mean, before them."""
    def init(key, x):
        return {"kernel": 0.3 * jax.random.normal(key, (12, width)), "hidden": jnp.full(width, 0.1)}, {}

    def apply(params, stats, x, *, train, key=None, mask=None):
        b, h, w, _ = x.shape
        x = x.reshape(b, h // 2, 2, w // 2, 2, 3).transpose(0, 1, 3, 2, 4, 5).reshape(b, -1, 12)
        x = jnp.tanh(x @ params["kernel"])
        x = x if mask is None else jnp.where(mask[..., None], params["hidden"], x)
        if key is not None:
            x = x * jax.vmap(lambda k: jax.random.bernoulli(k, 0.9, (width,)))(key)[:, None]
        pooled = jnp.mean(x, axis=1)
        # Places, as of a transformer: without them the hidden patches of an image are all alike, and statistics over few of
        # them have a variance of rounding alone.
        place = jnp.sin(jnp.arange(x.shape[1])[:, None] + jnp.arange(width))
        tokens = jnp.concatenate([pooled[:, None], jnp.tanh(x + pooled[:, None] + place)], axis=1)
        return {"pooled": pooled, "tokens": tokens}, stats
    return Net(init, apply)


def words(width):
    """A text net that draws by row: a tenth of each row's features is dropped, by the row's key."""
    def init(key, x):
        return {"kernel": 0.3 * jax.random.normal(key, (32, width))}, {}

    def apply(params, stats, x, *, train, key=None, mask=None):
        y = jnp.sum(params["kernel"][x], axis=1)
        if train:
            y = y * jax.vmap(lambda k: jax.random.bernoulli(k, 0.9, (width,)))(key)
        return {"pooled": jnp.tanh(y)}, stats
    return Net(init, apply)


def batch(views):
    ids = jnp.stack([jnp.arange(100, 116), jnp.full(16, 2)], axis=1).astype(jnp.uint32)
    return {"views": jax.random.normal(jax.random.key(3), (16, views, 4, 4, 3)), "id": ids,
            "text": jax.random.randint(jax.random.key(4), (16, 5), 0, 32)}


def multi_crop():
    """Two views, two small crops, and masks of none, one and two of the views' four patches."""
    kinds = jnp.array([[0, 0, 0, 0], [1, 0, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]] * 8)
    mask = jax.random.permutation(jax.random.key(6), kinds, axis=0)
    return {**batch(2), "crops": jax.random.normal(jax.random.key(5), (16, 2, 2, 2, 3)),
            "mask": mask.reshape(16, 2, 4).astype(bool)}


def towers():
    return {"image": dense(6), "text": words(6)}


def siamese():
    return {"backbone": dense(8), "projector": dense(6), "predictor": dense(6)}


def crops():
    return {"backbone": patchwise(8), "projector": dense(6), "patch_projector": dense(6)}


# What a run tells its method.
RUN = dict(batch=16, steps=10, examples=64)

# One line a method: its nets, its arguments and a batch of 16 rows.
TOYS = {
    "simclr": dict(nets=lambda: {"backbone": dense(8), "projector": dense(6)}, spec=dict(temperature=0.3), batch=batch(2)),
    "byol": dict(nets=siamese, spec=dict(momentum=0.9), batch=batch(2)),
    "moco": dict(nets=siamese, spec=dict(queue=32, momentum=0.9, shuffle=True), batch=batch(2)),
    "moco_v3": dict(nets=siamese, spec=dict(temperature=0.5, momentum=0.9), batch=batch(2)),
    "swav": dict(nets=crops, spec=dict(prototypes=10, queue=32, queue_epochs=0.0), batch=multi_crop()),
    "dino": dict(nets=crops, spec=dict(prototypes=10, momentum=0.9, norm_last_layer=False), batch=multi_crop()),
    "dinov2": dict(nets=crops, spec=dict(prototypes=10, momentum=0.9), batch=multi_crop()),
    "barlow_twins": dict(nets=siamese, spec={}, batch=batch(2)),
    # The paper's weights over 25: with SGD at 0.5 they would throw the parameters about, and rounding with them.
    "vicreg": dict(nets=siamese, spec=dict(invariance=1.0, variance=1.0, covariance=0.04), batch=batch(2)),
    "simsiam": dict(nets=siamese, spec={}, batch=batch(2)),
    "clip": dict(nets=towers, spec=dict(temperature=0.3), batch=batch(1)),
    "siglip": dict(nets=towers, spec=dict(scale=4.0, bias=-2.0), batch=batch(1)),
}
METHODS = names.available("methods")
# Three in the fast suite: the loss of one net, a queue with a teacher, two towers. The rest take minutes to compile.
FAST = "simclr", "moco", "siglip"
EVERY = [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in METHODS]


def test_every_method_has_a_toy():
    assert set(METHODS) == set(TOYS), "add the method to TOYS, so that the laws are tried on it"


def build(name, **spec):
    toy = TOYS[name]
    return names.make("methods", {"name": name, **toy["spec"], **spec}, toy["nets"](), **RUN), toy["batch"]


def train(name, mesh, *, microbatches=1, steps=3, shard=None, **spec):
    """Three SGD steps: Adam and LARS would hide a gradient of the wrong size."""
    method, batch = build(name, **spec)
    tx = optax.sgd(0.5)
    state = init_state(method, tx, mesh, batch, seed=0)
    shardings = None
    if shard:
        shardings = jax.tree.map(shard, state)
        state = jax.device_put(state, shardings)
    step = make_step(method, tx, mesh, seed=0, microbatches=microbatches, shardings=shardings)
    for _ in range(steps):
        state, metrics = step(state, dist.place_batch(batch, mesh))
    return state, metrics


@pytest.fixture(scope="module")
def one_device():
    cache = {}

    def of(name):
        if name not in cache:
            cache[name] = jax.device_get(train(name, dist.make_mesh({"data": 1}, jax.devices()[:1])))
        return cache[name]
    return of


def assert_same(got, want, rtol=1e-5, atol=1e-6):
    (state, metrics), (want_state, want_metrics) = jax.device_get(got), want
    for a, b in zip(jax.tree.leaves((state.params, state.extra)), jax.tree.leaves((want_state.params, want_state.extra))):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)
    for k in want_metrics:
        np.testing.assert_allclose(metrics[k], want_metrics[k], rtol=1e-4, err_msg=k)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("devices, microbatches", [(8, 2)] + [
    pytest.param(*split, marks=pytest.mark.slow) for split in ((1, 4), (2, 1), (2, 8), (4, 2), (8, 1))])
def test_any_split_trains_the_same(name, devices, microbatches, mesh, one_device):
    assert_same(train(name, mesh(devices), microbatches=microbatches), one_device(name))


@pytest.mark.parametrize("name", EVERY)
def test_a_model_axis_is_left_to_the_compiler(name, one_device):
    mesh = dist.make_mesh({"data": -1, "model": 2})

    def shard(x):
        return NamedSharding(mesh, P(None, "model") if x.ndim == 2 and x.shape[1] % 2 == 0 else P())
    state, metrics = train(name, mesh, microbatches=2, shard=shard)
    kernels = [x for x in jax.tree.leaves(state.params) if x.ndim == 2]
    assert all(x.sharding.spec == P(None, "model") for x in kernels)  # and it stays sharded from step to step
    assert_same((state, metrics), one_device(name))


@pytest.mark.parametrize("name", EVERY)
def test_extra_is_replicated_and_keeps_its_tree(name, mesh):
    method, batch = build(name)
    tx = optax.sgd(0.5)
    before = init_state(method, tx, mesh(8), batch, seed=0)
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), before)
    after, _ = make_step(method, tx, mesh(8), seed=0)(before, dist.place_batch(batch, mesh(8)))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == shapes
    assert all(x.sharding.is_fully_replicated for x in jax.tree.leaves(after))


@pytest.mark.parametrize("name", EVERY)
def test_outputs_are_by_row_and_features_too(name):
    """Which the split of a batch and every evaluation rely on."""
    method, batch = build(name)
    params, extra = method.init(jax.random.key(0), batch)
    ctx = Ctx(jnp.int32(0), jax.random.key(0), None)
    outputs, _ = method.forward(params, extra, batch, ctx)
    assert all(x.shape[0] == 16 for x in jax.tree.leaves(outputs))
    loss, (_, metrics) = method.criterion(params, extra, outputs, ctx)
    assert loss.shape == () and all(jnp.shape(m) == () for m in metrics.values())
    features = method.embed(params, extra, {"image": batch["views"][:, 0]})
    if "text" in TOYS[name]["nets"]():
        features |= method.embed(params, extra, {"text": batch["text"]})
    assert all(f.ndim == 2 and f.shape[0] == 16 for f in features.values())


def reductions(jaxpr, inside=False):
    """How many sums over the data axis stand inside and outside of loops."""
    counts = np.zeros(2, int)
    for eqn in jaxpr.eqns:
        if eqn.primitive.name.startswith("psum") and "data" in str(eqn.params.get("axes", "")):
            counts[int(inside)] += len(eqn.invars)
        for value in eqn.params.values():
            for inner in value if isinstance(value, (tuple, list)) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    counts += reductions(inner, inside or eqn.primitive.name in ("scan", "while"))
    return counts


@pytest.mark.parametrize("name", EVERY)
def test_gradients_are_summed_over_devices_once_after_the_loop(name, mesh):
    method, batch = build(name)
    tx = optax.sgd(0.5)
    state = init_state(method, tx, mesh(4), batch, seed=0)

    def count(microbatches):
        step = make_step(method, tx, mesh(4), seed=0, microbatches=microbatches)
        return reductions(jax.make_jaxpr(step)(state, dist.place_batch(batch, mesh(4))).jaxpr)
    outside, inside = count(4)
    assert inside == 0 and outside >= len(jax.tree.leaves(state.params))
    assert list(count(1)) == [outside, 0]
