"""Every example once, whatever the batches, through one compiled shape."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from simclr_jax.errors import UsageError
from simclr_jax.evals import features


def batches(n, batch):
    r = np.random.default_rng(0)
    images, labels = r.random((n, 4, 4, 3), np.float32), np.arange(n, dtype=np.int32) - 1
    return images, labels, [{"image": images[i:i + batch], "label": labels[i:i + batch], "id": None}
                            for i in range(0, n, batch)]


def embedded(images):
    return images.reshape(len(images), -1)[:, :7] * 2 - 1


@pytest.mark.scorecard(36)
@pytest.mark.parametrize("n", [1, 7, 8, 9, 24, 29])
def test_every_example_once_in_order_with_one_shape(n):
    images, labels, stream = batches(n, 8)
    shapes = []

    @jax.jit
    def embed(x):
        shapes.append(x.shape)
        return jnp.reshape(x, (len(x), -1))[:, :7] * 2 - 1

    x, y = features.extract(embed, iter(stream), batch=8)
    np.testing.assert_allclose(x, embedded(images), atol=1e-6)
    np.testing.assert_array_equal(y, labels)
    assert shapes == [(8, 4, 4, 3)] and x.dtype == np.float32 and y.dtype == np.int32


def test_over_eight_devices_the_numbers_are_the_same(mesh):
    images, labels, stream = batches(29, 16)
    rows = NamedSharding(mesh(8), PartitionSpec("data"))
    embed = jax.jit(embedded, in_shardings=rows, out_shardings=rows)
    assert len(embed(images[:16]).sharding.device_set) == 8
    x, y = features.extract(embed, stream, batch=16)
    np.testing.assert_allclose(x, embedded(images), atol=1e-6)
    np.testing.assert_array_equal(y, labels)


def test_half_precision_comes_out_as_float32():
    _, _, stream = batches(5, 4)
    x, _ = features.extract(lambda a: jnp.asarray(embedded(a), jnp.bfloat16), stream, batch=4)
    assert x.dtype == np.float32


@pytest.mark.parametrize("embed, stream, batch, message", [
    (embedded, [], 4, "no examples"),
    (embedded, batches(6, 6)[2], 4, "6 rows, wanted at most 4"),
    (lambda x: x, batches(6, 4)[2], 4, r"\(4, 4, 4, 3\)"),
    (lambda x: embedded(x).mean(0, keepdims=True), batches(6, 4)[2], 4, "one vector an image"),
])
def test_what_cannot_work_is_refused_in_one_line(embed, stream, batch, message):
    with pytest.raises(UsageError, match=message) as e:
        features.extract(embed, stream, batch=batch)
    assert "\n" not in str(e.value)
