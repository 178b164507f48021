"""Collapse numbers at their closed forms."""
import jax
import numpy as np
import pytest

from simclr_jax.evals import health


@pytest.mark.scorecard(45)
def test_a_constant_encoder_is_flagged_by_every_number():
    got = health.report(np.full((500, 32), 3.0, np.float32))
    assert got["spread"] < 1e-3 and abs(got["effective_rank"] - 1) < 1e-3 and abs(got["uniformity"]) < 1e-4


def test_uniform_directions_look_healthy():
    x = np.random.default_rng(0).normal(size=(4000, 32)).astype(np.float32)
    got = health.report(x)
    assert got["spread"] == pytest.approx(1, abs=0.02)
    assert got["effective_rank"] > 31.5
    # uniform on a sphere of dimension 32: |x-y|^2 is 2 - 2 t, t of variance 1/32: log E exp(4 t) - 4, about 16 / 64 - 4
    assert got["uniformity"] == pytest.approx(-3.75, abs=0.02)


def test_effective_rank_counts_equal_directions_and_weighs_unequal_ones():
    assert float(health.effective_rank(np.eye(10, 40, dtype=np.float32))) == pytest.approx(10, rel=1e-3)
    p = np.array([0.7, 0.2, 0.1])
    got = float(health.effective_rank(np.diag(p).astype(np.float32)))
    assert got == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-4)


def test_spread_of_two_opposite_points():
    x = np.array([[2.0, 0], [-5.0, 0]], np.float32)  # deviations 1 and 0
    assert float(health.spread(x)) == pytest.approx(np.sqrt(2) / 2, rel=1e-5)


def test_alignment_of_equal_orthogonal_and_opposite_views():
    x = np.eye(4, dtype=np.float32)
    for y, expected in ((3 * x, 0), (np.roll(x, 1, 0), 2), (-x, 4)):
        assert float(health.alignment(x, y)) == pytest.approx(expected, abs=1e-5)


def test_uniformity_of_a_cross():
    x = 7 * np.array([[1, 0], [-1, 0], [0, 1], [0, -1]], np.float32)  # of 6 pairs, 2 opposite (4) and 4 orthogonal (2)
    expected = np.log((2 * np.exp(-8) + 4 * np.exp(-4)) / 6)
    assert float(jax.jit(health.uniformity)(x)) == pytest.approx(expected, rel=1e-5)
