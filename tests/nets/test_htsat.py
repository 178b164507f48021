"""CLAP's towers: the original's numbers, windows, the fold of the spectrogram, sizes and messages."""
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nets import weights
from simclr_jax import names
from simclr_jax.errors import UsageError
from simclr_jax.nets import bert, htsat, posemb, swin

TINY = dict(mels=16, side=64, patch=4, width=16, depths=(2, 2), heads=(2, 4), window=4)
TEXT = dict(vocab=120, length=16, pad=1, types=1, positions="roberta", width=32, depth=2, heads=4, mlp=64,
            pool="pooler")


@functools.cache
def towers(dtype):
    """(the original's numbers, nets, parameters, statistics, inputs, the original's gradients by tower)."""
    z = weights.Oracle("hf_clap")
    of_audio, of_stats, of_text = weights.hf_clap((2, 2), 2)
    nets = htsat.make(**TINY, out=24), bert.make(**TEXT, out=24, out_mlp=True)
    assert not weights.unused(z.weights, of_audio, of_stats, of_text)
    cast = lambda a: jnp.asarray(a, dtype)
    params = [jax.tree.map(cast, weights.convert(z.weights, t)) for t in (of_audio, of_text)]
    stats = [jax.tree.map(cast, weights.convert(z.weights, of_stats)), {}]
    inputs = cast(z.arrays["in/input_features"]) / 32, jnp.asarray(z.arrays["in/input_ids"])
    for net, p, s, x in zip(nets, params, stats, inputs):
        x = jax.ShapeDtypeStruct(x.shape, jnp.float32 if x.ndim == 3 else jnp.int32)
        init = jax.eval_shape(net.init, jax.random.key(0), x)
        assert jax.tree.map(jnp.shape, init) == jax.tree.map(jnp.shape, (p, s))
    return z, nets, params, stats, inputs, [z.gradients(t) for t in (of_audio, of_text)]


SLOW64 = pytest.mark.parametrize("dtype", ["float32", pytest.param("float64", marks=pytest.mark.slow)])


@SLOW64
def test_outputs_are_the_originals(dtype):
    """Of both towers, and of the first stage, which is two windows wide."""
    with jax.enable_x64(dtype == "float64"):
        z, nets, params, stats, inputs, _ = towers(dtype)

        def run(params):
            a, b = (net.apply(p, s, x, train=False)[0] for net, p, s, x in zip(nets, params, stats, inputs))
            stage = nets[0].layers(params[0], stats[0], inputs[0], ["stage1"])["stage1"]
            return {"audio": a["pooled"], "audio_last": a["tokens"], "text": b["pooled"], "text_last": b["tokens"],
                    "audio_stage1": stage.reshape(len(stage), -1, stage.shape[-1])}

        out = jax.tree.map(np.asarray, jax.jit(run)(params))
    assert set(out) == {k[4:] for k in z.arrays if k.startswith("out/")}
    for key, ours in out.items():
        # The softmax of transformers' text tower is f32 whatever the dtype.
        tolerance = 1e-4 if dtype == "float32" else 1e-6 if key.startswith("text") else 1e-9
        assert ours.dtype == dtype
        np.testing.assert_allclose(ours, z.arrays[f"out/{key}"], rtol=0, atol=tolerance, err_msg=key)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_gradients_and_training_are_the_originals(dtype):
    """Gradients of every parameter; in training the mel bins have the statistics of the batch."""
    with jax.enable_x64(dtype == "float64"):
        z, nets, params, stats, inputs, wanted = towers(dtype)

        def loss(params):
            out = [net.apply(p, s, x, train=False)[0]["pooled"] for net, p, s, x in zip(nets, params, stats, inputs)]
            return sum(jnp.mean(jnp.square(y)) for y in out)

        grads = [weights.flat(jax.tree.map(np.asarray, g)) for g in jax.jit(jax.grad(loss))(params)]
        out, after = jax.jit(lambda p: nets[0].apply(p, stats[0], inputs[0], train=True))(params[0])
        out, after = jax.tree.map(np.asarray, (out, after))
    for ours, kept in zip(grads, wanted):
        weights.same_gradients(ours, kept, 1e-3 if dtype == "float32" else 2e-6)
    np.testing.assert_allclose(out["pooled"], z.arrays["train/out/audio"], atol=1e-4 if dtype == "float32" else 1e-9)
    # torch keeps the unbiased variance, of 2 * 90 numbers a bin, ours is the biased one; both are in f32.
    before = z.weights["audio_model.audio_encoder.batch_norm.running_var"] * np.float32(0.9)
    np.testing.assert_allclose(after["bn"]["mean"], z.arrays["after/bn/mean"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(before + (after["bn"]["var"] - before) * 180 / 179, z.arrays["after/bn/var"], atol=1e-6)


def count(net, x):
    return sum(math.prod(p.shape) for p in jax.tree.leaves(jax.eval_shape(net.init, jax.random.key(0), x)[0]))


@pytest.mark.parametrize("how, published", [  # transformers' ClapAudioModel as it is by default, and of HTSAT-base
    ({}, 27_534_488), pytest.param(dict(width=128, depths=(2, 2, 12, 2)), 67_824_408, marks=pytest.mark.slow)])
def test_parameter_counts_are_the_published(how, published):
    assert count(htsat.make(**how), jax.ShapeDtypeStruct((1, 1001, 64), jnp.float32)) == published


def test_windows():
    """Apart and together; distances as they are written out; shifted windows join no two sides of the grid."""
    x = np.arange(2 * 8 * 12 * 3).reshape(2, 8, 12, 3)
    parts = swin.apart(x, 4)
    assert parts.shape == (2 * 6, 16, 3)
    np.testing.assert_array_equal(parts[1].reshape(4, 4, 3), x[0, :4, 4:8])
    np.testing.assert_array_equal(swin.together(parts, x.shape, 4), x)
    rows = swin.relative(3)
    for a in range(9):
        for b in range(9):
            assert rows[a, b] == (a // 3 - b // 3 + 2) * 5 + (a % 3 - b % 3 + 2)
    rolled = swin.apart(np.roll(np.stack(np.mgrid[:8, :12], axis=-1), (-2, -2), axis=(0, 1))[None], 4)
    near = np.all(np.abs(rolled[:, :, None] - rolled[:, None]) < 4, axis=-1)  # no further away than a window is wide
    np.testing.assert_array_equal(swin.neighbours(8, 12, 4, 2), near)
    assert near.shape == (6, 16, 16) and not near.all()


def test_the_fold():
    """Every mel bin at every time has its pixel; fewer frames are interpolated between the first and the last."""
    x = jax.random.normal(jax.random.key(0), (2, 64, 4))
    folded = htsat.square(x, 16)
    assert folded.shape == (2, 16, 16)
    for time, mel in ((0, 0), (15, 3), (16, 0), (63, 2)):
        np.testing.assert_array_equal(folded[:, 4 * (time // 16) + mel, time % 16], x[:, time, mel])
    few = htsat.square(x[:, :23], 16)
    np.testing.assert_allclose(few[:, 0, 0], x[:, 0, 0], atol=1e-6)
    np.testing.assert_allclose(few[:, 15, 15], x[:, 22, 3], atol=1e-6)
    w = posemb.bicubic(7, 19, corners=True)
    np.testing.assert_allclose(w.sum(1), 1, rtol=1e-12)
    np.testing.assert_array_equal(posemb.bicubic(7, 7, corners=True), np.eye(7))
    np.testing.assert_allclose(w[3:-3] @ np.arange(7), (np.arange(19) / 3)[3:-3], atol=0.1)
    assert np.all(np.isfinite(htsat.square(x[:, :1], 16)))


@pytest.mark.slow
def test_remat_and_rows_that_are_dropped_by_their_own_keys():
    x = jax.random.normal(jax.random.key(1), (3, 64, 8))
    keys = jax.random.split(jax.random.key(2), 3)
    how = dict(TINY, mels=8, side=32, depths=(2,), heads=(2,), out=8, drop_path=0.5)
    params, stats = jax.jit(lambda key: htsat.make(**how).init(key, x))(jax.random.key(0))

    def loss(remat):
        net = htsat.make(**how, remat=remat)
        return jax.jit(jax.value_and_grad(
            lambda p, keys: jnp.sum(net.apply(p, stats, x, train=True, key=keys)[0]["pooled"] ** 2)))

    plain = loss(False)
    (a, of_a), (b, of_b) = plain(params, keys), loss(True)(params, keys)
    np.testing.assert_allclose(a, b, rtol=1e-5)
    assert abs(plain(params, keys[::-1])[0] / a - 1) > 1e-4
    for u, v in zip(jax.tree.leaves(of_a), jax.tree.leaves(of_b), strict=True):
        np.testing.assert_allclose(u, v, rtol=1e-3, atol=1e-6 * np.max(np.abs(u)) + 1e-12)
    with pytest.raises(UsageError, match="nets/htsat: drop_path: a rate of 0.5 drops at random in training"):
        htsat.make(**how).apply(params, stats, x, train=True)


@pytest.mark.slow
def test_bf16_computes_in_bf16_and_keeps_f32():
    _, _, (params, _), (stats, _), (x, _), _ = towers("float32")
    a, b = (jax.jit(lambda p, d=d: htsat.make(**TINY, out=24, dtype=d).apply(p, stats, x, train=False)[0])(params)
            for d in ("float32", "bfloat16"))
    for name in ("pooled", "tokens"):
        error = float(jnp.linalg.norm(a[name] - b[name]) / jnp.linalg.norm(a[name]))
        assert b[name].dtype == jnp.float32 and 1e-4 < error < 0.05, f"{name}: {error}"


@pytest.mark.parametrize("how, message", [
    (dict(depths=(2,)), "depths=(2,) heads=(2, 4), wanted as many of either"),
    (dict(depths=(2, 0)), "whole numbers above 0"),
    (dict(mels=15), "side=64 is no multiple of mels=15"),
    (dict(window=3), "side=64 is no multiple of 24, so windows of 3 do not divide the grids of 2 stages"),
    (dict(out=-1), "out=-1, wanted whole numbers above 0, and out 0 or more"),
    (dict(heads=(3, 4)), "width=16 is no multiple of heads=3"),
    (dict(bn="sync"), "bn='sync', wanted"),
])
def test_what_a_user_can_get_wrong_is_one_line(how, message):
    with pytest.raises(UsageError) as e:
        names.make("nets", dict(name="htsat", **{**TINY, **how}), axis=None)
    assert "nets/htsat" in str(e.value) and message in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize("shape", [(2, 257, 16), (2, 100, 15), (2, 1, 100, 16)])
def test_inputs_of_a_wrong_shape_are_one_line(shape):
    with pytest.raises(UsageError, match=r"wants log-mel \[rows, frames, mels=16\] of 1 to 256 frames"):
        htsat.make(**TINY).init(jax.random.key(0), jnp.zeros(shape))
