"""Text towers, and pairs of towers: the originals' numbers, masks, poolings, sizes and messages."""
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nets import weights
from simclr_jax import names
from simclr_jax.errors import UsageError
from simclr_jax.losses import clip, siglip
from simclr_jax.nets import text, vit

TINY = dict(vocab=99, length=12, eot=98, width=32, depth=2, heads=4)
IMAGE = dict(depth=2, heads=4, patch=8, image=32)
CLIP_IMAGE = dict(IMAGE, pre_norm=True, patch_bias=False, eps=1e-5, out=24)


def unit(x):
    return x / jnp.linalg.norm(x, axis=1, keepdims=True)


def clip_loss(z, a, b):
    return clip(a, b, scale=jnp.exp(jnp.asarray(z.weights["logit_scale"], a.dtype)))


def siglip_loss(z, a, b):
    scale, bias = (jnp.asarray(z.weights[f"logit_{n}"][0], a.dtype) for n in ("scale", "bias"))
    return siglip(a, b, scale=jnp.exp(scale), bias=bias)


def squares(z, a, b):
    return jnp.mean(a ** 2) + jnp.mean(b ** 2)


# The original's numbers, its case, image tower, text tower, their tables, the loss that was differentiated.
PAIRS = {
    "hf_clip": ("hf_clip", "", dict(CLIP_IMAGE, width=48, mlp=96, gelu="quick"),
                dict(TINY, mlp=64, pool="argmax", out=24), weights.hf_clip, clip_loss),
    "hf_siglip": ("hf_siglip", "", dict(IMAGE, width=32, mlp=96, pool="map", class_token=False, gelu="tanh"),
                  dict(TINY, vocab=90, length=10, mlp=64, pool="last", causal=False, gelu="tanh", eps=1e-6, out=32,
                       out_bias=True, init="vit"), weights.hf_siglip, siglip_loss),
    **{f"openclip_{gelu}": ("openclip_vit", gelu, dict(CLIP_IMAGE, width=32, gelu=gelu), dict(TINY, gelu=gelu, out=24),
                            lambda depth: (weights.openai_vit(depth), weights.openai_text(depth)), squares)
       for gelu in ("erf", "quick")},
}
FAST = [("hf_clip", "float32"), ("openclip_erf", "float64")]
CASES = FAST + [pytest.param(n, d, marks=pytest.mark.slow) for n in PAIRS for d in ("float32", "float64")
                if (n, d) not in FAST]


@functools.cache
def pair(name, dtype):
    """(the original's numbers, our outputs, our gradients by tower) of one run in dtype."""
    file, case, of_image, of_text, tables, criterion = PAIRS[name]
    z, tables = weights.Oracle(file), tables(2)
    change = weights.siglip_head if name == "hf_siglip" else lambda state: state
    nets = vit.make(**of_image), text.make(**of_text)
    bare = vit.make(**of_image, final_norm=False)
    images = z.images("in/image" if case else "in/pixel_values")
    ids = z.arrays["in/text" if case else "in/input_ids"]
    mask = z.arrays.get("in/attention_mask")
    assert weights.unused(change(z.weights), *tables) <= {"logit_scale", "logit_bias"}
    with jax.enable_x64(dtype == "float64"):
        cast = lambda a: jnp.asarray(a, dtype)
        params = [jax.tree.map(cast, weights.convert(change(z.weights), t)) for t in tables]
        inputs = cast(images), jnp.asarray(ids, jnp.int32)
        for net, p, x in zip(nets, params, inputs):
            init = jax.eval_shape(net.init, jax.random.key(0), jax.ShapeDtypeStruct(
                x.shape, jnp.float32 if x.ndim == 4 else jnp.int32))
            assert jax.tree.map(jnp.shape, init) == (jax.tree.map(jnp.shape, p), {})

        def loss(params):
            a = nets[0].apply(params[0], {}, inputs[0], train=True)[0]
            b = nets[1].apply(params[1], {}, inputs[1], train=True, mask=None if mask is None else mask > 0)[0]
            value = criterion(z, a["pooled"], b["pooled"])
            if case:
                return value, {"image": a["pooled"], "text": b["pooled"]}
            # Transformers returns CLIP's patches as they are before the last norm, and SigLIP's after it.
            last = bare.apply(params[0], {}, inputs[0], train=True)[0] if name == "hf_clip" else a
            return value, {"loss": value, "image_embeds": unit(a["pooled"]), "text_embeds": unit(b["pooled"]),
                           "vision_last": last["tokens"], "text_last": b["tokens"]}

        (_, out), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    wanted = [z.gradients(t, case, change) for t in tables]
    return z, case, jax.tree.map(np.asarray, out), [weights.flat(jax.tree.map(np.asarray, g)) for g in grads], wanted


@pytest.mark.parametrize("name, dtype", CASES)
def test_outputs_are_the_originals(name, dtype):
    z, case, out, _, _ = pair(name, dtype)
    prefix = f"{case}/out/" if case else "out/"
    assert set(out) == {k[len(prefix):] for k in z.arrays if k.startswith(prefix)}
    # The softmax of Transformers' models is f32 whatever the dtype.
    tolerance = 2e-5 if dtype == "float32" else 1e-6 if name.startswith("hf") else 1e-9
    for key, ours in out.items():
        assert ours.dtype == dtype
        np.testing.assert_allclose(ours, z.arrays[prefix + key], rtol=0, atol=tolerance, err_msg=key)


@pytest.mark.parametrize("name, dtype", CASES)
def test_gradients_are_the_originals(name, dtype):
    """Of every parameter of both towers."""
    _, _, _, grads, wanted = pair(name, dtype)
    for ours, kept in zip(grads, wanted):
        weights.same_gradients(ours, kept, 1e-3 if dtype == "float32" else 2e-6)


def test_the_first_eot_of_several_is_the_text():
    """transformers' CLIP with eos_token_id 98, which also ends some texts twice; masked tokens are not looked at."""
    z = weights.Oracle("hf_clip")
    params = weights.convert(z.weights, weights.hf_clip(2)[1])
    net = text.make(**dict(TINY, mlp=64, out=24, gelu="erf"))
    ids = z.arrays["eos/in/input_ids"]
    out = jax.jit(lambda ids, mask: net.apply(params, {}, ids, train=False, mask=mask)[0])(
        ids, z.arrays["eos/in/attention_mask"] > 0)
    np.testing.assert_allclose(out["tokens"], z.arrays["eos/out/text_last"], rtol=0, atol=2e-5)
    np.testing.assert_allclose(unit(out["pooled"]), z.arrays["eos/out/text_embeds"], rtol=0, atol=2e-5)
    twice = jnp.asarray(ids).at[:, -1].set(98)
    again = jax.jit(lambda ids: net.apply(params, {}, ids, train=False)[0])(twice)
    np.testing.assert_allclose(unit(again["pooled"]), z.arrays["eos/out/text_embeds"], rtol=0, atol=2e-5)


def tiny(**how):
    net = text.make(**{**TINY, **how})
    ids = jax.random.randint(jax.random.key(1), (3, 12), 1, 98)
    params = weights.init(net, ids)
    return net, params, ids, jax.jit(lambda ids, mask=None: net.apply(params, {}, ids, train=False, mask=mask)[0])


def test_a_causal_tower_does_not_look_ahead():
    _, _, ids, run = tiny()
    changed = ids.at[:, 7:].set(5)
    a, b = run(ids)["tokens"], run(changed)["tokens"]
    np.testing.assert_array_equal(a[:, :7], b[:, :7])
    assert np.all(np.max(np.abs(a[:, 7:] - b[:, 7:]), axis=2) > 1e-6)
    short = run(ids[:, :7])["tokens"]
    np.testing.assert_allclose(short, a[:, :7], atol=1e-5)  # sums of another length are rounded elsewhere


@pytest.mark.parametrize("pool", ["mean", "map"])
def test_masked_tokens_change_nothing(pool):
    _, _, ids, run = tiny(causal=False, pool=pool)
    mask = jnp.arange(12)[None] < jnp.array([[12], [5], [8]])
    a, b = run(ids, mask), run(jnp.where(mask, ids, 3), mask)
    np.testing.assert_allclose(a["pooled"], b["pooled"], atol=1e-6)
    np.testing.assert_allclose(jnp.where(mask[..., None], a["tokens"] - b["tokens"], 0), 0, atol=1e-6)
    cut = run(ids[1:2, :5])
    np.testing.assert_allclose(a["pooled"][1], cut["pooled"][0], atol=1e-6)
    assert np.max(np.abs(run(ids)["pooled"][1] - a["pooled"][1])) > 1e-4


def test_an_id_past_the_vocabulary_is_not_taken_for_another():
    out = tiny(causal=False)[3](jnp.array([[1, 98], [1, 99]], jnp.int32))["pooled"]
    assert np.all(np.isfinite(out[0])) and np.all(np.isnan(out[1]))


def test_poolings():
    ids = jnp.array([[1, 98, 7, 98], [2, 3, 4, 5], [97, 98, 1, 98]], jnp.int32)
    at = {"eot": [1, 0, 1], "argmax": [1, 3, 1], "last": [3, 3, 3]}
    for pool, where in at.items():
        out = tiny(pool=pool)[3](ids)
        np.testing.assert_array_equal(out["pooled"], out["tokens"][jnp.arange(3), jnp.array(where)])
    out = tiny(pool="mean")[3](ids)
    np.testing.assert_allclose(out["pooled"], out["tokens"].mean(1), atol=1e-6)


@pytest.mark.parametrize("init", ["clip", "vit"])
def test_initial_values(init):
    net = text.make(**dict(TINY, width=64, depth=3, out=128, init=init))
    params = weights.flat(weights.init(net, jnp.zeros((1, 12), jnp.int32)))
    deep = (2 * 64 * 3) ** -0.5
    mix = (2 / 320) ** 0.5
    wanted = {"clip": (0.02, 0.01, 1 / 8, 1 / 8, deep, 128 ** -0.5, deep),
              "vit": (1 / 8, 1 / 8, 1 / 8, 1 / 8, 1 / 8, mix, mix)}[init]
    at = "stack/block2/"
    leaves = ("tokens/embedding", "positions/embedding", "projection/kernel", at + "attention/qkv/kernel",
              at + "attention/out/kernel", at + "mlp/fc1/kernel", at + "mlp/fc2/kernel")
    for name, std in zip(leaves, wanted):
        v = np.asarray(params[name])
        assert abs(v.std() / std - 1) < 0.08 and abs(v.mean() / std) < 0.08, f"{name}: {v.std()}, wanted {std}"
        uniform = init == "vit" and name.startswith("stack")
        assert (np.abs(v).max() / std < 1.74) == uniform, name
    assert all(p.dtype == jnp.float32 for p in params.values())


def count(net, x):
    return sum(math.prod(p.shape) for p in jax.tree.leaves(jax.eval_shape(net.init, jax.random.key(0), x)[0]))


# transformers' CLIPModel and SiglipModel with their default configurations (ViT-B/32 and B/16), without scale and bias.
TOWERS = {
    "clip": (dict(size="B", patch=32, pre_norm=True, patch_bias=False, gelu="quick", eps=1e-5, out=512), 87_849_216,
             dict(vocab=49408, length=77, eot=49407, out=512), 63_428_096),
    "siglip": (dict(size="B", pool="map", class_token=False, gelu="tanh"), 92_884_224,
               dict(vocab=32000, length=64, pool="last", causal=False, width=768, heads=12, gelu="tanh", eps=1e-6,
                    out=768, out_bias=True, init="vit"), 110_271_744),
    "so400m": (dict(size="So400m", patch=14, pool="map", class_token=False, gelu="tanh"), 427_680_704, None, 0)}


@pytest.mark.parametrize("name", TOWERS)
def test_parameter_counts_are_the_published(name):
    image, of_image, words, of_text = TOWERS[name]
    assert count(vit.make(**image, scan=True), jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)) == of_image
    if words:
        assert count(text.make(**words, scan=True), jax.ShapeDtypeStruct((1, words["length"]), jnp.int32)) == of_text


def test_scan_remat_and_bf16_of_a_masked_causal_tower():
    net, params, ids, run = tiny(out=8)
    mask = jnp.arange(12)[None] < jnp.array([[12], [5], [8]])
    want = run(ids, mask)
    for how, tolerance in ((dict(scan=True, remat=True), 1e-5), (dict(dtype="bfloat16"), 0.05)):
        other = text.make(**TINY, out=8, **how)
        p = weights.stacked(params) if "scan" in how else params
        got = jax.jit(lambda p: other.apply(p, {}, ids, train=True, mask=mask)[0])(p)
        for name in want:
            error = float(jnp.linalg.norm(got[name] - want[name]) / jnp.linalg.norm(want[name]))
            assert got[name].dtype == jnp.float32 and error < tolerance, (how, name, error)
            assert "scan" in how or error > 1e-4


@pytest.mark.parametrize("how, message", [
    (dict(eot=-1), "pool='eot' with eot=-1, which is no id below vocab=99"),
    (dict(eot=99), "pool='eot' with eot=99"),
    (dict(pool="cls"), "pool='cls', wanted eot, argmax, last, map, mean"),
    (dict(init="xavier"), "init='xavier', wanted clip, vit"),
    (dict(vocab=0), "vocab=0 length=12, wanted whole numbers above 0"),
    (dict(heads=5), "width=32 is no multiple of heads=5"),
    (dict(depth=0), "depth=0, wanted a whole number above 0"),
    (dict(gelu="swish"), "gelu='swish', wanted"),
    (dict(out=-1), "out=-1, wanted 0 or more"),
    (dict(dtype="half"), "dtype='half', wanted float32 or bfloat16"),
])
def test_what_a_user_can_get_wrong_is_one_line(how, message):
    with pytest.raises(UsageError) as e:
        names.make("nets", dict(name="text", **{**TINY, **how}), axis=None)
    assert "nets/text" in str(e.value) and message in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize("ids, mask, message", [
    (jnp.zeros((2, 13), jnp.int32), None, "sequences of 13 tokens, wanted 1 to length=12"),
    (jnp.zeros((2, 12)), None, r"wants token ids i32\[rows, length\] and got float32\[2, 12\]"),
    (jnp.zeros((2, 3, 4), jnp.int32), None, "wants token ids"),
    (jnp.zeros((2, 12), jnp.int32), jnp.ones((2, 11), bool), r"mask has shape \(2, 11\)"),
])
def test_inputs_of_a_wrong_shape_are_one_line(ids, mask, message):
    net, params, *_ = tiny()
    with pytest.raises(UsageError, match=message):
        net.apply(params, {}, ids, train=False, mask=mask)
