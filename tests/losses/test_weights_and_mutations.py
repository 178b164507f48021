"""Shards that count differently; and the usual mistakes, each of which must turn the exactness test red."""
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from exactness import BATCH, compare, expected, measured
from losses import of_pairs, of_softmax
from simclr_jax import dist

WEIGHTS = np.float32([0.5, 1, 2, 0.25])  # of four shards

ROWS = {  # per-row references, and how often a shard's weight repeats over them
    "nt_xent": (of_pairs.rows_of_nt_xent, 2), "clip": (of_pairs.rows_of_clip, 1), "siglip": (of_pairs.rows_of_siglip, 1),
    "dcl": (of_pairs.rows_of_dcl, 2)}


def weighted(name):
    rows, views = ROWS[name]
    weight = np.tile(np.repeat(WEIGHTS, BATCH // 4), views)
    case = of_pairs.CASES[name]
    return case._replace(reference=lambda r, s: jnp.mean(weight * rows(*r.values(), **s)))


@pytest.mark.parametrize("comm", ["gather", "ring"])
@pytest.mark.parametrize("name", ["nt_xent", *(pytest.param(n, marks=pytest.mark.slow) for n in ("clip", "siglip", "dcl"))])
def test_shards_of_different_weight(name, comm):
    case = weighted(name)
    compare(measured(case, 4, weights=WEIGHTS, comm=comm, block=3), expected(case))


def value_of(x, gradient):
    """x with the gradient of another expression."""
    return lax.stop_gradient(x - gradient) + gradient


def dropped(x, axis):
    return value_of(dist.pmean(x, axis), dist.psum(x, axis))


def doubled(x, axis):
    return value_of(dist.pmean(x, axis), dist.pmean(x, axis) / dist.size(axis))


@pytest.mark.scorecard(3)
@pytest.mark.parametrize("name", ["nt_xent", "clip", pytest.param("siglip", marks=pytest.mark.slow),
                                  pytest.param("info_nce", marks=pytest.mark.slow)])
@pytest.mark.parametrize("mean", [dropped, doubled])
def test_a_dropped_or_doubled_mean_is_found(name, mean):
    case = (of_pairs.CASES | of_softmax.CASES)[name]
    with pytest.raises(AssertionError, match="norm"):
        compare(measured(case, 4, mean=mean), expected(case))


def gather_without_gradient(x, axis, *, dim=0):
    return lax.stop_gradient(lax.all_gather(x, axis, axis=dim, tiled=True))


def own_rows_only(x, axis):
    return lax.dynamic_slice_in_dim(x, dist.index(axis) * BATCH // 4, BATCH // 4)


def not_offset(b, axis):
    return dist.index(axis) * 0 + jnp.arange(b, dtype=jnp.int32)


@pytest.mark.scorecard(3)
@pytest.mark.parametrize("name, attribute, mistake", [
    ("info_nce", "all_gather", gather_without_gradient), ("clip", "psum_scatter", own_rows_only),
    ("siglip", "psum_scatter", own_rows_only), ("nt_xent", "rows", not_offset), ("clip", "rows", not_offset),
    ("siglip", "rows", not_offset), ("info_nce", "rows", not_offset)])
def test_a_gather_without_gradient_and_labels_not_offset_are_found(name, attribute, mistake, monkeypatch):
    case = (of_pairs.CASES | of_softmax.CASES)[name]
    monkeypatch.setattr(dist, attribute, mistake)
    with pytest.raises(AssertionError):
        compare(measured(case, 4, comm="gather"), expected(case))


@pytest.mark.parametrize("name", ["nt_xent", "clip"])
def test_cotangents_of_shards_taken_for_equal_are_found(name, monkeypatch):
    """The rules must weigh P_ji by row j's own cotangent, which differs from row to row and from shard to shard."""
    def own_cotangents(x, axis, *, dim=0):
        everyone = lax.all_gather(x, axis, axis=dim, tiled=True)
        if x.shape[1:] == (2,):  # log-sum-exp and cotangent of every row
            return jnp.stack([everyone[:, 0], jnp.tile(x[:, 1], 4)], axis=1)
        return everyone
    case = weighted(name)
    monkeypatch.setattr(dist, "all_gather", own_cotangents)
    with pytest.raises(AssertionError):
        compare(measured(case, 4, weights=WEIGHTS, comm="gather"), expected(case))
