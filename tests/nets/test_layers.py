"""`Net.layers`: outputs of modules by their names in the parameter tree, in evaluation mode."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nets import weights
from simclr_jax.errors import UsageError
from simclr_jax.nets import mlp, modified_resnet, resnet, text, transformer, vit

TINY = dict(width=16, depth=3, heads=2)
VIT = dict(TINY, patch=8, image=16)
IMAGES = jax.random.normal(jax.random.key(1), (2, 32, 32, 3))
SMALL = IMAGES[:, :16, :16]


def layers(net, params, stats, x, names, **how):
    return jax.jit(lambda p, s: net.layers(p, s, x, names, **how))(params, stats)


def test_attention_can_be_drawn():
    """Queries and keys are there to make it of; with the values it gives what attention gave."""
    net = vit.make(**VIT)
    params = weights.init(net, SMALL)
    at = "stack/block2/attention"
    names = ["patches", f"{at}/qkv", at, "norm"]
    both = lambda p: (net.layers(p, {}, SMALL, names), net.apply(p, {}, SMALL, train=False)[0])
    got, want = jax.jit(both)(params)
    assert got["patches"].shape == (2, 4, 16)
    q, k, v = (y.reshape(2, 5, 2, 8) for y in jnp.split(got[f"{at}/qkv"], 3, axis=-1))
    drawn = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k) / 8 ** 0.5)
    out = params["stack"]["block2"]["attention"]["out"]
    y = jnp.einsum("bhqk,bkhd->bqhd", drawn, v).reshape(2, 5, 16) @ out["kernel"] + out["bias"]
    np.testing.assert_allclose(got[at], y, atol=1e-5)
    np.testing.assert_allclose(got["norm"], want["tokens"], atol=1e-6)


def test_stacked_blocks_are_found_one_by_one():
    net, stacked = vit.make(**VIT), vit.make(**VIT, scan=True, remat=True)
    params = weights.init(net, SMALL)
    wanted = ["stack/block1", "stack/block3", "stack/block2/mlp/fc1"]
    one = layers(net, params, {}, SMALL, wanted)
    many = layers(stacked, weights.stacked(params), {}, SMALL, wanted + ["stack/blocks"])
    for name in wanted:
        np.testing.assert_allclose(many[name], one[name], atol=1e-5)
    np.testing.assert_array_equal(many["stack/blocks"][2], many["stack/block3"])
    for name, near in (("stack/block4", "stack/blocks"), ("stack/block0", "stack/blocks"), ("nrom", "norm")):
        with pytest.raises(UsageError, match=f"has no layer '{name}'; did you mean '{near}'") as e:
            stacked.layers(weights.stacked(params), {}, SMALL, [name])
        assert "\n" not in str(e.value)


@pytest.mark.slow
def test_a_text_towers_layers_see_the_mask():
    net = text.make(vocab=20, length=6, eot=19, causal=False, **TINY)
    ids = jax.random.randint(jax.random.key(2), (2, 6), 0, 20)
    params = weights.init(net, ids)
    mask = jnp.arange(6)[None] < jnp.array([[6], [3]])
    want = jax.jit(lambda p: net.apply(p, {}, ids, train=False, mask=mask)[0]["tokens"])(params)
    np.testing.assert_allclose(layers(net, params, {}, ids, ["norm"], mask=mask)["norm"], want, atol=1e-6)
    assert np.max(np.abs(layers(net, params, {}, ids, ["norm"])["norm"][1] - want[1])) > 1e-4


@pytest.mark.parametrize("make, x, names", [
    pytest.param(lambda: resnet.make(depth=18, width=1 / 16), IMAGES, ["stem", "stage1", "stage4", "stage2/block1/bn1"],
                 marks=pytest.mark.slow),
    pytest.param(lambda: modified_resnet.make(layers=(1, 1, 1, 1), width=4, heads=2, out=8, image=32), IMAGES,
                 ["stem", "stage4", "pool"], marks=pytest.mark.slow),
    (lambda: mlp.make(layers=2, hidden=6, out=4), IMAGES[:, 0, :, 0], ["layer1/dense", "layer2"]),
], ids=["resnet", "modified_resnet", "mlp"])
def test_nets_with_statistics(make, x, names):
    """In evaluation mode: the last layer's output is what the net returns from its running statistics."""
    net = make()
    params, stats = jax.jit(lambda key: net.init(key, x))(jax.random.key(0))
    got = layers(net, params, stats, x, names)
    assert set(got) == set(names)
    want, _ = jax.jit(lambda p, s: net.apply(p, s, x, train=False))(params, stats)
    last = got[names[-1]] if len(names) < 4 else got["stage4"].reshape(len(x), -1, want["tokens"].shape[-1]).mean(1)
    np.testing.assert_allclose(last, want["pooled"], atol=1e-6)


def test_a_bias_and_a_mask_of_their_own_for_each_query():
    """What windows add to `attend`, in both dtypes, against the sums written out."""
    random = np.random.RandomState(3)
    q, k, v = random.standard_normal((3, 2, 4, 2, 8))
    bias, mask = random.standard_normal((2, 4, 4)), (random.uniform(size=(2, 4, 4)) < 0.6) | np.eye(4, dtype=bool)
    want = np.zeros((2, 4, 2, 8))
    for b, i, h in np.ndindex(2, 4, 2):
        seen = np.flatnonzero(mask[b, i])
        p = np.exp([q[b, i, h] @ k[b, j, h] / 8 ** 0.5 + bias[h, i, j] for j in seen])
        want[b, i, h] = p / p.sum() @ v[b, seen, h]
    for dtype, tolerance in (("float32", 1e-6), ("float64", 1e-12)):
        with jax.enable_x64(dtype == "float64"):
            got = jax.jit(lambda q, k, v, bias: transformer.attend(q, k, v, mask=mask, bias=bias))(
                *(jnp.asarray(a, dtype) for a in (q, k, v, bias)))
            np.testing.assert_allclose(np.asarray(got), want, atol=tolerance)
