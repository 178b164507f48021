"""Multinomial logistic regression on frozen features by L-BFGS, at a whole range of l2 strengths.

In float64 numpy under scipy's L-BFGS-B: for the hundreds to thousands of examples of a few-label probe that is both
the sturdiest and the quickest way (70 fits of 100 x 256 features take under a second on one core; a vmapped
`optax.lbfgs` in float32 took 5 on two, and 6 to compile). Sets of ImageNet's size belong to `sgd.py`.
"""
import contextlib
from typing import NamedTuple, Sequence

import numpy as np
import scipy.optimize

# Strengths tried, in the units of `path`. SimCLR (Chen et al. 2020, appendix B.8) also picks l2 on a validation split.
L2S = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)


class Classifier(NamedTuple):
    weight: np.ndarray  # [D,C], for features as they come
    bias: np.ndarray  # [C]


def path(x: np.ndarray, y: np.ndarray, *, classes: int, l2s: Sequence[float] = L2S, tol: float = 1e-4,
         max_iter: int = 1000) -> list[Classifier]:
    """One classifier for each strength in `l2s`: the minimiser of mean cross-entropy + l2/2 |W|^2, bias free.

    The features are first centred and divided by ONE number, their root mean square over the examples given here, so
    that a strength means the same for every kind of feature. Not coordinate by coordinate: from ten examples a
    coordinate's own deviation is mostly noise, and a coordinate that is constant there would explode on others.
    scikit-learn's C is 1 / (l2 n) on features scaled that way.

    With fewer examples than features the problem is solved in the span of the examples, which holds the minimiser.
    Strong l2 comes first and each solution starts the next; results are in the order of `l2s`.

    Args:
      x: [n,D] features.
      y: i[n] classes in [0, classes).
      tol: largest component of the gradient (of the mean loss) at which a fit stops.
    """
    mean = x.mean(axis=0, dtype=np.float64)
    z = x.astype(np.float64) - mean
    scale = np.sqrt(np.mean(z * z)) or 1.0
    z, basis, found = z / scale, None, {}
    with _threads(z.size):
        if len(z) < z.shape[1]:
            left, singular, basis = np.linalg.svd(z, full_matrices=False)
            z = left * singular
        target = np.eye(classes)[y]
        theta = np.zeros((z.shape[1] + 1) * classes)
        for l2 in sorted(set(l2s), reverse=True):
            theta = scipy.optimize.minimize(_objective, theta, args=(z, target, l2), jac=True, method="L-BFGS-B",
                                            options=dict(maxiter=max_iter, gtol=tol, ftol=1e-13)).x
            weight, bias = theta.reshape(-1, classes)[:-1], theta.reshape(-1, classes)[-1]
            weight = (weight if basis is None else basis.T @ weight) / scale
            found[l2] = Classifier(weight, bias - mean @ weight)
    return [found[l2] for l2 in l2s]


def predict(classifier: Classifier, x: np.ndarray) -> np.ndarray:
    """i64[n]: the class of highest score for each row of x[n,D]."""
    return (x @ classifier.weight + classifier.bias).argmax(axis=1)


def _objective(theta, z, target, l2):
    """Mean cross-entropy + l2/2 |W|^2 and its gradient, at theta = [W; b] flattened."""
    theta = theta.reshape(-1, target.shape[1])
    weight = theta[:-1]
    score = z @ weight + theta[-1]
    score -= score.max(axis=1, keepdims=True)
    e = np.exp(score)
    total = e.sum(axis=1, keepdims=True)
    loss = np.mean(np.log(total[:, 0]) - np.sum(score * target, axis=1)) + 0.5 * l2 * np.sum(weight * weight)
    error = (e / total - target) / len(z)
    return loss, np.concatenate([z.T @ error + l2 * weight, error.sum(axis=0, keepdims=True)]).ravel()


def _threads(size: int):
    """BLAS on one thread for small products: several wait for each other, 50 times longer on a busy machine."""
    if size > 5_000_000:
        return contextlib.nullcontext()
    try:
        import threadpoolctl  # comes with scikit-learn
    except ImportError:
        return contextlib.nullcontext()
    return threadpoolctl.threadpool_limits(1, "blas")
