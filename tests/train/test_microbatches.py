"""A batch in pieces has the gradient of the whole one: to 1e-5, with real nets, f32 and the highest precision of products.

With batch statistics, the groups of rows that share them are the same ones in both runs (`bn="rows=k"`), as the config
declares; a piece then holds whole groups.
"""
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from methods.test_laws import METHODS, RUN, TOYS
from simclr_jax import dist, names
from simclr_jax.nets import convnet, mlp, resnet, vit
from simclr_jax.nets.norm import BatchNorm
from simclr_jax.train.state import init_state
from simclr_jax.train.step import make_step
from simclr_jax.types import Net

# The gradient takes the place of the optimiser's state: no rate or moment hides its size.
KEEP_GRADIENT = optax.GradientTransformation(lambda params: jax.tree.map(jnp.zeros_like, params),
                                             lambda grads, state, params=None: (jax.tree.map(jnp.zeros_like, grads), grads))


def gradient(method, batch, devices, microbatches):
    """(gradient, metrics, extra) of one step."""
    mesh = dist.make_mesh({"data": devices}, jax.devices()[:devices])
    with jax.default_matmul_precision("highest"):
        state = init_state(method, KEEP_GRADIENT, mesh, batch, seed=0)
        step = make_step(method, KEEP_GRADIENT, mesh, seed=0, microbatches=microbatches)
        state, metrics = step(state, dist.place_batch(batch, mesh))
    return jax.device_get((state.opt_state, metrics, state.extra))


def assert_same_gradient(got, want, tolerance=1e-5):
    """Relative, of the gradient as one vector. Each array by itself to ten times that, as its sums are short and some
    cancel, if it is not below a hundredth of the whole, as those are that a normalisation takes away again."""
    named = zip(jax.tree_util.tree_leaves_with_path(want[0]), jax.tree.leaves(got[0]), strict=True)
    off = {jax.tree_util.keystr(path): (float(np.linalg.norm(g - w)), float(np.linalg.norm(w))) for (path, w), g in named}
    whole = np.linalg.norm([w for _, w in off.values()])
    assert np.linalg.norm([d for d, _ in off.values()]) < tolerance * whole
    for name, (d, w) in off.items():
        assert d < 10 * tolerance * max(w, 0.01 * whole), (name, d, w, whole)
    for name in want[1]:
        np.testing.assert_allclose(got[1][name], want[1][name], rtol=1e-5, err_msg=name)


def views(rows, side):
    ids = jnp.stack([jnp.arange(rows), jnp.zeros(rows)], axis=1).astype(jnp.uint32)
    return {"views": jax.random.uniform(jax.random.key(3), (rows, 2, side, side, 3)), "id": ids}


def simclr(backbone, bn):
    projector = mlp.make(axis=dist.DATA, layers=2, out=16, bn=bn)
    return names.make("methods", {"name": "simclr", "temperature": 0.5}, {"backbone": backbone, "projector": projector})


@pytest.mark.slow
def test_a_resnet_with_declared_groups():
    def run(microbatches):
        net = resnet.make(axis=dist.DATA, depth=18, width=0.125, stem="cifar", bn="rows=8", zero_init=False)
        return gradient(simclr(net, "rows=8"), views(32, 16), 2, microbatches)
    assert_same_gradient(run(4), run(1))


@pytest.mark.slow
def test_statistics_over_all_rows_of_a_pass_are_not_those_of_the_batch():
    """What the groups are declared for: without them, the pieces' statistics are another function."""
    def run(microbatches):
        net = convnet.make(axis=dist.DATA, channels=(16, 16), bn="global")
        return gradient(simclr(net, "global"), views(32, 16), 1, microbatches)
    with pytest.raises(AssertionError):
        assert_same_gradient(run(4), run(1), tolerance=1e-2)


@pytest.mark.slow
def test_a_vision_transformer():
    def run(microbatches):
        net = vit.make(axis=dist.DATA, width=32, depth=2, heads=2, patch=4, image=16)
        return gradient(simclr(net, "rows=8"), views(32, 16), 1, microbatches)
    assert_same_gradient(run(4), run(1))


def normalised(net):
    """The net, with batch normalisation by groups of four rows at its end."""
    module = BatchNorm("rows=4", dist.DATA)

    def init(key, x):
        params, stats = net.init(key, x)
        shape = jax.eval_shape(lambda x: net.apply(params, stats, x, train=False)[0]["pooled"], x)
        own = module.init(key, jnp.zeros(shape.shape), False)
        return {"net": params, "bn": own["params"]}, {"net": stats, "bn": own["batch_stats"]}

    def apply(params, stats, x, *, train, **given):
        out, inner = net.apply(params["net"], stats["net"], x, train=train, **given)
        variables = {"params": params["bn"], "batch_stats": stats["bn"]}
        y, changed = module.apply(variables, out["pooled"], train, mutable=["batch_stats"])
        return {**out, "pooled": y}, {"net": inner, "bn": changed["batch_stats"]}
    return Net(init, apply)


@pytest.mark.parametrize("name", ["simclr"] + [pytest.param(n, marks=pytest.mark.slow) for n in METHODS if n != "simclr"])
def test_every_method_with_batch_statistics(name):
    toy = TOYS[name]
    # MoCo's shuffle deals rows among those of a piece, so that groups are others by intent.
    spec = toy["spec"] | ({"shuffle": False} if name == "moco" else {})
    nets = {role: normalised(net) for role, net in toy["nets"]().items()}
    method = names.make("methods", {"name": name, **spec}, nets, **RUN)
    whole, pieces = (gradient(method, toy["batch"], 1, microbatches) for microbatches in (1, 2))
    assert_same_gradient(pieces, whole)
    changed = jax.tree.map(lambda a, b: a.shape == b.shape and bool(np.isfinite(a).all()), pieces[2], whole[2])
    assert all(jax.tree.leaves(changed))  # the running statistics moved twice instead of once, which the gradient does not see
