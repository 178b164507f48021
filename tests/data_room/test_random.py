"""Our Threefry against JAX's, bit for bit."""
import jax
import numpy as np
import pytest
import tensorflow as tf

from simclr_jax.data import random
from simclr_jax.errors import UsageError


@pytest.mark.parametrize("seed", [0, 1, 42, 2**31, 2**32 - 1])
def test_key_of_a_seed(seed):
    expected = jax.random.key_data(jax.random.key(np.uint32(seed)))
    np.testing.assert_array_equal(random.seed_key(seed), expected)


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_seeds_that_jax_would_cut_are_refused(seed):
    with pytest.raises(UsageError, match="2\\*\\*32"):
        random.seed_key(seed)


def test_fold_in_is_bit_equal():
    data = np.random.default_rng(0).integers(0, 2**32, 500, dtype=np.uint32)
    data[:3] = 0, 1, 2**32 - 1
    key = jax.random.key(7)
    expected = jax.vmap(lambda d: jax.random.key_data(jax.random.fold_in(jax.random.fold_in(key, d), d ^ 5)))(data)
    ours = random.fold_in(random.fold_in(random.seed_key(7), data), data ^ 5)
    np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize("count", [1, 2, 7, 34])
def test_uniform_is_bit_equal(count):
    keys = np.random.default_rng(count).integers(0, 2**32, (400, 2), dtype=np.uint32)
    expected = jax.vmap(lambda k: jax.random.uniform(jax.random.wrap_key_data(k), (count,)))(keys)
    ours = tf.function(random.uniform)(tf.constant(keys), count)
    assert ours.dtype == tf.float32
    np.testing.assert_array_equal(ours, expected)
    # A longer draw begins with the shorter one: recipe.py draws for all ops of a view at once.
    np.testing.assert_array_equal(random.uniform(keys, count + 9)[:, :count], expected)


def test_keys_of_any_shape():
    keys = random.fold_in(random.fold_in(random.seed_key(3), tf.range(4))[:, None], tf.range(5))
    assert keys.shape == (4, 5, 2)
    numbers = random.uniform(keys, 6).numpy()
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(3), 2), 4)
    np.testing.assert_array_equal(numbers[2, 4], jax.random.uniform(key, (6,)))
    assert len(np.unique(numbers)) == numbers.size
