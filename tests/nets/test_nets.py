"""ResNet, ConvNet and the projection head: sizes, initial values, precision, layouts and messages."""
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from simclr_jax import dist, names
from simclr_jax.errors import UsageError
from simclr_jax.nets import convnet, mlp, resnet

TINY = dict(depth=18, width=1 / 16, stem="cifar")


def count(net, size=64):
    params, _ = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((2, size, size, 3)))
    return sum(math.prod(p.shape) for p in jax.tree.leaves(params))


# torchvision's parameter counts without the classifier. SimCLR's 1x, 2x and 4x have 24, 94 and 375 million.
TORCH = {18: 11_176_512, 34: 21_284_672, 50: 23_508_032, 101: 42_500_160, 152: 58_143_808}


@pytest.mark.parametrize("depth", [18, 50, *(pytest.param(d, marks=pytest.mark.slow) for d in (34, 101, 152))])
def test_parameter_counts_are_the_published(depth):
    assert count(resnet.make(depth=depth, layout="torch")) == TORCH[depth]
    projected = 64 * 64 + 2 * 64 if depth < 50 else 0  # SimCLR projects the first shortcut of basic blocks too
    assert count(resnet.make(depth=depth)) == TORCH[depth] + projected


@pytest.mark.parametrize("width, millions", [(2, 94), pytest.param(4, 375, marks=pytest.mark.slow)])
def test_wider_nets_have_the_published_size(width, millions):
    assert round(count(resnet.make(depth=50, width=width)) / 1e6) == millions
    out = jax.eval_shape(lambda k, x: (n := resnet.make(depth=50, width=width)).apply(*n.init(k, x), x, train=False)[0],
                         jax.random.key(0), jnp.zeros((2, 64, 64, 3)))
    assert out["pooled"].shape == (2, 2048 * width) and out["tokens"].shape == (2, 4, 2048 * width)


def test_initial_values_of_a_resnet():
    """Keras' VarianceScaling(): fan-in, variance 1/fan-in, cut off at two standard deviations; last scale 0."""
    net = resnet.make(depth=18, width=0.5, stem="cifar")
    init = jax.jit(lambda key: net.init(key, jnp.zeros((2, 32, 32, 3)))[0])
    params, other = init(jax.random.key(0)), init(jax.random.key(1))
    for stage, block, conv in ((1, 2, 1), (3, 1, 1), (4, 2, 2)):
        kernel = np.asarray(params[f"stage{stage}"][f"block{block}"][f"conv{conv}"]["kernel"])
        sd = 1 / math.sqrt(math.prod(kernel.shape[:3]))
        assert abs(kernel.std() / sd - 1) < 0.02 and abs(kernel.mean() / sd) < 0.02
        assert 2.2 < np.abs(kernel).max() / sd < 2 / 0.8796 + 1e-4
    block = params["stage2"]["block1"]
    assert np.all(block["bn1"]["scale"] == 1) and np.all(block["bn2"]["scale"] == 0)
    assert np.all(block["downsample"]["bn"]["scale"] == 1)
    ones = resnet.make(**TINY, zero_init=False).init(jax.random.key(0), jnp.zeros((2, 32, 32, 3)))[0]
    assert np.all(ones["stage2"]["block1"]["bn2"]["scale"] == 1)
    kernels = [np.asarray(v).ravel()[:8] for p, v in jax.tree_util.tree_leaves_with_path(params) if v.ndim == 4]
    kernels = [k / np.linalg.norm(k) for k in kernels]
    assert len({tuple(np.round(k, 4)) for k in kernels}) == len(kernels)  # no two kernels share their draws
    assert not np.any(np.asarray(other["stem"]["conv"]["kernel"]) == np.asarray(params["stem"]["conv"]["kernel"]))


def test_initial_values_of_the_head():
    params, _ = mlp.make(layers=3).init(jax.random.key(0), jnp.zeros((2, 256)))
    kernel = np.asarray(params["layer1"]["dense"]["kernel"])
    assert kernel.shape == (256, 256) and params["layer3"]["dense"]["kernel"].shape == (256, 128)
    assert abs(kernel.std() / 0.01 - 1) < 0.02 and np.abs(kernel).max() > 0.035  # normal, with its tails
    assert set(params["layer1"]) == {"dense", "bn"} and set(params["layer1"]["dense"]) == {"kernel"}
    assert set(params["layer3"]["bn"]) == {"scale"}


def test_heads_without_a_last_norm_and_with_a_hidden_width():
    head = mlp.make(layers=2, hidden=24, out=8, last_bn=False)
    x = jax.random.normal(jax.random.key(1), (6, 12))
    params, stats = head.init(jax.random.key(0), x)
    assert params["layer1"]["dense"]["kernel"].shape == (12, 24) and set(stats) == {"layer1"}
    assert jax.tree.map(jnp.shape, params["layer2"]) == {"dense": {"kernel": (24, 8), "bias": (8,)}}
    h = x @ params["layer1"]["dense"]["kernel"]
    h = jax.nn.relu((h - h.mean(0)) / jnp.sqrt(h.var(0) + 1e-5))
    out, _ = jax.jit(lambda x: head.apply(params, stats, x, train=True))(x)
    np.testing.assert_allclose(out["pooled"], h @ params["layer2"]["dense"]["kernel"], rtol=1e-4, atol=1e-6)
    bare, _ = mlp.make(layers=2, hidden=24, out=8, last_bn=False, last_bias=False).init(jax.random.key(0), x)
    assert set(bare["layer2"]["dense"]) == {"kernel"}  # BYOL's
    one = mlp.make(layers=1, out=8, last_bn=False)
    params, stats = one.init(jax.random.key(0), x)
    assert stats == {} and one.apply(params, stats, x, train=True)[1] == {}


@pytest.mark.parametrize("make", [
    lambda dtype: convnet.make(channels=(8, 16), dtype=dtype),
    pytest.param(lambda dtype: resnet.make(**TINY, zero_init=False, dtype=dtype), marks=pytest.mark.slow)])
def test_bf16_computes_in_bf16_and_keeps_f32(make):
    x = jax.random.uniform(jax.random.key(1), (8, 16, 16, 3))
    full, half = make("float32"), make("bfloat16")
    params, stats = full.init(jax.random.key(0), x)
    assert {p.dtype for p in jax.tree.leaves(half.init(jax.random.key(0), x))} == {jnp.dtype("float32")}
    a, _ = jax.jit(lambda p: full.apply(p, stats, x, train=True))(params)
    b, after = jax.jit(lambda p: half.apply(p, stats, x, train=True))(params)
    assert {v.dtype for v in jax.tree.leaves((b, after))} == {jnp.dtype("float32")}
    error = float(jnp.linalg.norm(a["pooled"] - b["pooled"]) / jnp.linalg.norm(a["pooled"]))
    assert 1e-4 < error < 0.05, error  # below the first, nothing ran in bf16


def test_layouts_pad_the_max_pool_differently():
    """A net of the stem alone would show it: the pool's windows start at 0 (SAME on an even side) or at -1."""
    delta = jnp.zeros((7, 7, 1, 1)).at[3, 3].set(1.0)
    four = [(7, 7), (7, 8), (8, 7), (8, 8)]
    # One bright pixel, which the delta kernel leaves at [16, 16]; between 2 and 3 zeros its taps meet odd pixels.
    for layout, at, where in (("simclr", 32, four), ("torch", 32, [(8, 8)]), ("haiku", 33, four)):
        stem = resnet.Stem(1, "imagenet", layout, resnet.Parts("local", None, jnp.float32, layout == "haiku"))
        x = jnp.zeros((1, 64, 64, 1)).at[0, at, at, 0].set(1.0)
        variables = {"params": {"conv": {"kernel": delta}, "bn": {"scale": jnp.ones(1), "bias": jnp.zeros(1)}},
                     "batch_stats": {"bn": {"mean": jnp.zeros(1), "var": jnp.ones(1)}}}
        out = stem.apply(variables, x, train=False)
        assert out.shape == (1, 16, 16, 1)
        assert [tuple(map(int, i)) for i in np.argwhere(np.asarray(out[0, :, :, 0]) > 0)] == where


@pytest.mark.parametrize("size, tokens", [(8, 4), (16, 4), (28, 16), (32, 16), (64, 64)])
def test_convnet_sizes(size, tokens):
    net = convnet.make()
    out = jax.eval_shape(lambda k, x: net.apply(*net.init(k, x), x, train=False)[0], jax.random.key(0),
                         jnp.zeros((2, size, size, 3)))
    assert out["pooled"].shape == (2, 128) and out["tokens"].shape == (2, tokens, 128)


@pytest.mark.parametrize("stride, size", [(1, (8, 8)), (2, (8, 6)), (2, (7, 5))])
def test_convnets_products_are_the_convolution(stride, size):
    conv = convnet.Conv(6, stride, jnp.float32)
    x = jax.random.normal(jax.random.key(0), (2, *size, 3))
    kernel = jax.random.normal(jax.random.key(1), (3, 3, 3, 6))
    want = jax.lax.conv_general_dilated(x, kernel, (stride, stride), ((1, 1), (1, 1)),
                                        dimension_numbers=("NHWC", "HWIO", "NHWC"))
    np.testing.assert_allclose(conv.apply({"params": {"kernel": kernel}}, x), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("devices", [2, pytest.param(8, marks=pytest.mark.slow)])
def test_a_net_on_many_devices_is_the_net_on_one(mesh, devices):
    """Outputs, statistics (which JAX checks to be replicated) and the gradient of the mean over rows."""
    x = jax.random.uniform(jax.random.key(1), (16, 8, 8, 3))
    w = jax.random.normal(jax.random.key(2), (16, 12))

    def run(axis):
        net, head = convnet.make(channels=(16,), axis=axis), mlp.make(layers=2, out=12, axis=axis)
        params, stats = net.init(jax.random.key(0), x)
        hparams, hstats = head.init(jax.random.key(3), jnp.zeros((2, 16)))

        def step(params, x, w):
            def loss(params):
                h, after = net.apply(params[0], stats, x, train=True)
                z, hafter = head.apply(params[1], hstats, h["pooled"], train=True)
                return dist.pmean(jnp.mean(jnp.tanh(z["pooled"]) * w), axis), (z["pooled"], (after, hafter))
            (_, (z, after)), grads = jax.value_and_grad(loss, has_aux=True)(params)
            return z, after, grads
        if axis:
            step = jax.shard_map(step, mesh=mesh(devices), in_specs=(P(), P(axis), P(axis)),
                                 out_specs=(P(axis), P(), P()))
        return jax.jit(step)((params, hparams), x, w)

    one, many = run(None), run(dist.DATA)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(many), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5 * np.max(np.abs(a)) + 1e-9)


def test_init_is_jittable_and_reads_only_the_shape():
    x = jax.random.uniform(jax.random.key(1), (4, 16, 16, 3))
    net = convnet.make(channels=(4, 8))
    a = net.init(jax.random.key(0), x)
    b = jax.jit(net.init)(jax.random.key(0), jnp.zeros_like(x))
    jax.tree.map(np.testing.assert_array_equal, a, b)
    jax.tree.map(np.testing.assert_array_equal, a, net.init(jax.random.key(0), jax.ShapeDtypeStruct(x.shape, x.dtype)))


@pytest.mark.parametrize("spec, message", [
    (dict(name="resnet", depth=20), "depth=20, wanted one of 18, 34, 50, 101, 152, 200"),
    (dict(name="resnet", width=0.3), "width=0.3, wanted a factor"),
    (dict(name="resnet", width=0), "width=0, wanted a factor"),
    (dict(name="resnet", stem="cifar10"), "stem='cifar10', wanted imagenet or cifar"),
    (dict(name="resnet", widths=(8, 8)), "widths=(8, 8) width=1, wanted five whole numbers"),
    (dict(name="resnet", widths=(8, 8, 8, 8, 8), width=2), "width=2, wanted five whole numbers above 0"),
    (dict(name="resnet", layout="keras"), "layout='keras', wanted simclr, torch or haiku"),
    (dict(name="resnet", dtype="float16"), "dtype='float16', wanted float32 or bfloat16"),
    (dict(name="resnet", bn="sync"), "nets/resnet: bn='sync', wanted"),
    (dict(name="mlp", layers=4), "layers=4, wanted 1, 2 or 3"),
    (dict(name="mlp", out=0), "out=0, wanted out above 0"),
    (dict(name="mlp", bn="rows="), "nets/mlp: bn='rows=', wanted"),
    (dict(name="convnet", channels=()), "wanted whole numbers above 0"),
    (dict(name="convnet", channels=(8, 0)), "wanted whole numbers above 0"),
    (dict(name="convnet", bn="x"), "nets/convnet: bn='x', wanted"),
])
def test_what_a_user_can_get_wrong_is_one_line(spec, message):
    with pytest.raises(UsageError) as e:
        names.make("nets", spec, axis=None)
    assert message in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize("spec, shape, message", [
    (dict(name="resnet"), (2, 28, 28, 3), "images of 28x28 are too small for stem='imagenet'.*set stem='cifar'"),
    (dict(name="resnet", stem="cifar"), (2, 7, 9, 3), "images of 7x9 are too small for stem='cifar'"),
    (dict(name="resnet"), (2, 32, 32), "wants images"),
    (dict(name="convnet"), (2, 8, 8), "wants images"),
    (dict(name="mlp"), (2, 8, 8), "wants features"),
])
def test_inputs_of_a_wrong_shape_are_one_line(spec, shape, message):
    net = names.make("nets", spec, axis=None)
    with pytest.raises(UsageError, match=message):
        net.init(jax.random.key(0), jnp.zeros(shape))
