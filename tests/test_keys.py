"""Our Threefry against JAX's, bit for bit."""
import jax
import numpy as np
import pytest

from simclr_jax import keys
from simclr_jax.augment import draws
from simclr_jax.errors import UsageError


@pytest.mark.parametrize("seed", [0, 1, 42, 2**31, 2**32 - 1])
def test_key_of_a_seed(seed):
    expected = jax.random.key_data(jax.random.key(np.uint32(seed)))
    np.testing.assert_array_equal(keys.seed_key(seed), expected)


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_seeds_that_jax_would_cut_are_refused(seed):
    with pytest.raises(UsageError, match="2\\*\\*32"):
        keys.seed_key(seed)


def test_fold_in_is_bit_equal():
    data = np.random.default_rng(0).integers(0, 2**32, 500, dtype=np.uint32)
    data[:3] = 0, 1, 2**32 - 1
    key = jax.random.key(7)
    expected = jax.vmap(lambda d: jax.random.key_data(jax.random.fold_in(jax.random.fold_in(key, d), d ^ 5)))(data)
    ours = keys.fold_in(keys.fold_in(keys.seed_key(7), data), data ^ 5)
    assert ours.dtype == np.uint32
    np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize("count", [1, 2, 7, 34])
def test_uniform_is_bit_equal(count):
    of = np.random.default_rng(count).integers(0, 2**32, (400, 2), dtype=np.uint32)
    expected = jax.vmap(lambda k: jax.random.uniform(jax.random.wrap_key_data(k), (count,)))(of)
    ours = keys.uniform(of, count)
    assert ours.dtype == np.float32
    np.testing.assert_array_equal(ours, expected)
    # A longer draw begins with the shorter one: the host draws for all ops of a view at once.
    np.testing.assert_array_equal(keys.uniform(of, count + 9)[:, :count], expected)


def test_keys_of_any_shape():
    of = keys.fold_in(keys.fold_in(keys.seed_key(3), np.arange(4))[:, None], np.arange(5))
    assert of.shape == (4, 5, 2)
    numbers = keys.uniform(of, 6)
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(3), 2), 4)
    np.testing.assert_array_equal(numbers[2, 4], jax.random.uniform(key, (6,)))
    assert len(np.unique(numbers)) == numbers.size


def test_rows_draw_in_numpy_what_they_draw_on_a_device():
    """simclr_jax.augment.draws, which the accelerator runs: the same keys, and the same numbers of an op."""
    rng = np.random.default_rng(0)
    ids = np.stack([rng.integers(0, 2**32, 60), rng.integers(0, 1000, 60)], 1).astype(np.uint32)
    ids[:2] = (0, 0), (2**32 - 1, 2**32 - 1)
    ours, theirs = keys.row_keys(2**32 - 1, ids), jax.jit(lambda i: draws.row_keys(2**32 - 1, i))(ids)
    np.testing.assert_array_equal(ours, jax.random.key_data(theirs))
    for view, op, count in ((0, 0, 34), (1, 5, 2), (9, 0, 1)):
        got = keys.uniform(keys.fold_in(keys.fold_in(ours, view), op), count)
        np.testing.assert_array_equal(got, jax.jit(lambda k: draws.uniforms(k, view, op, count))(theirs))
