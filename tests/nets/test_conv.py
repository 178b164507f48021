"""Our convolution and max-pool against XLA's: values and gradients here, the program itself on a TPU."""
import collections
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax
from jax.sharding import PartitionSpec as P

from simclr_jax.nets import conv as ours, resnet
from simclr_jax.nets.linen import fan_in


def plain(x, kernel, stride, pad):
    return lax.conv_general_dilated(x, kernel, (stride, stride), [(pad, pad)] * 2,
                                    dimension_numbers=("NHWC", "HWIO", "NHWC"))


def program(f, *args, platform="cpu"):
    """{operation: how often} in what is handed to the compiler."""
    lowered = jax.jit(f).trace(*args).lower(lowering_platforms=(platform,)).as_text()
    return collections.Counter(re.findall(r"stablehlo\.(\w+)", lowered))


def with_gradients(conv, stride, pad):
    def f(x, kernel, g):
        y, pull = jax.vjp(lambda x, kernel: conv(x, kernel, stride, pad), x, kernel)
        return y, *pull(g)
    return jax.jit(f)


def arrays(*shapes, dtype):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes]


CASES = {  # rows, height, width, channels in and out; kernel, stride, pad
    "1x1": ((3, 5, 7, 4, 6), 1, 1, 0),
    "1x1 strided": ((3, 5, 8, 4, 6), 1, 2, 0),
    "1x1 by 3": ((2, 7, 8, 3, 5), 1, 3, 0),
    "1x1 padded": ((2, 4, 4, 3, 5), 1, 2, 1),
    "3x3": ((2, 5, 6, 3, 4), 3, 1, 1),
    "3x3 strided": ((2, 6, 6, 3, 4), 3, 2, 1),
    "odd sides": ((2, 7, 9, 3, 4), 3, 2, 1),
    "3x3 by 3": ((2, 8, 10, 3, 4), 3, 3, 1),
    "unpadded": ((2, 9, 6, 3, 4), 3, 2, 0),
    "padded by 2": ((2, 5, 5, 3, 4), 3, 2, 2),
    "smaller than its stride": ((2, 9, 9, 3, 4), 2, 4, 0),
    "even": ((2, 8, 7, 3, 4), 2, 2, 1),
    "5x5": ((2, 9, 8, 3, 4), 5, 2, 2),
    "7x7": ((2, 14, 13, 3, 4), 7, 2, 3),
    "pieces": ((6, 21, 20, 3, 5), 3, 1, 1),
    "pieces, strided": ((8, 40, 39, 2, 3), 3, 2, 1),
    "many small images": ((96, 4, 4, 2, 3), 3, 1, 1),
    "rows that do not divide": ((7, 28, 28, 2, 3), 3, 1, 1),
}


def later(*case):
    """A case for `make test-all` alone."""
    return pytest.param(*case, marks=pytest.mark.slow)


def arguments(case, dtype):
    """x, kernel, a cotangent of the output; stride, pad."""
    (b, h, w, c, d), k, stride, pad = CASES[case]
    rows, columns = ((n + 2 * pad - k) // stride + 1 for n in (h, w))
    return arrays((b, h, w, c), (k, k, c, d), (b, rows, columns, d), dtype=dtype), stride, pad


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-5), later("float64", 1e-12)])
def test_values_and_gradients_are_those_of_the_plain_convolution(case, dtype, tolerance):
    with jax.enable_x64(dtype == "float64"):
        args, stride, pad = arguments(case, dtype)
        for got, want in zip(with_gradients(ours.conv, stride, pad)(*args), with_gradients(plain, stride, pad)(*args)):
            assert got.dtype == want.dtype == dtype and got.shape == want.shape
            assert np.max(np.abs(got - want)) <= tolerance * np.max(np.abs(want))


@pytest.mark.parametrize("case, has", [("1x1", {"dot_general": 3, "convolution": 0}), ("pieces", {"while": 1}),
                                       ("3x3 strided", {"convolution": 6})])
def test_a_processor_gets_products_pieces_and_residues(case, has):
    args, stride, pad = arguments(case, jnp.float32)
    found = program(with_gradients(ours.conv, stride, pad), *args)
    assert {name: found[name] for name in has} == has


@pytest.mark.parametrize("how", [dict(depth=18, stem="cifar"), later(dict(depth=50)), dict(depth=18, dtype="bfloat16")])
def test_elsewhere_the_program_is_the_plain_one(how, monkeypatch):
    """Operations of a ResNet's forward and backward pass for a TPU; a choice by platform leaves a `case` of one branch
    and its constants, which XLA takes out."""
    def operations():
        net = resnet.make(width=1 / 16, **how)
        x = jax.ShapeDtypeStruct((4, 64, 64, 3), jnp.float32)
        params, stats = jax.eval_shape(net.init, jax.random.key(0), x)

        def loss(params, stats, x):
            out, after = net.apply(params, stats, x, train=True)
            return jnp.sum(out["pooled"]), after
        found = program(jax.value_and_grad(loss, argnums=(0, 2), has_aux=True), params, stats, x, platform="tpu")
        return {name: n for name, n in found.items() if name not in ("case", "constant", "return")}
    mine = operations()
    monkeypatch.setattr(ours, "conv", plain)
    monkeypatch.setattr(resnet, "max_pool", lambda x, pads: nn.max_pool(x, (3, 3), (2, 2), pads))
    theirs = operations()
    assert mine == theirs and "dot_general" not in mine
    assert mine["convolution"] == 3 * {18: 21, 50: 53}[how["depth"]]  # SimCLR's layout projects every first shortcut


def test_the_module_is_linens():
    """The same parameters and the same values as flax.linen's Conv, in f32 and in bf16."""
    x, = arrays((2, 9, 9, 3), dtype=jnp.float32)
    for dtype in (jnp.float32, jnp.bfloat16):
        mine = ours.Conv(8, 3, 2, fan_in(1.0), dtype)
        linen = nn.Conv(8, (3, 3), (2, 2), ((1, 1), (1, 1)), use_bias=False, kernel_init=fan_in(1.0), dtype=dtype)
        variables = mine.init(jax.random.key(0), x)
        assert jax.tree.all(jax.tree.map(np.array_equal, variables, linen.init(jax.random.key(0), x)))
        got, want = mine.apply(variables, x), linen.apply(variables, x)
        assert got.dtype == want.dtype == dtype
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("window, stride, sides", [
    (7, 2, (14, 13)), (3, 2, (6, 9)), later(1, 2, (6, 5)), later(3, 1, (4, 5))])
def test_same_padding_is_linens(window, stride, sides):
    """On even sides the odd zero is below and right. Values and gradients, in f64."""
    with jax.enable_x64(True):
        x, kernel = arrays((2, *sides, 3), (window, window, 3, 4), dtype=jnp.float64)
        results = []
        for conv in (ours.Conv(4, window, stride, fan_in(1.0), jnp.float64, same=True),
                     nn.Conv(4, (window,) * 2, (stride,) * 2, "SAME", use_bias=False, dtype=jnp.float64)):
            y, pull = jax.vjp(lambda x, k: conv.apply({"params": {"kernel": k}}, x), x, kernel)
            results.append((y, *pull(jnp.cos(jnp.arange(y.size)).reshape(y.shape))))
        for got, want in zip(*results):
            np.testing.assert_allclose(got, want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kernel, stride", [(1, 1), later(1, 2), later(3, 1), (3, 2)])
@pytest.mark.parametrize("typed", ["kernel", "x", "both"])
def test_gradients_of_replicated_and_of_varying_arrays(mesh, kernel, stride, typed):
    """One of the two may be replicated over the mesh: its gradient is then the sum over the devices."""
    x, k = arrays((8, 20, 20, 3), (kernel, kernel, 3, 4), dtype=jnp.float32)
    specs = {"kernel": (P("data"), P()), "x": (P(), P("data")), "both": (P("data"), P("data"))}[typed]
    if typed != "kernel":
        k = jnp.stack([k, 2 * k])
    pad = kernel // 2

    def loss(conv, x, k):
        return jnp.sum(jnp.square(conv(x, k.reshape(kernel, kernel, 3, 4), stride, pad)))

    def shard(x, k):
        return jax.grad(lambda x, k: lax.psum(loss(ours.conv, x, k), "data"), argnums=(0, 1))(x, k)

    def whole(x, k):
        xs = [x, x] if typed == "x" else jnp.split(x, 2)
        return sum(loss(plain, *rows) for rows in zip(xs, [k, k] if typed == "kernel" else k))
    got = jax.jit(jax.shard_map(shard, mesh=mesh(2), in_specs=specs, out_specs=specs))(x, k)
    for mine, want in zip(got, jax.jit(jax.grad(whole, argnums=(0, 1)))(x, k)):
        assert np.max(np.abs(mine - want)) <= 1e-5 * np.max(np.abs(want))


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("pads", [((1, 1), (1, 1)), ((0, 1), (0, 1)), ((0, 1), (1, 1))])
@pytest.mark.parametrize("sides", [later((8, 8)), (9, 7), later((10, 13))])
def test_max_pool_with_ties(dtype, pads, sides):
    """After a ReLU most windows hold several zeros: the gradient goes where XLA lets it go. Whole numbers, so that the
    order of sums changes nothing."""
    rng = np.random.default_rng(0)
    with jax.enable_x64(dtype == "float64"):
        x = jnp.maximum(jnp.asarray(rng.integers(-3, 3, (2, *sides, 5)), dtype), 0)
        plain = lambda x: nn.max_pool(x, (3, 3), (2, 2), pads)
        y = plain(x)
        g = jnp.asarray(rng.integers(1, 9, y.shape), dtype)
        out, pull = jax.vjp(lambda x: ours.max_pool(x, pads), x)
        np.testing.assert_array_equal(out, y)
        got, want = jax.jit(pull)(g)[0], jax.vjp(plain, x)[1](g)[0]
        assert got.dtype == want.dtype == dtype
        np.testing.assert_array_equal(got, want)
