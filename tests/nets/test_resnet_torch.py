"""The numbers of timm's ResNets, named as torchvision's: evaluation, training, statistics after it, gradients.

Gradients are compared in f64: in f32, rounding puts ReLUs and max-pools on their other side.
"""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nets import weights
from simclr_jax.nets import resnet

LAYERS = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3)}
HOW = dict(layout="torch", widths=(64, 8, 16, 24, 32))


@functools.cache
def oracle(depth, dtype):
    """(the original's numbers, tables, evaluation, training, our gradients) of one run in dtype."""
    z = weights.Oracle(f"timm_resnet{depth}")
    tables = weights.torch_resnet(LAYERS[depth], 3 if depth == 50 else 2)
    net = resnet.make(depth=depth, **HOW)
    assert not weights.unused(z.weights, *tables)
    with jax.enable_x64(dtype == "float64"):
        cast = lambda a: jnp.asarray(a, dtype)
        params, stats = (jax.tree.map(cast, weights.convert(z.weights, t)) for t in tables)
        x = cast(z.images("in/pixel_values"))
        init = jax.eval_shape(net.init, jax.random.key(0), jax.ShapeDtypeStruct(x.shape, jnp.float32))
        assert jax.tree.map(jnp.shape, init) == jax.tree.map(jnp.shape, (params, stats))

        def loss(params):
            h, after = net.apply(params, stats, x, train=True)
            return sum(jnp.mean(jnp.square(h[k])) for k in ("pooled", "tokens")), (h, after)

        evaluated = jax.jit(lambda p: net.apply(p, stats, x, train=False)[0])(params)
        trained = grads = None
        if dtype == "float64":
            (_, trained), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
        evaluated, trained, grads = jax.tree.map(np.asarray, (evaluated, trained, grads))
    return z, tables, evaluated, trained, grads


def same(ours, z, case, tolerance):
    for key, theirs in (("pooled", "pooled"), ("tokens", "last")):
        want = z.arrays[f"{case}out/{theirs}"]
        want = want if want.ndim == 2 else want.reshape(*want.shape[:2], -1).transpose(0, 2, 1)
        np.testing.assert_allclose(ours[key], want, rtol=0, atol=tolerance, err_msg=key)


@pytest.mark.parametrize("depth, dtype", [(18, "float32"), *(pytest.param(d, t, marks=pytest.mark.slow) for d, t in (
    (18, "float64"), (50, "float32"), (50, "float64")))])
def test_evaluation_is_the_originals(depth, dtype):
    z, _, evaluated, _, _ = oracle(depth, dtype)
    assert evaluated["pooled"].dtype == dtype
    same(evaluated, z, "", 2e-5 if dtype == "float32" else 1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("depth", LAYERS)
def test_training_is_the_originals(depth):
    """Outputs, gradients, and statistics after: torch keeps the unbiased variance, ours is the biased one."""
    z, (of_params, of_stats), _, (trained, after), grads = oracle(depth, "float64")
    same(trained, z, "train/", 1e-9)
    weights.same_gradients(weights.flat(grads), z.gradients(of_params, "train"), 1e-6)
    after, before = weights.flat(after), weights.flat(weights.convert(z.weights, of_stats))
    theirs = weights.flat(weights.convert({k[6:]: v for k, v in z.arrays.items() if k.startswith("after/")}, of_stats))
    assert after.keys() == theirs.keys()
    for name, ours in after.items():
        if name.endswith("var"):
            kept = np.float32(0.9) * before[name]
            ours = kept + (ours - kept) * (1 + 1 / (count(name, depth) - 1))
        np.testing.assert_allclose(ours, theirs[name], rtol=2e-6, atol=2e-6, err_msg=name)


def count(name, depth):
    """How many numbers a channel of this normalisation is the variance of: four images of 64 x 64."""
    if name.startswith("stem"):
        return 4 * 32 * 32
    stage, block, layer = name.split("/")[:3]
    side = 16 // 2 ** (int(stage[-1]) - 1)
    # The stride is on the second convolution of a bottleneck, and not in the first stage.
    before = depth == 50 and block == "block1" and layer == "bn1" and stage != "stage1"
    return 4 * (2 * side if before else side) ** 2
