"""Vision transformers: the originals' numbers, published sizes, positions, and the ways to run the same blocks."""
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nets import weights
from simclr_jax import names
from simclr_jax.errors import UsageError
from simclr_jax.nets import convnet, linen, posemb, vit

TINY = dict(width=32, depth=2, heads=4, patch=8, image=32)
ORACLES = {  # how the net is made, its table, the original's outputs that are tokens
    "timm_vit": (dict(mlp=96), weights.timm_vit),
    "timm_vit_reg_ls": (dict(registers=4, position_on_class=False, layer_scale=1e-5), weights.timm_vit),
    "hf_dinov2": (dict(mlp=96, layer_scale=0.7), weights.hf_dinov2),
    "hf_dinov2_swiglu": (dict(mlp_kind="swiglu", mlp=48, layer_scale=0.7), weights.hf_dinov2_swiglu),
    "hf_vit": (dict(mlp=64, eps=1e-12, pool="pooler"), weights.hf_vit),
}


def mean_square(x):
    return jnp.mean(jnp.square(x))


@functools.cache
def oracle(name, dtype):
    """(the original's numbers, our outputs, our gradients, the table) of one run in dtype."""
    how, table = ORACLES[name]
    z, table = weights.Oracle(name), table(2)
    net = vit.make(**TINY, **how)
    with jax.enable_x64(dtype == "float64"):
        cast = lambda a: jnp.asarray(a, dtype)
        params = jax.tree.map(cast, weights.convert(z.weights, table))
        x = cast(z.images("in/pixel_values"))
        init = jax.eval_shape(net.init, jax.random.key(0), jax.ShapeDtypeStruct(x.shape, jnp.float32))
        assert jax.tree.map(jnp.shape, init) == (jax.tree.map(jnp.shape, params), {})

        def loss(params):
            h = net.apply(params, {}, x, train=True)[0]
            if name == "timm_vit":
                logits = h["pooled"] @ cast(z.weights["head.weight"]).T + cast(z.weights["head.bias"])
                out = {"tokens": h["tokens"], "logits": logits}
            elif name == "timm_vit_reg_ls":
                out = {"tokens": h["tokens"]}
            else:
                out = {"last": h["tokens"], "pooled": h["pooled"]}
            if name == "hf_dinov2":
                out["last_big"] = net.apply(params, {}, cast(z.images("in/pixel_values_big")), train=True)[0]["tokens"]
            return sum(map(mean_square, out.values())), out

        (_, out), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
        return z, jax.tree.map(np.asarray, out), weights.flat(jax.tree.map(np.asarray, grads)), table


FAST = [("hf_dinov2", "float32"), ("timm_vit_reg_ls", "float64")]
CASES = FAST + [pytest.param(n, d, marks=pytest.mark.slow) for n in ORACLES for d in ("float32", "float64")
                if (n, d) not in FAST]


@pytest.mark.parametrize("name, dtype", CASES)
def test_outputs_are_the_originals(name, dtype):
    z, out, _, table = oracle(name, dtype)
    assert weights.unused(z.weights, table) <= {"head.weight", "head.bias", "embeddings.mask_token"}
    assert set(out) == {k[4:] for k in z.arrays if k.startswith("out/")}
    for key, ours in out.items():
        # Transformers interpolates positions in f32 whatever the dtype.
        tolerance = 2e-5 if dtype == "float32" else 1e-6 if key == "last_big" else 1e-9
        assert ours.dtype == dtype
        np.testing.assert_allclose(ours, z.arrays[f"out/{key}"], rtol=0, atol=tolerance, err_msg=key)


@pytest.mark.parametrize("name, dtype", CASES)
def test_gradients_are_the_originals(name, dtype):
    """Of every parameter; f64 ones as far as the f32 that they were stored in."""
    z, _, grads, table = oracle(name, dtype)
    weights.same_gradients(grads, z.gradients(table), 1e-3 if dtype == "float32" else 1e-6)


# timm's nets of these names, without a classifier; g2 is its vit_giant_patch14_dinov2 at 224 pixels, with LayerScale.
COUNTS = {"Ti": (16, 5_524_416), "S": (16, 21_665_664), "B": (16, 85_798_656), "L": (16, 303_301_632),
          "H": (14, 630_764_800), "g": (14, 1_011_202_432), "g2": (14, 1_134_769_664)}


def count(net, x):
    return sum(math.prod(p.shape) for p in jax.tree.leaves(jax.eval_shape(net.init, jax.random.key(0), x)[0]))


@pytest.mark.parametrize("size", COUNTS)
def test_parameter_counts_are_the_published(size):
    patch, published = COUNTS[size]
    net = vit.make(size=size, patch=patch, scan=True, layer_scale=1e-5 if size == "g2" else 0.0)
    assert count(net, jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32)) == published


@pytest.mark.parametrize("remat, scan", [(True, True), pytest.param(True, False, marks=pytest.mark.slow),
                                         pytest.param(False, True, marks=pytest.mark.slow)])
def test_scan_and_remat_change_nothing(remat, scan):
    x, w = jax.random.normal(jax.random.key(1), (3, 16, 16, 3)), jax.random.normal(jax.random.key(2), (3, 16))
    keys = jax.random.split(jax.random.key(3), 3)
    how = dict(width=16, depth=3, heads=2, patch=8, image=16, layer_scale=0.5, drop_path=0.4)
    params = weights.init(vit.make(**how), x)

    def run(params, **more):
        net = vit.make(**how, **more)
        loss = lambda p: jnp.mean(net.apply(p, {}, x, train=True, key=keys)[0]["pooled"] * w)
        return jax.jit(jax.value_and_grad(loss))(params)

    value, grads = run(params)
    other, found = run(weights.stacked(params) if scan else params, remat=remat, scan=scan)
    np.testing.assert_allclose(other, value, rtol=1e-5)
    found = weights.flat(found)
    for name, want in weights.flat(weights.stacked(grads) if scan else grads).items():
        np.testing.assert_allclose(found[name], want, rtol=1e-4, atol=1e-6, err_msg=name)


def equations(jaxpr):
    inner = lambda v: v if hasattr(v, "eqns") else getattr(v, "jaxpr", None)
    count = len(jaxpr.eqns)
    for e in jaxpr.eqns:
        for value in e.params.values():
            for v in value if isinstance(value, (tuple, list)) else (value,):
                if hasattr(inner(v), "eqns"):
                    count += equations(inner(v))
    return count


def test_scan_keeps_what_is_compiled_flat_and_remat_what_is_kept():
    def traced(depth, **how):
        net = vit.make(width=16, depth=depth, heads=2, patch=8, image=16, **how)
        x = jnp.zeros((2, 16, 16, 3))
        params = jax.eval_shape(net.init, jax.random.key(0), x)[0]
        loss = lambda p: jnp.sum(net.apply(p, {}, x, train=True)[0]["pooled"] ** 2)
        return jax.make_jaxpr(jax.grad(loss))(params).jaxpr

    assert equations(traced(12, scan=True)) == equations(traced(3, scan=True))
    assert equations(traced(4)) > 1.6 * equations(traced(2))
    assert "remat" in str(traced(2, remat=True)) and "remat" not in str(traced(2))


def test_bf16_computes_in_bf16_and_keeps_f32():
    x = jax.random.normal(jax.random.key(1), (4, 32, 32, 3))
    full, half = (vit.make(**TINY, pool="map", out=8, dtype=d) for d in ("float32", "bfloat16"))
    params = weights.init(full, x)
    begun = jax.eval_shape(half.init, jax.random.key(0), x)[0]
    assert {p.dtype for p in jax.tree.leaves(begun)} == {jnp.dtype("float32")}
    a, b = (jax.jit(lambda p, n=n: n.apply(p, {}, x, train=True)[0])(params) for n in (full, half))
    for name in ("pooled", "tokens"):
        assert b[name].dtype == jnp.float32
        error = float(jnp.linalg.norm(a[name] - b[name]) / jnp.linalg.norm(a[name]))
        assert 1e-4 < error < 0.05, f"{name}: {error}"  # below the first, nothing ran in bf16


def test_interpolation():
    """Nothing at the same size; a straight line stays one away from the border; rows of weights sum to 1."""
    np.testing.assert_array_equal(posemb.bicubic(7, 7), np.eye(7))
    for old, new in ((4, 6), (4, 7), (16, 5), (3, 24)):
        w = posemb.bicubic(old, new)
        np.testing.assert_allclose(w.sum(1), 1, rtol=1e-12)
        at = (np.arange(new) + 0.5) * old / new - 0.5
        inside = (np.floor(at) >= 1) & (np.floor(at) + 2 <= old - 1)
        assert old < 4 or inside.any()
        np.testing.assert_allclose((w @ np.arange(old))[inside], at[inside], atol=0.1)
    table = jax.random.normal(jax.random.key(0), (1 + 12, 5))
    assert posemb.resize(table, 1, (3, 4), (3, 4)) is table
    grown = posemb.resize(table, 1, (3, 4), (6, 4))
    np.testing.assert_array_equal(grown[0], table[0])
    np.testing.assert_allclose(grown[1:].reshape(6, 4, 5), np.einsum("hy,yxd->hxd", posemb.bicubic(3, 6),
                                                                     table[1:].reshape(3, 4, 5)), atol=1e-6)


@pytest.mark.parametrize("how, new, expected", [  # of torch 2.13's interpolate(mode="bicubic")
    ("size", 3, (-1.722222, 0.0, 4.925926)), ("size", 5, (0.328, 1.888, 0.0, 5.452, 0.504)),
    ("offset", 3, (-1.592794, 0.22505, 6.333066)), ("offset", 5, (0.38545, 1.565038, 0.105159, 4.849828, 1.646168)),
    ("antialias", 3, (0.233871, 2.157509, 3.21371)), ("antialias", 5, (-0.197397, 1.325052, 1.10395, 5.0, 1.542299)),
    ("antialias", 9, (1.142012, -1.464286, 0.59808, 3.648834, 0.0, 2.131687, 5.990398, 4.714286, -1.378698)),
])
def test_ways_to_resize_positions(how, new, expected):
    """Of seven rows; sizes given, a scale_factor of (new + 0.1) / 7, and sizes with antialias=True. Prefixes stay."""
    rows = np.array([1.0, -2, 4, 0, 3, 7, -1])
    table = np.concatenate([[9.0], np.repeat(rows, 7)])[:, None]
    resized = posemb.resize(jnp.asarray(table, jnp.float32), 1, (7, 7), (new, new), how)
    np.testing.assert_allclose(resized[1:].reshape(new, new), np.repeat(np.array(expected)[:, None], new, 1), atol=2e-6)
    assert resized[0, 0] == 9


def test_a_gated_mlp_is_as_large_as_a_plain_one():
    """By default two thirds of 4 * width behind the gate, as in DINOv2: of width 48, 128 channels; of 1536, g2's."""
    plain, gated = (vit.make(width=48, depth=1, heads=4, patch=8, image=8, mlp_kind=k) for k in ("gelu", "swiglu"))
    shapes = [jax.eval_shape(n.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))[0]["stack"]["block1"]["mlp"]
              for n in (plain, gated)]
    assert [s["fc1"]["kernel"].shape for s in shapes] == [(48, 192), (48, 256)]
    assert shapes[1]["fc2"]["kernel"].shape == (128, 48) and vit._gated(4 * 1536) == vit.SIZES["g2"][3]


def test_sines():
    """Both forms written out position by position."""
    h, w, d = 3, 5, 16
    for kind in ("sincos", "sincos_bv"):
        got = posemb.sincos(h, w, d, kind=kind)
        for y in range(h):
            for x in range(w):
                a, b = (y, x) if kind == "sincos" else (x, y)
                f = [10000 ** -(i / (4 if kind == "sincos" else 3)) for i in range(4)]
                want = [*map(math.sin, (a * i for i in f)), *map(math.cos, (a * i for i in f)),
                        *map(math.sin, (b * i for i in f)), *map(math.cos, (b * i for i in f))]
                np.testing.assert_allclose(got[y * w + x], want, atol=1e-12)


def test_sines_need_no_table_and_take_any_size():
    net = vit.make(**TINY, posemb="sincos", pool="mean", class_token=False)
    params = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))[0]
    assert "positions" not in params
    out = jax.eval_shape(lambda p, x: net.apply(p, {}, x, train=False)[0], params, jnp.zeros((2, 16, 40, 3)))
    assert out["tokens"].shape == (2, 10, 32) and out["pooled"].shape == (2, 32)


@pytest.mark.parametrize("init", ["vit", "clip"])
def test_initial_values(init):
    """Standard deviation and shape of each kind of leaf: the largest value tells normal, cut and uniform apart."""
    net = vit.make(width=64, depth=2, heads=4, patch=8, image=64, init=init, out=96, registers=8, pool="map")
    params = weights.flat(weights.init(net, jnp.zeros((1, 64, 64, 3))))
    fan = 1 / math.sqrt(8 * 8 * 3)
    wanted = {
        "vit": {"patches/kernel": (fan, 2.27), "positions/embedding": (1 / 8, 9), "projection/kernel": (1 / 8, 2.27),
                "stack/block1/attention/qkv/kernel": (1 / 8, 1.73),
                "stack/block2/mlp/fc1/kernel": ((2 / 320) ** 0.5, 1.73),
                "pool/kv/kernel": (1 / 8, 1.73)},
        "clip": {"patches/kernel": (fan / 3 ** 0.5, 1.73), "positions/embedding": (1 / 8, 9),
                 "projection/kernel": (1 / 8, 9), "stack/block1/attention/qkv/kernel": ((2 / 256) ** 0.5, 1.73),
                 "stack/block2/attention/out/kernel": (192 ** -0.5, 1.73),
                 "stack/block2/mlp/fc2/kernel": ((3 * 256) ** -0.5, 1.73)}}[init]
    for name, (std, largest) in wanted.items():
        v = np.asarray(params[name])
        assert abs(v.std() / std - 1) < 0.05, name
        most = np.abs(v).max() / std
        assert (3 < most < 6) if largest == 9 else (largest * 0.95 < most < largest * 1.01), f"{name}: {most}"
    assert np.std(params["registers/embedding"]) < 2e-6 and len(np.unique(params["registers/embedding"])) > 500
    assert (np.std(params["class_token/embedding"]) > 0.08) == (init == "clip")
    for name, v in params.items():
        if name.endswith("bias"):
            assert not np.any(v), name
        elif name.endswith("scale"):
            assert np.all(v == 1), name
    drawn = [np.asarray(v).ravel()[:16] for n, v in params.items() if n.endswith("kernel")]
    drawn = [tuple(np.round(v / np.linalg.norm(v), 4)) for v in drawn]
    assert len(set(drawn)) == len(drawn)  # no two kernels share their draws


def test_draws_of_one_kind_are_one_draw():
    """What nets began with before there were several kinds: a run resumed after an update begins from the same."""
    # To the last digit programs are only alike with the code generator's usual effort.
    jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 3})
    params = jit(lambda key: convnet.make(channels=(4, 6)).init(key, jnp.zeros((1, 8, 8, 3)))[0])(jax.random.key(7))
    a, b = (params[f"conv{i}"]["kernel"] for i in (1, 2))
    numbers = jit(lambda key: jax.random.truncated_normal(key, -2.0, 2.0, (a.size + b.size,)) / linen.CUT)(jax.random.key(7))
    for kernel, part in ((a, numbers[:a.size]), (b, numbers[a.size:])):
        want = part.reshape(kernel.shape) * np.float32(math.sqrt(2 / math.prod(kernel.shape[:3])))
        np.testing.assert_allclose(kernel, want, rtol=3e-7)


def test_hidden_patches_take_the_token():
    """A token that is what another image's patch becomes: hiding a patch is then to put that one in its place."""
    net = vit.make(**{**TINY, "image": 16}, mask_token=True, registers=1)
    x, other = jax.random.normal(jax.random.key(0), (2, 2, 16, 16, 3))
    mask = jnp.array([[False, True, False, False], [False, False, False, False]])
    put = x.at[0, :8, 8:].set(other[0, :8, 8:])

    @jax.jit
    def run(key):
        params = net.init(key, x)[0]
        params["mask_token"]["embedding"] = net.layers(params, {}, other, ["patches"])["patches"][0, 1:2]
        tokens = lambda x, mask: net.apply(params, {}, x, train=False, mask=mask)[0]["tokens"]
        return tokens(x, mask), tokens(put, None), tokens(x, None)
    hidden, replaced, whole = run(jax.random.key(1))
    np.testing.assert_allclose(hidden, replaced, atol=1e-5)
    np.testing.assert_allclose(hidden[1], whole[1], atol=1e-5)
    assert np.max(np.abs(hidden[0] - whole[0])) > 0.1


def test_patches_are_not_hidden_without_a_token():
    net = vit.make(**{**TINY, "image": 16})
    x, mask = jax.ShapeDtypeStruct((2, 16, 16, 3), jnp.float32), jnp.zeros((2, 4), bool)
    params, _ = jax.eval_shape(net.init, jax.random.key(0), x)
    with pytest.raises(UsageError, match="patches are to be hidden; set mask_token=True"):
        jax.eval_shape(lambda p, x: net.apply(p, {}, x, train=True, mask=mask), params, x)


@pytest.mark.parametrize("how, message", [
    (dict(size="XL"), "there is no size 'XL'; "),
    (dict(width=32, depth=2), "heads=0 without a size"),
    (dict(TINY, heads=5), "width=32 is no multiple of heads=5"),
    (dict(TINY, image=30), "image=30 is no multiple of patch=8"),
    (dict(TINY, class_token=False), "pool='cls' needs class_token=True"),
    (dict(TINY, class_token=False, pool="pooler"), "pool='pooler' needs class_token=True"),
    (dict(TINY, pool="gap"), "pool='gap', wanted cls, pooler, mean, map"),
    (dict(TINY, mlp_kind="glu"), "mlp_kind='glu', wanted gelu or swiglu"),
    (dict(TINY, posemb="rope"), "posemb='rope', wanted learned, sincos"),
    (dict(TINY, position_resize="linear"), "position_resize='linear', wanted size, offset, antialias"),
    (dict(TINY, init="timm"), "init='timm', wanted vit, clip"),
    (dict(TINY, gelu="relu"), "gelu='relu', wanted erf, tanh, quick"),
    (dict(TINY, drop_path=1.0), "drop_path=1.0, wanted a rate"),
    (dict(TINY, layer_scale=-1.0), "layer_scale=-1.0, wanted"),
    (dict(TINY, eps=0.0), "eps=0.0, wanted"),
    (dict(TINY, registers=-1), "registers=-1 out=0, wanted"),
    (dict(TINY, width=30, heads=3, posemb="sincos"), "needs a width that is a multiple of 4, got 30"),
    (dict(TINY, dtype="float16"), "dtype='float16', wanted float32 or bfloat16"),
])
def test_what_a_user_can_get_wrong_is_one_line(how, message):
    with pytest.raises(UsageError) as e:
        names.make("nets", dict(name="vit", **how), axis=None)
    assert "nets/vit" in str(e.value) and message in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize("shape, message", [((2, 32, 36, 3), "images of 32x36 do not divide into patches of 8"),
                                            ((2, 32, 32), "wants images")])
def test_inputs_of_a_wrong_shape_are_one_line(shape, message):
    with pytest.raises(UsageError, match=message):
        vit.make(**TINY).init(jax.random.key(0), jnp.zeros(shape))
