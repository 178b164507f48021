"""The metric-learning losses as their papers write them, for the whole batch at once: dense, in float64."""
import jax.numpy as jnp
import numpy as np

from exactness import BATCH, Case, normal, views
from simclr_jax.losses.metric import contrastive, lifted_structure, n_pair, soft_nearest_neighbor
from simclr_jax.losses.triplet import triplet

# Four classes, one row that is alone in its class and two without a label.
LABELS = np.array([0, 1, 2, 0, 1, 3, 0, -1, 1, 2, 0, 4, 3, -1, 2, 1], np.int32)
assert len(LABELS) == BATCH


def distances(x, normalize=True):
    """f64[B, B], with a 1 on the diagonal, which no formula reads."""
    if normalize:
        x = x / jnp.sqrt(jnp.sum(x ** 2, axis=1, keepdims=True))
    squared = jnp.sum((x[:, None, :] - x[None, :, :]) ** 2, axis=2)
    return jnp.sqrt(squared + jnp.eye(len(x)))


def relation(labels):
    """(bool[B, B], bool[B, B]): is j a positive of i, is it a negative."""
    n = len(labels)
    positive = np.zeros((n, n), bool)
    negative = np.zeros((n, n), bool)
    for i in range(n):
        for j in range(n):
            if i != j:
                positive[i, j] = labels[i] == labels[j] and labels[i] >= 0
                negative[i, j] = not positive[i, j]
    return positive, negative


def mean_of_nonzero(terms, count=None):
    """The sum of terms over the number of those that are not 0."""
    count = jnp.sum(terms != 0) if count is None else count
    return jnp.sum(terms) / jnp.maximum(count, 1)


def of_contrastive(x, labels, pos_margin, neg_margin, squared=False, normalize=True):
    d, (positive, negative) = distances(x, normalize), relation(labels)
    pull = jnp.where(positive, jnp.maximum(0, d - pos_margin), 0)
    push = jnp.where(negative, jnp.maximum(0, neg_margin - d), 0)
    half = lambda t: 0.5 * t ** 2 if squared else t
    return mean_of_nonzero(half(pull), jnp.sum(pull > 0)) + mean_of_nonzero(half(push), jnp.sum(push > 0))


def of_triplet(x, labels, margin, swap=False, smooth=False, mining="all", normalize=True):
    d, (positive, negative) = distances(x, normalize), relation(labels)
    if mining == "hard":
        full = positive.any(1) & negative.any(1)
        far = jnp.where(positive, d, -jnp.inf).max(1)[full]
        near = jnp.where(negative, d, jnp.inf).min(1)[full]
        violation, valid = far - near + margin, np.ones(full.sum(), bool)
    else:
        near = jnp.broadcast_to(d[:, None, :], (len(x),) * 3)  # [a, p, n]
        if swap:
            near = jnp.minimum(near, d[None, :, :])
        violation = d[:, :, None] - near + margin
        valid = positive[:, :, None] & negative[:, None, :]
    term = jnp.where(valid, jnp.log1p(jnp.exp(violation)) if smooth else jnp.maximum(0, violation), 0)
    return mean_of_nonzero(term)


def of_n_pair(a, p, temperature=1.0, l2=0.0, normalize=True):
    norms = jnp.mean(jnp.sum(a ** 2, axis=1) + jnp.sum(p ** 2, axis=1))
    if normalize:
        a, p = (x / jnp.sqrt(jnp.sum(x ** 2, axis=1, keepdims=True)) for x in (a, p))
    s = a @ p.T / temperature
    other = ~np.eye(len(a), dtype=bool)
    over_positive = jnp.where(other, jnp.exp(s - jnp.diagonal(s)[:, None]), 0)
    return jnp.mean(jnp.log(1 + jnp.sum(over_positive, axis=1))) + l2 * norms


def of_lifted_structure(x, labels, pos_margin, neg_margin, generalized=False, normalize=True):
    d, (positive, negative) = distances(x, normalize), relation(labels)
    push = jnp.where(negative, jnp.exp(neg_margin - d), 0).sum(1)
    if generalized:
        anchors = positive.any(1)
        pull = jnp.where(positive, jnp.exp(d - pos_margin), 0).sum(1)[anchors]
        return jnp.mean(jnp.maximum(0, jnp.log(pull) + jnp.log(push[anchors])))
    j = jnp.log(push[:, None] + push[None, :]) + d - pos_margin
    return jnp.sum(jnp.where(positive, jnp.maximum(0, j) ** 2, 0)) / (2 * positive.sum())


def of_soft_nearest_neighbor(x, labels, temperature, normalize=True):
    positive, negative = relation(labels)
    anchors = positive.any(1)
    e = jnp.exp(-distances(x, normalize) ** 2 / temperature)
    near, all_others = (jnp.where(which, e, 0).sum(1)[anchors] for which in (positive, positive | negative))
    return -jnp.mean(jnp.log(near / all_others))


def labelled(loss, reference, shared, rows=None, **options):
    """A case of a loss of embeddings and labels; `shared` are its traced hyperparameters."""
    def measured(r, s, **how):
        return loss(r["x"], r["labels"], **s, **options, **how)

    def expected(r, s):
        return reference(r["x"], np.asarray(r["labels"]), **s, **options)
    rows = {"x": classes(), "labels": LABELS} if rows is None else rows
    return Case(measured, expected, rows, {k: np.float32(v) for k, v in shared.items()})


def classes(d=12, seed=3):
    """Rows around the centres of their classes, of lengths between 0.5 and 2."""
    x = normal(8, d, seed=seed)[LABELS] + 0.8 * normal(BATCH, d, seed=seed + 1)
    length = 2.0 ** np.linspace(-1, 1, BATCH)[:, None]
    return (x * length / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def paired(shared, **options):
    a, p = views(seed=5)
    return Case(lambda r, s, **how: n_pair(r["a"], r["p"], **s, **options, **how),
                lambda r, s: of_n_pair(r["a"], r["p"], **s, **options),
                {"a": 0.6 * a, "p": 0.6 * p}, {k: np.float32(v) for k, v in shared.items()})


margins = dict(pos_margin=0.2, neg_margin=1.4)
CASES = {
    "contrastive": labelled(contrastive, of_contrastive, margins),
    "contrastive squared": labelled(contrastive, of_contrastive, margins, squared=True),
    "contrastive not normalised": labelled(contrastive, of_contrastive, margins, normalize=False),
    "triplet": labelled(triplet, of_triplet, dict(margin=0.3)),
    "triplet with swap": labelled(triplet, of_triplet, dict(margin=0.3), swap=True),
    "triplet smooth": labelled(triplet, of_triplet, dict(margin=0.3), smooth=True),
    "triplet hard": labelled(triplet, of_triplet, dict(margin=0.3), mining="hard"),
    "triplet hard and smooth": labelled(triplet, of_triplet, dict(margin=0.0), mining="hard", smooth=True),
    "n_pair": paired(dict(temperature=0.5)),
    "n_pair with l2, not normalised": paired(dict(l2=0.02), normalize=False),
    "lifted_structure": labelled(lifted_structure, of_lifted_structure, margins),
    "lifted_structure generalized": labelled(lifted_structure, of_lifted_structure, margins, generalized=True),
    "soft_nearest_neighbor": labelled(soft_nearest_neighbor, of_soft_nearest_neighbor, dict(temperature=0.3)),
    "soft_nearest_neighbor not normalised": labelled(soft_nearest_neighbor, of_soft_nearest_neighbor,
                                                     dict(temperature=1.5), normalize=False),
}
