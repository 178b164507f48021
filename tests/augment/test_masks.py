"""Block masks: how many, in what shapes, drawn by the row alone."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simclr_jax import augment
from simclr_jax.augment.masks import block, make
from simclr_jax.errors import UsageError

RECIPE = augment.build(((("resize", dict(size=28)),),) * 2 + ((("resize", dict(size=14)),),))


@functools.lru_cache(maxsize=None)
def compiled(seed, how):
    return jax.jit(make(RECIPE, seed, patch=2, **dict(how)))


def masks(ids, seed=0, **how):
    ids = jnp.stack([jnp.asarray(ids), jnp.zeros(len(ids), int)], axis=1).astype(jnp.uint32)
    return np.asarray(compiled(seed, tuple(how.items()))({"id": ids})["mask"])


def test_half_of_the_views_are_masked_by_shares_between_the_two():
    found = masks(np.arange(256))
    assert found.shape == (256, 2, 196) and found.dtype == bool
    share = found.mean(axis=2).ravel()
    hidden = share[share > 0]
    assert abs(len(hidden) / 512 - 0.5) < 0.08
    assert hidden.max() <= 0.5 and abs(hidden.mean() - 0.3) < 0.03 and hidden.std() > 0.08
    assert np.mean(hidden < 0.09) < 0.05  # nearly all reach the share that was drawn for them


def test_a_row_is_masked_the_same_in_any_company_and_each_view_by_itself():
    found = masks([3, 7, 11], chance=1.0)[1]
    np.testing.assert_array_equal(masks([7], chance=1.0)[0], found)
    assert not np.array_equal(found[0], found[1])
    assert not np.array_equal(masks([7], seed=1, chance=1.0)[0], found)


def test_patches_are_hidden_in_blocks():
    """Of neighbours of a hidden patch far more are hidden than the share of all."""
    found = masks(np.arange(64), chance=1.0, least=0.3, most=0.3).reshape(-1, 14, 14)
    both = (found[:, 1:] & found[:, :-1]).sum() / found[:, :-1].sum()
    assert both > 2 * found.mean()


def test_never_more_than_asked():
    of = jax.jit(jax.vmap(lambda key, count: block(key, 14, count, 0.3), in_axes=(0, None)))
    for count in (0, 1, 5, 98):
        hidden = np.asarray(of(jax.random.split(jax.random.key(0), 64), count)).sum(axis=(1, 2))
        assert hidden.max() <= count and (count < 5 or hidden.mean() > 0.9 * count)


@pytest.mark.parametrize("wrong, message", [
    (dict(patch=3), "patch=3 does not divide views of 28"), (dict(patch=2, least=0.6), "least=0.6, most=0.5"),
    (dict(patch=2, chance=2.0), "chance=2.0")])
def test_refusals(wrong, message):
    with pytest.raises(UsageError, match=message):
        make(RECIPE, 0, **wrong)
