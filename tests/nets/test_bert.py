"""BERT and RoBERTa: the originals' numbers, positions, masks, sizes and messages. CLAP's is in test_htsat.py."""
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nets import weights
from simclr_jax import names
from simclr_jax.errors import UsageError
from simclr_jax.nets import bert

TINY = dict(vocab=120, length=16, width=32, depth=2, heads=4, mlp=64)


@functools.cache
def oracle(dtype):
    """(the original's numbers, our outputs, our gradients) of one run in dtype."""
    z = weights.Oracle("hf_bert")
    net = bert.make(**TINY, pool="pooler")
    x = jnp.stack([z.arrays["in/input_ids"], z.arrays["in/token_type_ids"]], axis=1)
    with jax.enable_x64(dtype == "float64"):
        params = jax.tree.map(lambda a: jnp.asarray(a, dtype), weights.convert(z.weights, weights.hf_bert(2)))
        init = jax.eval_shape(net.init, jax.random.key(0), x)
        assert jax.tree.map(jnp.shape, init) == (jax.tree.map(jnp.shape, params), {})

        def loss(params):
            h = net.apply(params, {}, x, train=True)[0]  # without a mask: the originals' hides what is 0
            first = net.layers(params, {}, x, ["stack/block1"])["stack/block1"]
            out = {"last": h["tokens"], "pooled": h["pooled"], "hidden1": first}
            return sum(jnp.mean(jnp.square(y)) for y in out.values()), out

        (_, out), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    return z, jax.tree.map(np.asarray, out), weights.flat(jax.tree.map(np.array, grads))


BOTH = pytest.mark.parametrize("dtype", ["float64", pytest.param("float32", marks=pytest.mark.slow)])


@BOTH
def test_outputs_are_the_originals(dtype):
    z, out, _ = oracle(dtype)
    assert not weights.unused(z.weights, weights.hf_bert(2))
    assert set(out) == {k[4:] for k in z.arrays if k.startswith("out/")}
    for key, ours in out.items():
        assert ours.dtype == dtype
        np.testing.assert_allclose(ours, z.arrays[f"out/{key}"], rtol=0, atol=2e-5 if dtype == "float32" else 1e-9)


@BOTH
def test_gradients_are_the_originals(dtype):
    """Of every parameter, but for the embedding of the padding, which torch leaves without one."""
    z, _, grads = oracle(dtype)
    kept = z.gradients(weights.hf_bert(2))
    assert np.any(grads["tokens/embedding"][0])
    grads = {**grads, "tokens/embedding": grads["tokens/embedding"] * (np.arange(120) > 0)[:, None]}
    weights.same_gradients(grads, kept, 1e-3 if dtype == "float32" else 1e-6)


def tiny(**how):
    net = bert.make(**{**TINY, **how})
    ids = jax.random.randint(jax.random.key(1), (3, 16), 2, 120)
    params = weights.init(net, ids)
    return net, params, ids, jax.jit(lambda ids, mask=None: net.apply(params, {}, ids, train=False, mask=mask)[0])


@pytest.mark.parametrize("how", [dict(positions="roberta", pad=1), pytest.param({}, marks=pytest.mark.slow)],
                         ids=["roberta", "bert"])
def test_padding_changes_nothing(how):
    """Whatever stands at hidden positions and however many there are; RoBERTa's positions count real tokens only."""
    lengths = jnp.array([[16], [5], [9]])
    real = jnp.arange(16)[None] < lengths
    *_, ids, run = tiny(pool="mean", depth=1, **how)
    padded = jnp.where(real, ids, how.get("pad", 0))
    a = run(padded)["pooled"]
    changed = run(jnp.where(real, ids, 7), real)["pooled"]
    np.testing.assert_allclose(a, run(padded, real)["pooled"], atol=1e-6)
    np.testing.assert_allclose(a, changed, atol=1e-6)
    assert np.max(np.abs(a[1] - run(ids)["pooled"][1])) > 1e-4
    left = run(jnp.roll(padded, 11, axis=1))["pooled"]
    if "positions" in how:  # the place of the padding does not matter either
        np.testing.assert_allclose(left[1], a[1], atol=1e-6)
    else:
        assert np.max(np.abs(left[1] - a[1])) > 1e-4


@pytest.mark.slow
def test_types_and_pools():
    net, params, ids, run = tiny(depth=1)
    both = lambda kinds: run(jnp.stack([ids, jnp.full_like(ids, kinds)], axis=1))["tokens"]
    np.testing.assert_allclose(both(0), run(ids)["tokens"], atol=1e-6)
    assert np.max(np.abs(both(1) - both(0))) > 1e-4
    assert np.all(np.isnan(both(2))) and np.all(np.isnan(run(ids.at[0, 3].set(120))["tokens"][0]))
    np.testing.assert_array_equal(run(ids)["pooled"], run(ids)["tokens"][:, 0])
    projected = jax.eval_shape(bert.make(**TINY, out=8, out_mlp=True).init, jax.random.key(0), ids)[0]["projection"]
    assert jax.tree.map(jnp.shape, projected) == {"fc1": {"kernel": (32, 8), "bias": (8,)},
                                                  "fc2": {"kernel": (8, 8), "bias": (8,)}}
    for name, v in weights.flat(params).items():
        if name.endswith(("kernel", "embedding")):
            assert abs(float(jnp.std(v)) / 0.02 - 1) < 0.15, name


def count(net, x):
    return sum(math.prod(p.shape) for p in jax.tree.leaves(jax.eval_shape(net.init, jax.random.key(0), x)[0]))


@pytest.mark.parametrize("how, published", [  # transformers' BertModel and RobertaModel in their base configurations
    (dict(vocab=30522), 109_482_240),
    (dict(vocab=50265, pad=1, types=1, positions="roberta"), 124_645_632)])
def test_parameter_counts_are_the_published(how, published):
    assert count(bert.make(**how, pool="pooler", scan=True), jax.ShapeDtypeStruct((1, 32), jnp.int32)) == published


@pytest.mark.slow
def test_scan_remat_and_bf16():
    _, params, ids, run = tiny(pool="mean", out=8)
    mask = jnp.arange(16)[None] < jnp.array([[16], [5], [8]])
    want = run(ids, mask)
    for how, tolerance in ((dict(scan=True, remat=True), 1e-5), (dict(dtype="bfloat16"), 0.05)):
        other = bert.make(**TINY, pool="mean", out=8, **how)
        p = weights.stacked(params) if "scan" in how else params
        got = jax.jit(lambda p: other.apply(p, {}, ids, train=True, mask=mask)[0])(p)
        for name in want:
            error = float(jnp.linalg.norm(got[name] - want[name]) / jnp.linalg.norm(want[name]))
            assert got[name].dtype == jnp.float32 and error < tolerance, (how, name, error)
            assert "scan" in how or error > 1e-5  # branches begin small beside what they are added to


@pytest.mark.parametrize("how, message", [
    (dict(pool="eot"), "pool='eot', wanted cls, pooler, mean"),
    (dict(positions="sincos"), "positions='sincos', wanted bert, roberta"),
    (dict(vocab=0), "vocab=0 length=16, wanted whole numbers above 0"),
    (dict(pad=120), "pad=120, wanted an id below vocab=120"),
    (dict(pad=-1, positions="roberta"), "positions='roberta' count from pad + 1, and pad=-1"),
    (dict(types=-1), "types=-1 out=0, wanted 0 or more"),
    (dict(out_mlp=True), "out_mlp=True needs the width of the projection"),
    (dict(heads=5), "width=32 is no multiple of heads=5"),
])
def test_what_a_user_can_get_wrong_is_one_line(how, message):
    with pytest.raises(UsageError) as e:
        names.make("nets", dict(name="bert", **{**TINY, **how}), axis=None)
    assert "nets/bert" in str(e.value) and message in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize("how, ids, mask, message", [
    ({}, jnp.zeros((2, 17), jnp.int32), None, "sequences of 17 tokens, wanted 1 to length=16"),
    ({}, jnp.zeros((2, 12)), None, r"wants token ids .* and got float32\[2, 12\]"),
    ({}, jnp.zeros((2, 3, 12), jnp.int32), None, r"i32\[rows, 2, length\] with token types, and got"),
    ({}, jnp.zeros((2, 12), jnp.int32), jnp.ones((2, 11), bool), r"mask has shape \(2, 11\)"),
    (dict(types=1), jnp.zeros((2, 2, 12), jnp.int32), None, "token types are given and types=1"),
])
def test_inputs_of_a_wrong_shape_are_one_line(how, ids, mask, message):
    with pytest.raises(UsageError, match=message):
        bert.make(**TINY, **how).apply({}, {}, ids, train=False, mask=mask)
