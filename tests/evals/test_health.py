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


def test_a_guard_says_once_that_a_run_has_collapsed():
    guard = health.Guard(100)
    text, lines = guard(1, {"train/loss": 1.0, "train/spread": 0.9, "train/queue_age": 4.0})
    assert text == "spread 0.9  queue age 4" and lines == []
    _, (line,) = guard(2, {"train/loss": 1.0, "train/spread": 0.01})
    assert line.startswith("step 2: collapsed: all examples get nearly one embedding (spread 0.01")
    assert guard(3, {"train/loss": 1.0, "train/spread": 0.01})[1] == []
    constant = {f"eval/{name}": value for name, value in health.report(np.ones((64, 8), np.float32)).items()}
    _, (line,) = guard(4, constant)
    assert "lie on one line (effective rank 1)" in line
    _, (line,) = guard(5, {"train/loss": 0.1, "train/usage": 0.11, "train/chance": np.log(10), "train/kl": 0.0,
                           "train/entropy": 0.1})
    assert "all examples choose one prototype" in line


@pytest.mark.parametrize("loss, kl", [(1.0, None), (7.0, 0.2)])
def test_a_guard_says_that_a_run_stays_where_it_began(loss, kl):
    """chance is 1: the loss, or prototypes' cross entropy. Not in the first tenth, nor after four lines of five."""
    numbers = {"train/loss": loss, "train/chance": 1.0} | ({"train/kl": kl, "train/entropy": 1 - kl} if kl else {})
    guard = health.Guard(100)
    for step in range(1, 10):
        assert guard(step, numbers)[1] == []
    (line,) = guard(10, numbers)[1]
    assert "at its plateau: 5 log lines in a row at 1, the loss of a net that tells nothing apart" in line
    guard = health.Guard(10)
    better = {"train/loss": 0.9, "train/chance": 1.0}
    assert [guard(i, numbers if i % 5 else better)[1] for i in range(1, 21)] == [[]] * 20
