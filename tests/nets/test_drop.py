"""Drop path and dropout: what a row loses belongs to the row."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from nets import weights
from simclr_jax import dist
from simclr_jax.errors import UsageError
from simclr_jax.nets import drop, text, vit

SMALL = dict(width=16, depth=2, heads=2, patch=8, image=16)


def keys(n, seed=0):
    return jax.random.split(jax.random.key(seed), n)


@pytest.mark.parametrize("function, unit", [(drop.drop_path, 1), (drop.dropout, 24)])
def test_rates_means_and_what_is_dropped_together(function, unit):
    """A row (drop path) or an element (dropout) is 0 or 1 / (1 - rate) as large, with the rate as frequency."""
    x, n = jnp.ones((6000 // unit, 4, 6)), 6000 // unit * unit
    run = jax.jit(function)
    y = np.asarray(run(x, 0.3, keys(len(x)), 5))
    assert set(np.unique(y)) == {0, np.float32(1 / 0.7)}
    whole = np.all(y.reshape(len(x), -1) == y.reshape(len(x), -1)[:, :1], axis=1)
    assert np.all(whole) == (unit == 1)
    dropped = np.mean(y == 0)
    assert abs(dropped - 0.3) < 4 * (0.21 / n) ** 0.5 and abs(y.mean() - 1) < 4 * (0.3 / 0.7 / n) ** 0.5
    assert np.any(run(x, 0.3, keys(len(x)), 6) != y)  # another layer
    np.testing.assert_array_equal(run(x[7:9], 0.3, keys(len(x))[7:9], 5), y[7:9])  # another batch
    np.testing.assert_array_equal(run(x, 0.0, keys(len(x)), 5), x)


def test_gradients_flow_where_values_do():
    x, k = jnp.ones((8, 3)), keys(8)
    grad = jax.grad(lambda x: jnp.sum(drop.dropout(x, 0.5, k, 1)))(x)
    np.testing.assert_array_equal(grad, drop.dropout(x, 0.5, k, 1))
    assert drop.drop_path(x.astype(jnp.bfloat16), 0.5, k, 1).dtype == jnp.bfloat16
    old = jnp.stack([jax.random.key_data(a) for a in k])  # u32[rows, 2]: the keys of old
    np.testing.assert_array_equal(drop.dropout(x, 0.5, old, 1), drop.dropout(x, 0.5, k, 1))


def towers():
    images = vit.make(**SMALL, drop_path=0.5), jax.random.normal(jax.random.key(1), (8, 16, 16, 3))
    words = dict(vocab=50, length=6, eot=49, width=16, depth=2, heads=2, scan=True, remat=True)
    ids = text.make(**words, drop_path=0.5), jax.random.randint(jax.random.key(1), (8, 6), 0, 50)
    return {"vit": images, "text": ids}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["text", "vit"])
def test_splitting_the_batch_changes_nothing(mesh, name):
    """Over 1 and 4 devices, and the gradient: the same rows lose the same branches. The text tower scans its layers."""
    net, x = towers()[name]
    params = weights.init(net, x)

    def run(axis):
        def step(params, x, key):
            def loss(params):
                h = net.apply(params, {}, x, train=True, key=key)[0]["pooled"]
                return dist.pmean(jnp.mean(jnp.tanh(h)), axis), h
            return jax.grad(loss, has_aux=True)(params)
        if axis:
            step = jax.shard_map(step, mesh=mesh(4), in_specs=(P(), P(axis), P(axis)), out_specs=(P(), P(axis)))
        return jax.jit(step)(params, x, keys(8))

    (one, h), (many, g) = run(None), run(dist.DATA)
    np.testing.assert_allclose(h, g, atol=1e-5)
    for name, want in weights.flat(one).items():
        np.testing.assert_allclose(weights.flat(many)[name], want, rtol=1e-4, atol=1e-6, err_msg=name)


def test_layers_and_branches_draw_apart_at_a_rising_rate():
    """Of a net whose branches add what can be told apart: block i is dropped at rate i / (depth - 1) * drop_path."""
    net = vit.make(**dict(SMALL, depth=3), drop_path=0.6, final_norm=False, posemb="sincos", pool="mean", remat=True)
    x = jnp.zeros((400, 16, 16, 3))
    params = jax.tree.map(jnp.zeros_like, weights.init(net, x))
    for i in range(3):  # every branch is a constant of its own: the bias of its last product
        block = params["stack"][f"block{i + 1}"]
        for k, part in enumerate((block["attention"]["out"], block["mlp"]["fc2"])):
            part["bias"] = part["bias"].at[2 * i + k].set(1.0)
    run = jax.jit(lambda p, k: net.apply(p, {}, x, train=True, key=k)[0]["pooled"])
    base = jax.jit(lambda x: net.apply(params, {}, x, train=False)[0]["pooled"])(x[:1]) - (jnp.arange(16) < 6)
    added = np.asarray(run(params, keys(400)) - base)[:, :6]
    lost = np.abs(added) < 1e-3
    for i, rate in enumerate((0, 0.3, 0.6)):
        np.testing.assert_allclose(added[:, 2 * i:2 * i + 2][~lost[:, 2 * i:2 * i + 2]], 1 / (1 - rate), rtol=1e-4)
        assert np.all(np.abs(lost[:, 2 * i:2 * i + 2].mean(0) - rate) < 0.1)
    assert np.max(np.abs(np.corrcoef(lost[:, 2:].T.astype(float)) - np.eye(4))) < 0.2


def test_evaluation_drops_nothing_and_needs_no_key():
    net, x = towers()["vit"]
    params = weights.init(net, x)
    plain = vit.make(**SMALL)
    run = lambda net, **how: jax.jit(lambda x: net.apply(params, {}, x, **how)[0]["tokens"])(x)
    want = run(plain, train=True)
    np.testing.assert_array_equal(run(net, train=False), want)
    np.testing.assert_array_equal(run(net, train=False, key=keys(8)), want)
    assert np.any(run(net, train=True, key=keys(8)) != want)


@pytest.mark.parametrize("name", ["vit", "text"])
def test_training_without_keys_is_one_line(name):
    net, x = towers()[name]
    params = weights.init(net, x)
    with pytest.raises(UsageError, match=f"nets/{name}: drop_path: a rate of 0.5 .* no key"):
        net.apply(params, {}, x, train=True)
    for key in (jax.random.key(0), keys(7)):
        with pytest.raises(UsageError, match="for 8 rows; pass one PRNG key a row"):
            net.apply(params, {}, x, train=True, key=key)
