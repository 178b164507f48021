"""MoCo's way round batch statistics that give the answer away: keys are normalised among other rows than queries."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from simclr_jax import dist, names
from simclr_jax.nets.norm import BatchNorm
from simclr_jax.types import Ctx, Net

ROWS, WIDTH, STEP = 16, 3, jax.random.key(6)  # a draw that leaves no two neighbours together, as most do
VIEWS = np.random.default_rng(0).normal(1.0, 2.0, (ROWS, 2, WIDTH)).astype(np.float32)


def normalising(bn, axis):
    """A net of one batch norm."""
    module = BatchNorm(bn, axis)

    def init(key, x):
        variables = module.init(key, jnp.zeros(x.shape), train=False)
        return variables["params"], variables["batch_stats"]

    def apply(params, stats, x, *, train, key=None, mask=None):
        y, after = module.apply({"params": params, "batch_stats": stats}, x, train=train, mutable=["batch_stats"])
        return {"pooled": y}, after["batch_stats"]
    return Net(init, apply)


def forward(mesh, bn, shuffle):
    """What MoCo makes of the batch: (queries, keys, the teacher's running means)."""
    same = Net(lambda key, x: ({}, {}), lambda params, stats, x, **_: ({"pooled": x}, stats))
    nets = {"backbone": normalising(bn, dist.DATA), "projector": same}
    method = names.make("methods", dict(name="moco", queue=ROWS, shuffle=shuffle), nets)
    batch = {"views": jnp.asarray(VIEWS), "id": jnp.zeros((ROWS, 2), jnp.uint32)}
    params, extra = method.init(jax.random.key(0), batch)
    run = lambda batch: method.forward(params, extra, batch, Ctx(jnp.int32(0), STEP, dist.DATA))
    made, extra = jax.jit(jax.shard_map(run, mesh=mesh, in_specs=P(dist.DATA), out_specs=(P(dist.DATA), P())))(batch)
    return made["query"], made["key"], extra["teacher"]["stats"]["backbone"]["mean"]


def by_groups(x, groups):
    """float64: each group of rows by its own mean and variance."""
    y = np.zeros(x.shape)
    for rows in groups:
        y[rows] = (x[rows] - x[rows].mean(0)) / np.sqrt(x[rows].var(0) + 1e-5)
    return y


@pytest.mark.parametrize("devices, bn", [(8, "local"), (1, "rows=2"), (4, "rows=2")])
def test_a_query_and_its_key_are_normalised_among_different_rows(mesh, devices, bn):
    neighbours = np.arange(ROWS).reshape(8, 2)
    order = np.asarray(jax.random.permutation(jax.random.fold_in(STEP, 2**31), ROWS))
    dealt = order.reshape(8, 2)  # the rows whose keys' images meet
    assert not {frozenset(rows) for rows in neighbours.tolist()} & {frozenset(rows) for rows in dealt.tolist()}
    x = VIEWS.astype(np.float64)
    q, k, mean = forward(mesh(devices), bn, shuffle=True)
    np.testing.assert_allclose(q, by_groups(x[:, 0], neighbours), atol=2e-5)
    np.testing.assert_allclose(k, by_groups(x[:, 1], dealt), atol=2e-5)  # each key back at its query's place
    np.testing.assert_allclose(mean, 0.1 * x[:, 1].mean(0), atol=1e-6)
    if devices == 8:
        np.testing.assert_allclose(forward(mesh(8), bn, shuffle=False)[1], by_groups(x[:, 1], neighbours), atol=2e-5)


def test_rows_are_dealt_across_devices_and_back(mesh):
    order = jnp.asarray(np.random.default_rng(1).permutation(ROWS), jnp.int32)

    def there_and_back(x):
        dealt = dist.deal(x, order, dist.DATA)
        return dealt, dist.deal(dealt, jnp.argsort(order), dist.DATA)
    run = jax.jit(jax.shard_map(there_and_back, mesh=mesh(8), in_specs=P(dist.DATA), out_specs=P(dist.DATA)))
    dealt, back = run(jnp.asarray(VIEWS))
    np.testing.assert_array_equal(dealt, VIEWS[np.asarray(order)])
    np.testing.assert_array_equal(back, VIEWS)
    np.testing.assert_array_equal(dist.deal(jnp.asarray(VIEWS), order, None), dealt)
