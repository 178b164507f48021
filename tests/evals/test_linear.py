"""Linear probes against scikit-learn and a plain loop."""
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from simclr_jax.evals import linear, sgd


def data(n, d, classes=4, seed=0, noise=2.0):
    r = np.random.default_rng(seed)
    y = np.concatenate([np.arange(classes), r.integers(0, classes, n - classes)])
    centres = np.random.default_rng(99).normal(size=(classes, d))
    return (3 + 5 * (centres[y] + noise * r.normal(size=(n, d)))).astype(np.float32), y


def softmax(z):
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


@pytest.mark.parametrize("n, d", [(200, 12), (20, 60)])
@pytest.mark.parametrize("l2", [1e-3, 0.1, 10.0])
def test_equals_scikit_learn_at_a_fixed_strength(n, d, l2):
    x, y = data(n, d)
    test_x, _ = data(300, d, seed=1)
    z = x.astype(np.float64) - x.mean(0, dtype=np.float64)
    scale = np.sqrt(np.mean(z * z))
    other = LogisticRegression(C=1 / (l2 * n), tol=1e-9, max_iter=5000).fit(z / scale, y)
    [ours] = linear.path(x, y, classes=4, l2s=[l2], tol=1e-8)
    probability = softmax(test_x @ ours.weight + ours.bias)
    expected = other.predict_proba((test_x - x.mean(0, dtype=np.float64)) / scale)
    np.testing.assert_allclose(probability, expected, atol=2e-5)
    np.testing.assert_allclose(ours.weight * scale, other.coef_.T, atol=2e-5)


def test_the_path_finds_what_single_fits_find_in_the_order_asked():
    x, y = data(150, 10)
    strengths = [0.1, 1e-3, 1.0]
    for l2, ours in zip(strengths, linear.path(x, y, classes=4, l2s=strengths, tol=1e-7)):
        [alone] = linear.path(x, y, classes=4, l2s=[l2], tol=1e-7)
        np.testing.assert_allclose(ours.weight, alone.weight, atol=1e-5)


def test_scale_and_shift_of_the_features_do_not_matter():
    x, y = data(80, 6)
    test_x, _ = data(200, 6, seed=1)
    for l2 in (1e-3, 1.0):
        guesses = [linear.predict(linear.path(f(x), y, classes=4, l2s=[l2], tol=1e-8)[0], f(test_x))
                   for f in (lambda a: a.astype(np.float64), lambda a: 1e-3 * a.astype(np.float64) - 8)]
        np.testing.assert_array_equal(*guesses)


def test_constant_features_give_the_commonest_class():
    y = np.array([0, 1, 1, 1, 2])
    for model in linear.path(np.full((5, 3), 7.0, np.float32), y, classes=3):
        np.testing.assert_array_equal(linear.predict(model, np.full((4, 3), 7.0)), 1)


def test_sgd_is_nesterov_with_a_cosine_and_the_linear_rule():
    x, y = data(64, 5)
    x = x / 10
    ours = sgd.fit(x, y, classes=4, batch=4096, epochs=20)  # batch cut to 64: one step an epoch, order irrelevant
    z, target = np.concatenate([x, np.ones((64, 1))], 1).astype(np.float64), np.eye(4)[y]
    theta, velocity = np.zeros((6, 4)), np.zeros((6, 4))
    for t in range(20):
        g = z.T @ (softmax(z @ theta) - target) / 64
        velocity = 0.9 * velocity + g
        theta -= 0.1 * 64 / 256 * 0.5 * (1 + np.cos(np.pi * t / 20)) * (g + 0.9 * velocity)
    np.testing.assert_allclose(np.vstack([ours.weight, ours.bias]), theta, atol=2e-6)


def test_sgd_sees_every_example_and_learns():
    x, y = data(300, 8, noise=0.3)
    x = (x - x.mean()) / x.std()
    test_x, test_y = data(300, 8, seed=1, noise=0.3)
    model = sgd.fit(x, y, classes=4, batch=64)
    assert np.mean(linear.predict(model, (test_x - test_x.mean()) / test_x.std()) == test_y) > 0.97
