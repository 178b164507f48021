"""Weighted kNN against DINO's numbers and against a plain loop."""
import numpy as np
import pytest
from oracle import cases

from simclr_jax.evals import knn


def loop(train_x, train_y, test_x, k, temperature, classes):
    """The definition, row by row in float64."""
    double = [x.astype(np.float64) for x in (train_x, test_x)]
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in double]
    result = []
    for row in unit[1]:
        similarity = unit[0] @ row
        total = np.zeros(classes)
        for i in np.argsort(-similarity, kind="stable")[:k]:
            total[train_y[i]] += np.exp(similarity[i] / temperature)
        result.append(total)
    return np.array(result)


def data(n=301, m=97, d=13, classes=5, seed=0):
    r = np.random.default_rng(seed)
    train_y, test_y = r.integers(0, classes, n), r.integers(0, classes, m)
    centres = r.normal(size=(classes, d))
    x = [(centres[y] + 1.5 * r.normal(size=(len(y), d))).astype(np.float32) * 7 for y in (train_y, test_y)]
    return x[0], train_y, x[1], test_y


def test_equals_dino():
    [(parameters, a)] = cases("knn")
    for k, (top1, top5) in zip(parameters["k"], a["out_top1_top5"]):
        near = knn.neighbours(a["train_x"], a["test_x"], k=k, train_chunk=256, test_chunk=64)
        v = knn.votes(near, a["train_y"], temperature=parameters["T"], classes=parameters["classes"])
        rank = np.argsort(-v, axis=1, kind="stable")
        hit = rank == a["test_y"][:, None]
        assert abs(100 * hit[:, 0].mean() - top1) <= 0.5 + 1e-9, k
        if k > 5:  # below, fewer classes than five have votes and the order of the others is anyone's
            assert abs(100 * hit[:, :5].any(1).mean() - top5) <= 0.5 + 1e-9, k


@pytest.mark.parametrize("k, temperature", [(1, 0.07), (20, 0.07), (200, 0.1), (5, 0.001)])
def test_equals_a_loop(k, temperature):
    train_x, train_y, test_x, _ = data()
    expected = loop(train_x, train_y, test_x, k, max(temperature, 0.002), 5)
    got = knn.predict(train_x, train_y, test_x, setting=knn.Setting(k, max(temperature, 0.002)), classes=5)
    np.testing.assert_array_equal(got, expected.argmax(1))
    v = knn.votes(knn.neighbours(train_x, test_x, k=k), train_y, temperature=temperature, classes=5)
    assert np.isfinite(v).all() and (v.max(1) > 0).all()
    if temperature >= 0.07:
        shares = expected / expected.sum(1, keepdims=True)
        np.testing.assert_allclose(v / v.sum(1, keepdims=True), shares, atol=2e-5)


@pytest.mark.parametrize("train_chunk, test_chunk", [(301, 97), (64, 32), (7, 5), (300, 96)])
def test_chunks_change_nothing(train_chunk, test_chunk):
    train_x, _, test_x, _ = data()
    whole = knn.neighbours(train_x, test_x, k=20)
    parts = knn.neighbours(train_x, test_x, k=20, train_chunk=train_chunk, test_chunk=test_chunk)
    np.testing.assert_array_equal(parts.index, whole.index)
    np.testing.assert_allclose(parts.similarity, whole.similarity, atol=1e-6)


def test_k_is_cut_to_the_training_set_and_padding_never_votes():
    train_x, _, test_x, _ = data(n=9)
    near = knn.neighbours(-np.abs(train_x), np.abs(test_x), k=200, train_chunk=4)  # every similarity below padding's 0
    assert near.index.shape == (97, 9)
    np.testing.assert_array_equal(np.sort(near.index, axis=1), np.tile(np.arange(9), (97, 1)))


def test_equal_neighbours_come_lowest_first_across_chunks():
    near = knn.neighbours(np.ones((10, 3), np.float32), np.ones((2, 3), np.float32), k=4, train_chunk=3)
    np.testing.assert_array_equal(near.index, [[0, 1, 2, 3]] * 2)
