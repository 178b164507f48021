"""Metric-learning losses: the numbers of pytorch-metric-learning, closed forms, symmetries, metrics and edges."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from losses.of_metric import BATCH, CASES, LABELS, classes, views
from oracle import cases
from simclr_jax import dist
from simclr_jax.losses.distance import distance
from simclr_jax.losses.metric import contrastive, lifted_structure, n_pair, soft_nearest_neighbor
from simclr_jax.losses.triplet import triplet

LABELLED = ("contrastive", "triplet", "triplet with swap", "triplet hard", "lifted_structure",
            "lifted_structure generalized", "soft_nearest_neighbor")


def fast(*chosen):
    """These by `make test`, the others by `make test-all`."""
    return pytest.mark.parametrize("name", [n if n in chosen else pytest.param(n, marks=pytest.mark.slow)
                                            for n in (*LABELLED, "n_pair")])


@functools.lru_cache(maxsize=None)
def compiled(name):
    """(rows, shared) -> ((value, metrics), gradients of both), a case's loss on one device, compiled once per shape."""
    def loss(floats, shared, labels):
        return CASES[name].loss(floats | labels, shared, metrics=True, block=5)
    fn = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))

    def of(rows, shared):
        labels = {k: jnp.asarray(x, jnp.int32) for k, x in rows.items() if k == "labels"}
        floats = {k: jnp.asarray(x, jnp.float32) for k, x in rows.items() if k != "labels"}
        return fn(floats, {k: jnp.float32(x) for k, x in shared.items()}, labels)
    return of


def value_of(name, x, labels):
    return compiled(name)({"x": x, "labels": labels}, CASES[name].shared)[0][0]


def quick(fn, *arrays, **options):
    """fn(*arrays, **options), compiled as a whole: sooner done than one operation after the other."""
    return jax.jit(functools.partial(fn, **options))(*arrays)


# The numbers of the original.


@functools.lru_cache(maxsize=None)
def stored_loss(kind, swap, smooth, block):
    """(x, labels or pairs, margins) -> (value, gradient)."""
    losses = {
        "ContrastiveLoss": lambda x, labels, m: contrastive(x, labels, block=block, **m),
        "TripletMarginLoss": lambda x, labels, m: triplet(x, labels, swap=swap, smooth=smooth, block=block, **m),
        "LiftedStructureLoss": lambda x, labels, m: lifted_structure(x, labels, block=block, **m),
        "GeneralizedLiftedStructureLoss": lambda x, labels, m: lifted_structure(x, labels, generalized=True,
                                                                                block=block, **m),
        "NPairsLoss": lambda x, pairs, m: n_pair(x[pairs[0]], x[pairs[1]], block=block),
    }
    return jax.jit(jax.value_and_grad(losses[kind])) if kind in losses else None


def stored(parameters, c, block, dtype):
    labels, kind = c["labels"], parameters["loss"]
    if kind == "NPairsLoss":  # one pair of each label: its first row is the anchor, its second the positive
        labels = np.array([np.flatnonzero(labels == k)[:2] for k in np.unique(labels)]).T
    margins = {k: jnp.asarray(parameters[k], dtype) for k in ("margin", "pos_margin", "neg_margin") if k in parameters}
    fn = stored_loss(kind, parameters.get("swap", False), parameters.get("smooth_loss", False), block)
    return fn(jnp.asarray(c["embeddings"], dtype), jnp.asarray(labels), margins)


STORED = [(p, c) for p, c in cases("pml") if stored_loss(p["loss"], False, False, None)]
ids = [f"{p['loss']}-{i}" for i, (p, _) in enumerate(STORED)]
later = [pytest.param(i, marks=pytest.mark.slow if i >= len(STORED) // 2 else ()) for i in range(len(STORED))]


def test_all_stored_cases_of_these_losses_are_met():
    assert len(STORED) == 18


@pytest.mark.parametrize("i", later, ids=ids)
def test_equals_pytorch_metric_learning(i):
    parameters, c = STORED[i]
    with jax.enable_x64(True):
        value, gradient = stored(parameters, c, 5, jnp.float64)
        np.testing.assert_allclose(value, c["out_loss_f64"], rtol=1e-9)
        np.testing.assert_allclose(np.asarray(gradient), c["grad_embeddings_f64"], rtol=1e-7, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("i", range(len(STORED)), ids=ids)
def test_equals_pytorch_metric_learning_in_float32(i):
    parameters, c = STORED[i]
    value, gradient = stored(parameters, c, None, jnp.float32)
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, c["out_loss_f64"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(gradient, c["grad_embeddings_f64"], rtol=1e-4, atol=1e-6)


NOT_STORED = "triplet hard", "soft_nearest_neighbor"  # the originals' numbers are above, float32 in test_exactness.py


@pytest.mark.slow
@pytest.mark.parametrize("name", [n if n in NOT_STORED else pytest.param(n, marks=pytest.mark.slow) for n in CASES])
def test_equals_the_reference_in_float64(name):
    case = CASES[name]
    with jax.enable_x64(True):
        inputs = {k: jnp.asarray(x, jnp.float64) for k, x in (case.rows | case.shared).items() if k != "labels"}

        def of(fn, **how):
            return jax.jit(jax.value_and_grad(lambda t: fn({k: t.get(k, case.rows[k]) for k in case.rows},
                                                           {k: t[k] for k in case.shared}, **how)))(inputs)
        value, gradients = of(case.loss, block=5)
        want, wants = of(case.reference)
        np.testing.assert_allclose(value, want, rtol=1e-9)
        for k in wants:
            np.testing.assert_allclose(np.asarray(gradients[k]), wants[k], rtol=1e-7, atol=1e-10, err_msg=k)


# Closed forms. Unit rows at right angles are sqrt(2) apart.

ROOT = np.sqrt(2)
EYE = np.eye(4, dtype=np.float32)


def test_contrastive_of_a_corner():
    x, labels = EYE[:3], np.array([0, 0, 1])
    of = jax.jit(contrastive)
    # One positive pair and two negative pairs, all at sqrt(2).
    np.testing.assert_allclose(of(x, labels, neg_margin=2.0), ROOT + 2 - ROOT, rtol=1e-6)
    np.testing.assert_allclose(of(x, labels, pos_margin=0.4), ROOT - 0.4, rtol=1e-6)
    squares = quick(contrastive, x, labels, neg_margin=2.0, squared=True)
    np.testing.assert_allclose(squares, 1 + (2 - ROOT) ** 2 / 2, rtol=1e-6)
    # Copies are where they should be, and so do not count in the mean.
    np.testing.assert_allclose(of(EYE[[0, 0, 1]], np.zeros(3, int), neg_margin=1.0), ROOT, rtol=1e-6)


@pytest.mark.parametrize("mining", ["all", "hard"])
def test_triplets_of_equal_sides(mining):
    labels = np.array([0, 0, 1, 1])
    np.testing.assert_allclose(quick(triplet, EYE, labels, margin=0.3, mining=mining), 0.3, rtol=1e-6)
    smooth = quick(triplet, EYE, labels, margin=0.0, mining=mining, smooth=True)
    np.testing.assert_allclose(smooth, np.log(2), rtol=1e-6)


def test_triplets_with_swap():
    # Anchor 0 has its positive at sqrt(2) and its negative at 2, but the positive has its negative at sqrt(2).
    x, labels = np.array([[1.0, 0], [0, 1], [-1, 0]], np.float32), np.array([0, 0, 1])
    np.testing.assert_allclose(quick(triplet, x, labels, margin=1.0), (ROOT - 2 + 1 + 1) / 2, rtol=1e-6)
    np.testing.assert_allclose(quick(triplet, x, labels, margin=1.0, swap=True), 1, rtol=1e-6)


def test_n_pair_of_a_corner():
    np.testing.assert_allclose(quick(n_pair, EYE, EYE, temperature=0.5), np.log(1 + 3 * np.exp(-2)), rtol=1e-6)
    large = quick(n_pair, 2 * EYE, 3 * EYE, l2=0.1)
    np.testing.assert_allclose(large, np.log(1 + 3 * np.exp(-1)) + 0.1 * (4 + 9), rtol=1e-6)
    plain = quick(n_pair, 2 * EYE, EYE, normalize=False)
    np.testing.assert_allclose(plain, np.log(1 + 3 * np.exp(-2)), rtol=1e-6)


def test_n_pair_of_two_classes_is_the_smooth_triplet():
    """With one negative it is a soft triplet loss of inner products, of unit rows (d_an^2 - d_ap^2) / 2."""
    a, p = np.random.default_rng(0).standard_normal((2, 2, 3))
    a, p = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, p))
    terms = [np.log1p(np.exp(((a[i] - p[i]) ** 2).sum() / 2 - ((a[i] - p[1 - i]) ** 2).sum() / 2)) for i in range(2)]
    np.testing.assert_allclose(quick(n_pair, a.astype(np.float32), p.astype(np.float32)), np.mean(terms), rtol=1e-6)


def test_lifted_structure_of_a_corner():
    labels = np.array([0, 0, 1, 1])
    # Each row has two negatives at sqrt(2); the pair lies sqrt(2) apart, which cancels.
    lifted = quick(lifted_structure, EYE, labels, neg_margin=2.0)
    np.testing.assert_allclose(lifted, (np.log(4) + 2) ** 2 / 2, rtol=1e-6)
    general = quick(lifted_structure, EYE, labels, pos_margin=0.5, neg_margin=2.0, generalized=True)
    np.testing.assert_allclose(general, np.log(2) + 2 - 0.5, rtol=1e-6)


def test_soft_nearest_neighbor_of_a_corner():
    labels = np.array([0, 0, 1, 1])
    same = quick(soft_nearest_neighbor, EYE, labels, temperature=0.1)
    np.testing.assert_allclose(same, np.log(3), rtol=1e-5)  # one of three others, all as far
    line = np.array([[0], [0], [3], [3]], np.float32)
    plain = quick(soft_nearest_neighbor, line, labels, temperature=2.0, normalize=False)
    np.testing.assert_allclose(plain, np.log(1 + 2 * np.exp(-4.5)), rtol=1e-5)


# Symmetries.


@pytest.mark.slow
@pytest.mark.parametrize("name", LABELLED)
def test_neither_order_nor_rotation_nor_the_names_of_labels_matter(name):
    x, random = classes(), np.random.default_rng(1)
    value, order = value_of(name, x, LABELS), random.permutation(BATCH)
    turn = np.linalg.qr(random.standard_normal((12, 12)))[0]
    np.testing.assert_allclose(value_of(name, x[order], LABELS[order]), value, rtol=2e-6)
    np.testing.assert_allclose(value_of(name, x @ turn, LABELS), value, rtol=2e-6)
    np.testing.assert_allclose(value_of(name, 3 * x, np.where(LABELS < 0, -4, 7 * LABELS + 1)), value, rtol=2e-6)
    # Unlabelled rows, of which there are two, are as rows that are alone in their classes.
    alone = np.where(LABELS < 0, 100 + np.arange(BATCH), LABELS)
    assert len(np.unique(alone)) == len(np.unique(LABELS)) + 1
    np.testing.assert_allclose(value_of(name, x, alone), value, rtol=1e-7)


def test_n_pair_does_not_mind_the_order_of_pairs():
    a, p = views()
    order = np.random.default_rng(0).permutation(len(a))
    (value, _), _ = compiled("n_pair")({"a": a, "p": p}, {"temperature": 0.5})
    (again, _), _ = compiled("n_pair")({"a": a[order], "p": 2 * p[order]}, {"temperature": 0.5})
    np.testing.assert_allclose(again, value, rtol=1e-6)


# Distances.


def test_distances_of_copies_are_zero_and_have_no_gradient():
    x = np.random.default_rng(0).standard_normal((40, 512)).astype(np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    total, gradient = jax.jit(jax.value_and_grad(lambda x, y: jnp.trace(distance(x, y))))(x, x)
    assert total == 0 and not gradient.any()


def test_distances_of_near_rows_are_as_exact_as_their_docstring_says():
    both = jax.jit(lambda x, y: (jnp.diagonal(distance(x, y)), jax.grad(lambda x: jnp.trace(distance(x, y)))(x)))
    for d, rtol in ((1, 2e-6), (0.1, 1e-4), (0.01, 1e-2)):
        x, step = np.random.default_rng(0).standard_normal((2, 64, 128))
        x, step = (t / np.linalg.norm(t, axis=1, keepdims=True) for t in (x, step))
        y = x + d * step
        x, y = x.astype(np.float32), (y / np.linalg.norm(y, axis=1, keepdims=True)).astype(np.float32)
        got, gradient = both(x, y)
        gap = x.astype(np.float64) - y
        want = np.linalg.norm(gap, axis=1)
        np.testing.assert_allclose(got, want, rtol=rtol)
        assert np.linalg.norm(gradient - gap / want[:, None], axis=1).max() < rtol


def test_equally_hard_rows_share_the_gradient():
    x = EYE[[0, 1, 1, 2]]
    gradient = quick(jax.grad(lambda x: triplet(x, jnp.array([0, 0, 0, 1]), margin=0.3, mining="hard")), x)
    assert gradient[1].any()
    np.testing.assert_allclose(gradient[1], gradient[2], rtol=1e-6)


# Metrics.


def rows_of(name):
    """A case's rows, of n_pair some nearer to a row that is not theirs."""
    rows = CASES[name].rows
    return {"a": rows["a"] + rows["p"][::-1], "p": rows["p"]} if name == "n_pair" else rows


def written_out(name):
    """The metrics of a case, by loops over pairs and triplets."""
    if name == "n_pair":
        a, p = (x / np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True) for x in rows_of(name).values())
        s = a @ p.T
        e = np.exp(s / 0.5)
        e /= e.sum(1, keepdims=True)
        return {"accuracy": np.mean(s.argmax(1) == np.arange(BATCH)), "entropy": -np.mean((e * np.log(e)).sum(1)),
                "positive": s.diagonal().mean(), "negative": s[~np.eye(BATCH, dtype=bool)].mean()}
    x = classes().astype(np.float64)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    d, every = np.linalg.norm(x[:, None] - x, axis=2), range(BATCH)
    positive = [[j for j in every if j != i and LABELS[j] == LABELS[i] >= 0] for i in every]
    negative = [[j for j in every if j != i and j not in positive[i]] for i in every]
    if name.startswith("triplet"):
        seen = [(i, p, k) for i in every for p in positive[i] for k in negative[i]]
        if name == "triplet hard":
            seen = [(i, positive[i][d[i, positive[i]].argmax()], negative[i][d[i, negative[i]].argmin()])
                    for i in every if positive[i]]
        rival = lambda i, p, k: min(d[i, k], d[p, k]) if name == "triplet with swap" else d[i, k]
        return {"active": np.mean([d[i, p] - rival(i, p, k) + 0.3 > 0 for i, p, k in seen]),
                "positive": np.mean([d[i, p] for i, p, _ in seen]), "negative": np.mean([d[i, k] for i, _, k in seen])}
    want = {"positive": np.mean([d[i, j] for i in every for j in positive[i]]),
            "negative": np.mean([d[i, j] for i in every for j in negative[i]])}
    if name == "soft_nearest_neighbor":
        hits, entropies = [], []
        for i in every:
            others = positive[i] + negative[i]
            e = np.exp(-d[i, others] ** 2 / 0.3)
            e /= e.sum()
            if positive[i]:
                hits.append(others[e.argmax()] in positive[i])
                entropies.append(-(e * np.log(e)).sum())
        want |= {"accuracy": np.mean(hits), "entropy": np.mean(entropies)}
    return want


def assert_metrics(name, got):
    want = written_out(name)
    assert got.keys() == want.keys()
    assert 0 < want.get("active", want.get("accuracy", 0.5)) < 1
    for k in want:
        np.testing.assert_allclose(got[k], want[k], rtol=1e-5, err_msg=k)


@pytest.mark.slow
@pytest.mark.parametrize("name", (*LABELLED, "n_pair"))
def test_metrics_against_loops_over_pairs_and_triplets(name):
    rows, shared = rows_of(name), CASES[name].shared
    (value, metrics), _ = compiled(name)(rows, shared)
    assert_metrics(name, metrics)
    np.testing.assert_allclose(value, CASES[name].reference(rows, shared), rtol=1e-5)


@fast("triplet")
def test_metrics_of_shards_have_the_global_mean(name):
    rows, shared = rows_of(name), CASES[name].shared
    mesh = dist.make_mesh({"data": 4}, jax.devices()[:4])
    fn = jax.shard_map(lambda rows: dist.pmean(CASES[name].loss(rows, shared, axis="data", comm="ring", block=3,
                                                                metrics=True), "data"),
                       mesh=mesh, in_specs=P("data"), out_specs=P())
    value, metrics = jax.jit(fn)(rows)
    assert_metrics(name, metrics)
    np.testing.assert_allclose(value, CASES[name].reference(rows, shared), rtol=1e-5)


@pytest.mark.parametrize("name", (*LABELLED, "n_pair"))
def test_metrics_carry_no_gradient(name):
    rows, shared = rows_of(name), CASES[name].shared
    floats = {k: jnp.asarray(x) for k, x in rows.items() if k != "labels"}
    of_each = quick(jax.jacrev(lambda t: CASES[name].loss(rows | t, shared, metrics=True)[1]), floats)
    assert len(of_each) > 1
    for k, gradients in of_each.items():
        for g in gradients.values():
            assert not np.any(g), k


# Edges.


def finite(name, rows, shared):
    """(value, gradients of rows), once these, those of the hyperparameters and the metrics are finite."""
    (value, metrics), gradients = compiled(name)(rows, shared)
    for leaf in jax.tree.leaves((value, metrics, gradients)):
        assert np.isfinite(leaf).all()
    return value, gradients[0]


X = classes()
EDGES = {
    "zero rows": (0 * X, LABELS),
    "some zero rows": (X * (np.arange(BATCH) % 3 == 0)[:, None], LABELS),
    "all in one place": (0 * X + 1, LABELS),
    "in two places": (np.sign(X[:, :1]) * np.ones_like(X), LABELS),
    "huge rows": (1e18 * X, LABELS),
    "no positives": (X, np.arange(BATCH)),
    "no labels": (X, np.full(BATCH, -1)),
    "no negatives": (X, np.full(BATCH, 7)),
}


@pytest.mark.parametrize("name", [
    pytest.param(n, marks=pytest.mark.slow) if n.startswith(("triplet ", "lifted_structure ")) else n for n in LABELLED])
def test_value_and_gradient_are_finite_at_the_edges(name):
    for edge, (x, labels) in EDGES.items():
        value, gradients = finite(name, {"x": x, "labels": labels}, CASES[name].shared)
        if name == "soft_nearest_neighbor" and edge == "no negatives":  # certain to draw a positive
            np.testing.assert_allclose(value, 0, atol=1e-6)
        elif edge.startswith("no ") and name != "contrastive":
            assert value == 0 and not gradients["x"].any(), edge


@fast("contrastive", "triplet hard", "n_pair")
def test_one_row_alone_has_nothing_to_learn(name):
    rows = {k: x[:1] for k, x in CASES[name].rows.items()}
    value, gradients = finite(name, rows, CASES[name].shared)
    np.testing.assert_allclose(value, 0, atol=1e-6)
    for g in gradients.values():
        np.testing.assert_allclose(g, 0, atol=1e-6)


@pytest.mark.parametrize("name", (*LABELLED, "n_pair"))
def test_extreme_hyperparameters_stay_finite(name):
    for extreme in ((1e-3, 1e4) if "temperature" in CASES[name].shared else (-100, 0, 100)):
        finite(name, rows_of(name), dict.fromkeys(CASES[name].shared, extreme))


def test_n_pair_is_finite_at_the_edges():
    for x, _ in EDGES.values():
        finite("n_pair", {"a": x, "p": x[::-1]}, {"temperature": 0.01})


@pytest.mark.parametrize("name", CASES)
def test_bfloat16_rows_give_a_loss_in_float32(name):
    case = CASES[name]
    rows = {k: jnp.asarray(x, x.dtype if k == "labels" else jnp.bfloat16) for k, x in case.rows.items()}
    floats = {k: x for k, x in rows.items() if k != "labels"}
    value, gradients = jax.eval_shape(jax.value_and_grad(lambda t: case.loss(rows | t, case.shared)), floats)
    assert value.dtype == jnp.float32 and value.shape == ()
    assert all(gradients[k].dtype == jnp.bfloat16 for k in floats)


def largest_array(fn, *arrays):
    """The number of elements of the largest array that computing fn makes."""
    inner = lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")

    def of(jaxpr):
        for equation in jaxpr.eqns:
            yield from (v.aval.size for v in equation.outvars if hasattr(v.aval, "size"))
            for parameter in filter(inner, jax.tree.leaves(equation.params, is_leaf=inner)):
                yield from of(getattr(parameter, "jaxpr", parameter))
    return max(of(jax.make_jaxpr(fn)(*arrays).jaxpr))


@pytest.mark.parametrize("name", LABELLED)
def test_tiles_bound_the_memory(name):
    b, block = 64, 4
    x, labels = np.ones((b, 3), np.float32), np.arange(b) % 5
    gradient = jax.grad(lambda x: CASES[name].loss({"x": x, "labels": labels}, CASES[name].shared, block=block))
    cubic = name in ("triplet", "triplet with swap")
    assert b * block <= largest_array(gradient, x) <= b * block * (block if cubic else 1)


# Refusals.


def test_refuses_what_it_cannot_compare():
    x, labels = jnp.asarray(X), jnp.asarray(LABELS)
    for name, fn in (("contrastive", contrastive), ("triplet", functools.partial(triplet, margin=0.1)),
                     ("lifted_structure", lifted_structure),
                     ("soft_nearest_neighbor", functools.partial(soft_nearest_neighbor, temperature=1.0))):
        wrong = rf"{name} wants embeddings \[b, D\] and integer labels \[b\], got "
        with pytest.raises(ValueError, match=wrong + r"\(16, 12\) and int32\[15\]"):
            fn(x, labels[1:])
        with pytest.raises(ValueError, match=wrong + r"\(16, 12\) and float32\[16\]"):
            fn(x, labels.astype(jnp.float32))
        with pytest.raises(ValueError, match=wrong + r"\(16,\) and int32\[16\]"):
            fn(x[:, 0], labels)
        with pytest.raises(ValueError, match="comm='all', wanted 'gather' or 'ring'"):
            fn(x, labels, comm="all")
    with pytest.raises(ValueError, match=r"n_pair wants two arrays of one shape \[b, D\], got \(16, 12\) and \(15, 12"):
        n_pair(x, x[1:])
    with pytest.raises(ValueError, match="comm='all'"):
        n_pair(x, x, comm="all")
    with pytest.raises(ValueError, match="mining='semihard', wanted 'all' or 'hard'"):
        triplet(x, labels, margin=0.1, mining="semihard")
    with pytest.raises(ValueError, match="swap=True with mining='hard'"):
        triplet(x, labels, margin=0.1, mining="hard", swap=True)
