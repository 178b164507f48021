"""CLIP and SigLIP: released code's numbers on one device and on four, closed forms, metrics, the edges of f32."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from exactness import value_and_grad, views
from oracle import DATA, cases
from simclr_jax import dist
from simclr_jax.losses import clip, siglip

WAYS = {"block": 5}, pytest.param({"block": 8}, marks=pytest.mark.slow), pytest.param({}, marks=pytest.mark.slow)


def stored(c, *names):
    return [jnp.asarray(c[n], jnp.float64) for n in names]


def equal(loss, args, c, names, value="out_loss_f64"):
    """Value and gradients in f64 against those the original left, which ran in f64."""
    got, grads = value_and_grad(loss, argnums=tuple(range(len(args))))(*args)
    np.testing.assert_allclose(got, c[value], rtol=1e-9)
    for g, name in zip(grads, names):
        np.testing.assert_allclose(g, c[f"grad_{name}_f64"], rtol=1e-7, atol=1e-10, err_msg=name)


@pytest.mark.parametrize("how", WAYS, ids=str)
def test_clip_equals_open_clip(how):
    names = "image", "text", "logit_scale"
    with jax.enable_x64(True):
        for _, c in cases("openclip_clip"):
            equal(lambda i, t, s: clip(i, t, scale=s, normalize=False, **how), stored(c, *names), c, names)


@pytest.mark.parametrize("how", WAYS, ids=str)
def test_siglip_equals_open_clip(how):
    names = "image", "text", "logit_scale", "logit_bias"
    with jax.enable_x64(True):
        for _, c in cases("openclip_siglip"):
            equal(lambda i, t, s, b: siglip(i, t, scale=s, bias=b, normalize=False, **how), stored(c, *names), c, names)


def test_clip_equals_open_clip_in_f32():
    for _, c in cases("openclip_clip"):
        loss, (image, scale) = value_and_grad(lambda i, s: clip(i, c["text"], scale=s, normalize=False),
                                                  argnums=(0, 1))(c["image"], c["logit_scale"])
        loose = 10 if c["logit_scale"] > 15 else 1
        np.testing.assert_allclose(loss, c["out_loss_f64"], rtol=1e-5 * loose, atol=1e-6 * loose)
        np.testing.assert_allclose(image, c["grad_image_f64"], rtol=1e-4 * loose, atol=1e-6 * loose)
        np.testing.assert_allclose(scale, c["grad_logit_scale_f64"], rtol=1e-4 * loose, atol=1e-6 * loose)


def test_clap_is_clip_of_audio_and_text():
    """LAION's second form averages the loss over two pairs of projections, each direction with a scale of its own."""
    with jax.enable_x64(True):
        for parameters, c in cases("clap"):
            if not parameters["mlp_loss"]:
                names = "audio", "text", "scale_a"
                equal(lambda a, t, s: clip(a, t, scale=s, normalize=False), stored(c, *names), c, names)


@functools.lru_cache(maxsize=None)
def on_four(loss, **options):
    """Loss of the global batch, and the gradient of the SUM of the shards' losses, as autograd leaves it on ranks."""
    mesh = dist.make_mesh({"data": 4}, jax.devices()[:4])

    def shard(a, b, shared):
        def whole(a, b, shared):
            return dist.psum(loss(a, b, axis="data", **shared, **options), "data")
        value, grads = jax.value_and_grad(whole, argnums=(0, 1, 2))(a, b, shared)
        return value / 4, grads
    specs = P("data"), P("data"), P()
    return jax.jit(jax.shard_map(shard, mesh=mesh, in_specs=specs, out_specs=(P(), specs)))


@pytest.mark.parametrize("comm", ["gather", "ring"])
@pytest.mark.parametrize("name, loss, normalize, arrays, shared", [
    ("clip0_local1_grad1", clip, False, ("image", "text"), {"scale": "logit_scale"}),
    ("clip1_local1_grad1", clip, False, ("image", "text"), {"scale": "logit_scale"}),
    ("siglip0_gather", siglip, False, ("image", "text"), {"scale": "logit_scale", "bias": "logit_bias"}),
    ("siglip1_gather", siglip, False, ("image", "text"), {"scale": "logit_scale", "bias": "logit_bias"})])
def test_four_processes_of_the_original(name, loss, normalize, arrays, shared, comm):
    z = np.load(DATA / "distributed4.npz")
    c = {k.split("/")[1]: z[k] for k in z.files if k.startswith(name + "/")}
    with jax.enable_x64(True):
        a, b = (np.concatenate(c[n]).astype(np.float64) for n in arrays)
        value, (da, db, of_shared) = on_four(loss, normalize=normalize, comm=comm)(
            a, b, {k: jnp.asarray(c[n], jnp.float64) for k, n in shared.items()})
    np.testing.assert_allclose(value, c["out_loss_f64"].mean(), rtol=1e-9)
    for got, n in ((da, arrays[0]), (db, arrays[1])):
        np.testing.assert_allclose(got, np.concatenate(c[f"grad_{n}_f64"]), rtol=1e-7, atol=1e-10)
    for k, n in shared.items():
        np.testing.assert_allclose(of_shared[k], c[f"grad_{n}_f64"].sum(), rtol=1e-7, atol=1e-10)


def test_closed_forms():
    n, scale = 8, 4.0
    apart, same = jnp.eye(n), jnp.ones((n, 3))
    np.testing.assert_allclose(clip(apart, apart, scale=scale), np.log(np.exp(scale) + n - 1) - scale, rtol=0,
                               atol=5e-7)  # of a difference of two numbers near 4
    np.testing.assert_allclose(clip(same, same, scale=scale), np.log(n), rtol=1e-6)
    want = np.log1p(np.exp(-scale + 2)) + (n - 1) * np.log1p(np.exp(-2))
    np.testing.assert_allclose(siglip(apart, apart, scale=scale, bias=-2.0), want, rtol=1e-6)


@pytest.mark.parametrize("loss", [functools.partial(clip, scale=3.0), functools.partial(siglip, scale=3.0, bias=-1.0)],
                         ids=["clip", "siglip"])
def test_pairs_in_another_order_are_the_same_batch(loss):
    image, text = views(8)
    order = np.random.default_rng(0).permutation(len(image))
    np.testing.assert_allclose(loss(image[order], text[order]), loss(image, text), rtol=1e-6)


def test_clip_is_symmetric():
    image, text = views(8)
    np.testing.assert_allclose(clip(text, image, scale=3.0), clip(image, text, scale=3.0), rtol=1e-6)


@pytest.mark.parametrize("block", [None, 5])
@pytest.mark.parametrize("scale", [100.0, 1e4])
def test_large_scales_stay_exact(scale, block):
    image, text = views(8)
    unit = lambda x: x.astype(np.float64) / np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True)
    s = scale * unit(image) @ unit(text).T
    lse = lambda s, d: np.log(np.exp(s - s.max(d, keepdims=True)).sum(d)) + s.max(d)
    want = np.mean(lse(s, 1) + lse(s, 0) - 2 * np.diag(s)) / 2
    loss, g = value_and_grad(lambda i: clip(i, text, scale=scale, block=block))(image)
    np.testing.assert_allclose(loss, want, rtol=1e-4, atol=1e-5)
    assert np.isfinite(g).all()
    sign = 2 * np.eye(len(s)) - 1
    want = np.mean(np.sum(np.logaddexp(0, -sign * (s - 10)), axis=1))
    loss, g = value_and_grad(lambda i: siglip(i, text, scale=scale, bias=-10.0, block=block))(image)
    np.testing.assert_allclose(loss, want, rtol=1e-4, atol=1e-5)
    assert np.isfinite(g).all()


@pytest.mark.parametrize("loss", [functools.partial(clip, scale=3.0), functools.partial(siglip, scale=3.0, bias=-1.0)],
                         ids=["clip", "siglip"])
def test_rows_of_zeros_and_a_batch_of_one(loss):
    image, text = views(8)
    for block in (None, 5):
        value, g = value_and_grad(functools.partial(loss, block=block))(jnp.zeros_like(image), text)
        assert np.isfinite(value) and np.isfinite(g).all()
        value, g = value_and_grad(functools.partial(loss, block=block))(image[:1], text[:1])
        assert np.isfinite(value) and np.isfinite(g).all()


@pytest.mark.parametrize("n, how", [(1, {}), (1, {"block": 5}), (4, {"comm": "gather"}), (4, {"comm": "ring", "block": 3})],
                         ids=str)
def test_metrics_against_the_written_out_softmax(n, how):
    image, text = views(6)
    mesh = dist.make_mesh({"data": n}, jax.devices()[:n])
    axis = "data" if n > 1 else None

    def measure(i, t):
        found = {"clip": clip(i, t, scale=4.0, axis=axis, metrics=True, **how)[1],
                 "siglip": siglip(i, t, scale=4.0, bias=-1.0, axis=axis, metrics=True, **how)[1]}
        return dist.pmean(found, "data") if axis else found
    fn = jax.shard_map(measure, mesh=mesh, in_specs=P("data"), out_specs=P()) if axis else measure
    got = jax.jit(fn)(image, text)
    u, v = (x.astype(np.float64) / np.linalg.norm(x, axis=1, keepdims=True) for x in (image, text))
    s = u @ v.T
    i = np.arange(len(s))
    p, q = (e / e.sum(1, keepdims=True) for e in (np.exp(4 * s), np.exp(4 * s.T)))
    entropies = [-(x * np.log(x)).sum(1).mean() for x in (p, q)]
    hits = [(x.argmax(1) == i).mean() for x in (p, q)]
    assert 0 < min(hits) and max(hits) < 1
    want = {"clip": {"accuracy": np.mean(hits), "entropy": np.mean(entropies), "positive": np.diag(s).mean(),
                     "negative": s[i[:, None] != i].mean()},
            "siglip": {"accuracy": hits[0], "positive": np.diag(s).mean(), "negative": s[i[:, None] != i].mean()}}
    for loss in want:
        assert got[loss].keys() == want[loss].keys()
        for name, value in want[loss].items():
            np.testing.assert_allclose(got[loss][name], value, rtol=1e-5, atol=1e-6, err_msg=f"{loss} {name}")


@pytest.mark.parametrize("block", [None, 5])
def test_metrics_carry_no_gradient(block):
    image, text = views(6)
    for loss in (functools.partial(clip, scale=3.0), functools.partial(siglip, scale=3.0, bias=-1.0)):
        g = jax.jit(jax.grad(lambda i: sum(loss(i, text, metrics=True, block=block)[1].values())))(image)
        assert not np.any(g)


def test_shapes_that_do_not_pair_are_refused():
    for loss in (functools.partial(clip, scale=1.0), functools.partial(siglip, scale=1.0, bias=0.0)):
        with pytest.raises(ValueError, match=r"two arrays of one shape \[b, D\], got \(4, 2\) and \(4, 3\)"):
            loss(jnp.ones((4, 2)), jnp.ones((4, 3)))
        with pytest.raises(ValueError, match="comm='all'"):
            loss(jnp.ones((4, 2)), jnp.ones((4, 2)), comm="all")
