"""CLIP's ResNets: open_clip's numbers in evaluation and training, published sizes, devices and messages."""
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from nets import weights
from simclr_jax import dist, names
from simclr_jax.errors import UsageError
from simclr_jax.nets import modified_resnet

LAYERS = (1, 2, 1, 1)
TINY = dict(layers=LAYERS, width=8, heads=8, out=24, image=64)


@functools.cache
def oracle(case, dtype):
    """(the original's numbers, our pooled vectors, our gradients of their mean square, the table)."""
    z, (table, statistics) = weights.Oracle("openclip_modified_resnet"), weights.openai_resnet(LAYERS)
    assert not weights.unused(z.weights, table, statistics)
    net = modified_resnet.make(**TINY)
    with jax.enable_x64(dtype == "float64"):
        params, stats = (jax.tree.map(lambda a: jnp.asarray(a, dtype), weights.convert(z.weights, t))
                         for t in (table, statistics))
        x = jnp.asarray(z.images("in/image"), dtype)
        init = jax.eval_shape(net.init, jax.random.key(0), jax.ShapeDtypeStruct(x.shape, jnp.float32))
        assert jax.tree.map(jnp.shape, init) == jax.tree.map(jnp.shape, (params, stats))

        def loss(params):
            h = net.apply(params, stats, x, train=case == "train")[0]["pooled"]
            return jnp.mean(h ** 2), h

        grads, h = jax.jit(jax.grad(loss, has_aux=True))(params)
        return z, np.asarray(h), weights.flat(jax.tree.map(np.asarray, grads)), table


# Not the gradients of training in f32: one of 1,536 units of a last layer is 5.5e-7 below 0, and rounding puts its ReLU
# on the other side, which moves gradients by 5%. In f64 it stays.
CASES = [("eval", "float32"), *(
    pytest.param(*how, marks=pytest.mark.slow) for how in (("train", "float64"), ("eval", "float64")))]


@pytest.mark.parametrize("case, dtype", [*CASES, pytest.param("train", "float32", marks=pytest.mark.slow)])
def test_outputs_are_the_originals(case, dtype):
    z, h, _, _ = oracle(case, dtype)
    assert h.dtype == dtype
    np.testing.assert_allclose(h, z.arrays[f"{case}/out/image"], rtol=0, atol=2e-5 if dtype == "float32" else 1e-9)


@pytest.mark.parametrize("case, dtype", CASES)
def test_gradients_are_the_originals(case, dtype):
    z, _, grads, table = oracle(case, dtype)
    weights.same_gradients(grads, z.gradients(table, case), 1e-3 if dtype == "float32" else 1e-6)


# open_clip's image towers of these names.
COUNTS = {"RN50": (dict(), 38_316_896), "RN101": (dict(layers=(3, 4, 23, 3), out=512), 56_259_936),
          "RN50x4": (dict(layers=(4, 6, 10, 6), width=80, heads=40, out=640, image=288), 87_137_080),
          "RN50x64": (dict(layers=(3, 15, 36, 10), width=128, heads=64, out=1024, image=448), 420_380_352)}


@pytest.mark.parametrize("name", ["RN50", *(pytest.param(n, marks=pytest.mark.slow) for n in list(COUNTS)[1:])])
def test_parameter_counts_are_the_published(name):
    how, published = COUNTS[name]
    net = modified_resnet.make(**how)
    params, _ = jax.eval_shape(net.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32))
    assert sum(math.prod(p.shape) for p in jax.tree.leaves(params)) == published


@pytest.mark.slow
def test_initial_values():
    net = modified_resnet.make(layers=(1, 1, 1, 1), width=8, heads=8, out=64, image=64)
    params, stats = jax.jit(lambda key: net.init(key, jnp.zeros((1, 64, 64, 3))))(jax.random.key(0))
    flat = weights.flat(params)
    for name, v in flat.items():
        std = math.prod(v.shape[:-1]) ** -0.5
        if name.endswith("kernel"):
            pool = name.startswith("pool")
            if v.size > 2000:
                assert abs(np.std(v) / (std if pool else std / 3 ** 0.5) - 1) < 0.05, name
                assert (np.abs(v).max() / np.std(v) > 3) == pool, name  # normal in the pool, uniform elsewhere
        elif name.endswith("scale"):
            assert np.all(v == (0 if "block" in name and name.endswith("bn3/scale") else 1)), name
    assert abs(np.std(flat["pool/positions/embedding"]) * 16 - 1) < 0.1
    assert {k.split("/")[-1] for k in weights.flat(stats)} == {"mean", "var"}


@pytest.mark.slow
def test_other_sizes_interpolate_the_positions_and_bf16_keeps_f32():
    net, half = modified_resnet.make(**TINY), modified_resnet.make(**TINY, dtype="bfloat16")
    z, tables = weights.Oracle("openclip_modified_resnet"), weights.openai_resnet(LAYERS)
    params, stats = (weights.convert(z.weights, t) for t in tables)
    x = z.images("in/image")[:2]
    wide = jax.eval_shape(lambda x: net.apply(params, stats, x, train=False)[0], jnp.zeros((2, 96, 128, 3)))
    assert wide["pooled"].shape == (2, 24) and wide["tokens"].shape == (2, 12, 256)
    a, b = (jax.jit(lambda x, n=n: n.apply(params, stats, x, train=False)[0])(x) for n in (net, half))
    for name in a:
        error = float(jnp.linalg.norm(a[name] - b[name]) / jnp.linalg.norm(a[name]))
        assert b[name].dtype == jnp.float32 and 1e-4 < error < 0.05, (name, error)


@pytest.mark.slow
def test_devices_share_batch_statistics(mesh):
    x = jax.random.normal(jax.random.key(1), (8, 32, 32, 3))

    def run(axis):
        net = modified_resnet.make(**dict(TINY, image=32), axis=axis)
        params, stats = net.init(jax.random.key(0), x)

        def step(params, x):
            h, after = net.apply(params, stats, x, train=True)
            return h["pooled"], after
        if axis:
            step = jax.shard_map(step, mesh=mesh(4), in_specs=(P(), P(axis)), out_specs=(P(axis), P()))
        return jax.jit(step)(params, x)

    for a, b in zip(jax.tree.leaves(run(None)), jax.tree.leaves(run(dist.DATA)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("how, message", [
    (dict(layers=(3, 4, 6)), "layers=(3, 4, 6), wanted four whole numbers above 0"),
    (dict(layers=(3, 4, 6, 0)), "layers=(3, 4, 6, 0), wanted four"),
    (dict(width=7), "width=7, wanted an even number"),
    (dict(heads=30), "heads=30 does not divide the 2048 channels"),
    (dict(out=0), "out=0, wanted a whole number above 0"),
    (dict(image=230), "image=230, wanted a multiple of 32"),
    (dict(bn="sync"), "nets/modified_resnet: bn='sync', wanted"),
    (dict(dtype="f16"), "dtype='f16', wanted float32 or bfloat16"),
])
def test_what_a_user_can_get_wrong_is_one_line(how, message):
    with pytest.raises(UsageError) as e:
        names.make("nets", dict(name="modified_resnet", **how), axis=None)
    assert message in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize("shape, message", [((2, 64, 48, 3), "images of 64x48, wanted sides that are multiples of 32"),
                                            ((2, 64, 64), "wants images")])
def test_inputs_of_a_wrong_shape_are_one_line(shape, message):
    with pytest.raises(UsageError, match=message):
        modified_resnet.make(**TINY).init(jax.random.key(0), jnp.zeros(shape))
