"""`config.remat` reaches every net with blocks: the same numbers, less kept between the passes, no reduction made twice."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from simclr_jax import build, config as configs, dist, names
from simclr_jax.errors import UsageError
from simclr_jax.nets import bert, convnet, htsat, modified_resnet, resnet, text, vit
from runs import ROOT

IMAGES = jax.ShapeDtypeStruct((8, 32, 32, 3), jnp.float32)
NETS = {
    "convnet": (convnet.make, dict(channels=(8, 8, 16)), IMAGES),
    "resnet": (resnet.make, dict(depth=18, width=0.125, stem="cifar", zero_init=False), IMAGES),
    "modified_resnet": (modified_resnet.make, dict(layers=(1, 1, 1, 1), width=8, heads=4, out=16, image=32), IMAGES),
    "vit": (vit.make, dict(width=32, depth=4, heads=2, patch=4, image=32), IMAGES),
    "text": (text.make, dict(vocab=40, length=16, eot=39, width=32, depth=4, heads=2),
             jax.ShapeDtypeStruct((8, 16), jnp.int32)),
    "bert": (bert.make, dict(vocab=40, length=16, width=16, depth=3, heads=2),
             jax.ShapeDtypeStruct((8, 16), jnp.int32)),
    "htsat": (htsat.make, dict(mels=8, side=32, width=16, depths=(3,), heads=(2,), window=4),
              jax.ShapeDtypeStruct((8, 100, 8), jnp.float32)),
}


def test_every_net_that_takes_it_is_tried():
    takes = {name for name in names.available("nets") if "remat" in names.parameters(names.factory("nets", name))}
    assert takes == set(NETS)


def inputs(like):
    if like.dtype == jnp.int32:
        return jax.random.randint(jax.random.key(1), like.shape, 0, 40)
    return jax.random.uniform(jax.random.key(1), like.shape)


def kept(name, remat):
    """Bytes that wait for the backward pass, and the parameters'."""
    make, how, x = NETS[name]
    net = make(axis=None, remat=remat, **how)
    params, stats = jax.eval_shape(net.init, jax.random.key(0), x)
    pooled = lambda p, s, x: net.apply(p, s, x, train=True)[0]["pooled"]
    pull = jax.eval_shape(lambda p, s, x: jax.vjp(lambda p: pooled(p, s, x), p)[1], params, stats, x)
    size = lambda tree: sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
    return size(pull), size(params)


@pytest.mark.parametrize("name", ["vit"] + [pytest.param(n, marks=pytest.mark.slow) for n in NETS if n != "vit"])
def test_less_is_kept(name):
    (less, params), (all_, _) = kept(name, True), kept(name, False)
    assert less - params < 0.6 * (all_ - params)


def step(name, remat):
    """A function of (params, stats, x) over two devices: loss, gradient and statistics."""
    make, how, x = NETS[name]
    net = make(axis=dist.DATA, remat=remat, **how)

    def run(params, stats, x):
        params = dist.varying(params, dist.DATA)

        def loss(params):
            out, new = net.apply(params, stats, x, train=True)
            return dist.pmean(jnp.mean(jnp.sin(out["pooled"])) + jnp.mean(out["tokens"] ** 2), dist.DATA), new
        (value, new), grads = jax.value_and_grad(loss, has_aux=True)(params)
        return value, dist.psum(grads, dist.DATA), new
    mesh = dist.make_mesh({"data": 2}, jax.devices()[:2])
    mapped = jax.shard_map(run, mesh=mesh, in_specs=(P(), P(), P(dist.DATA)), out_specs=P(), axis_names={dist.DATA})
    return net, jax.jit(mapped)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETS)
def test_the_numbers_are_the_same_and_no_reduction_is_made_twice(name):
    x, runs = inputs(NETS[name][2]), {}
    for remat in (False, True):
        net, run = step(name, remat)
        params, stats = net.init(jax.random.key(0), x)
        lowered = run.lower(params, stats, x)
        count = lowered.as_text().count("stablehlo.all_reduce")
        runs[remat] = jax.device_get(lowered.compile()(params, stats, x)), count
    (want, reductions), (got, again) = runs[False], runs[True]
    assert again == reductions
    np.testing.assert_allclose(got[0], want[0], rtol=1e-6)
    norm = lambda tree: np.sqrt(sum(np.sum(np.square(x, dtype=np.float64)) for x in jax.tree.leaves(tree)))
    assert norm(jax.tree.map(np.subtract, got[1], want[1])) < 1e-5 * norm(want[1])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), got[2], want[2])


@pytest.mark.slow
def test_a_compiled_tower_takes_less_memory():
    """In a loop over layers; of one after the other XLA's compiler for processors takes what is made again for the same."""
    def temporary(remat):
        net = vit.make(width=64, depth=8, heads=4, patch=4, image=32, scan=True, remat=remat)
        params = jax.eval_shape(net.init, jax.random.key(0), IMAGES)[0]
        grad = jax.grad(lambda p, x: jnp.sum(net.apply(p, {}, x, train=True)[0]["pooled"] ** 2))
        return jax.jit(grad).lower(params, IMAGES).compile().memory_analysis().temp_size_in_bytes
    assert temporary(True) < 0.5 * temporary(False)


def test_one_field_reaches_every_net():
    config, _ = configs.parse(["train", f"--config={ROOT}/configs/clip_digits.py", "--config.remat=true"])
    assert not any("remat" in net for net in config.nets.values())
    tokenizer = type("Tokenizer", (), dict(vocab=40, length=16, eot=39))
    method = build.method(config, axis=None, examples=1000, tokenizer=tokenizer)
    x = {"image": jnp.zeros((2, 8, 8, 3)), "text": jnp.zeros((2, 16), jnp.int32)}
    batch = {"views": x["image"][:, None], "text": x["text"], "id": jnp.zeros((2, 2), jnp.uint32)}
    params, extra = jax.eval_shape(method.init, jax.random.key(0), batch)
    for role in ("image", "text"):
        traced = str(jax.make_jaxpr(lambda p, e, x: method.embed(p, e, {role: x}))(params, extra, x[role]))
        assert "remat" in traced or "checkpoint" in traced, role


def test_a_config_without_blocks_is_refused():
    config, _ = configs.parse(["train", f"--config={ROOT}/configs/simclr_digits.py", "--config.remat=true"])
    config = config.copy_and_resolve_references().unlock()
    config.nets.backbone = dict(name="mlp")
    with pytest.raises(UsageError, match="none of config.nets has blocks"):
        build.method(configs.fill(config), axis=None, examples=1000)
