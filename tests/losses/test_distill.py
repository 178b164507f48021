"""Losses of self-distillation: the originals' numbers, closed forms, metrics and what is refused."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

from exactness import measured
from losses import of_distill
from losses.of_distill import sinkhorn_written_out
from oracle import cases
from simclr_jax import dist
from simclr_jax.losses.distill import cosine_regression, dino, ibot, sinkhorn
from simclr_jax.losses.koleo import koleo

exact = functools.partial(np.testing.assert_allclose, rtol=1e-9)
exact_gradient = functools.partial(np.testing.assert_allclose, rtol=1e-7, atol=1e-10)
casting = functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=2e-7)  # DINOv2's Sinkhorn casts to f32 inside


def double(x):
    return jnp.asarray(x, jnp.float64)


spread_evenly = jax.jit(sinkhorn, static_argnames="iterations")


def value_and_grad(fn, argnums=0):
    return jax.jit(jax.value_and_grad(fn, argnums))


def on_devices(n, fn):
    """fn(x) on n shards of x's rows, the shards' results as rows again."""
    mesh = dist.make_mesh({"data": n}, jax.devices()[:n])
    return jax.jit(jax.shard_map(fn, mesh=mesh, in_specs=P("data"), out_specs=P("data")))


# The numbers of the released code.


def test_cosine_regression_equals_the_released_byol():
    def both(p1, p2, c):
        return cosine_regression(p1, c["z2"]) + cosine_regression(p2, c["z1"])
    for _, c in cases("byol"):
        loss, gradients = value_and_grad(both, argnums=(0, 1))(c["p1"], c["p2"], c)
        np.testing.assert_allclose(loss, c["out_loss_f32"], rtol=1e-5, atol=1e-6)
        for g, name in zip(gradients, ("p1", "p2")):
            np.testing.assert_allclose(g, c[f"grad_{name}_f32"], rtol=1e-4, atol=1e-6)


def test_cosine_regression_is_twice_simsiams_loss_and_two():
    def simsiam(p1, p2, z1, z2):
        of = lambda p, z: cosine_regression(p, lax.stop_gradient(z)) / 2 - 1
        return (of(p1, z2) + of(p2, z1)) / 2
    with jax.enable_x64(True):
        for _, c in cases("simsiam_negcos"):
            loss, g = value_and_grad(simsiam, argnums=(0, 1, 2, 3))(*(double(c[k]) for k in ("p1", "p2", "z1", "z2")))
            exact(loss, c["out_loss_f64"])
            exact_gradient(g[0], c["grad_p1_f64"])
            exact_gradient(g[1], c["grad_p2_f64"])
            assert not np.any(g[2]) and not np.any(g[3])


def test_sinkhorn_and_dino_make_the_loss_of_swav():
    """Codes from the scores (the queue's rows after the batch's), and every code against all other crops."""
    def swav(scores, seen, p):
        codes = jnp.stack([sinkhorn(x, temperature=p["epsilon"], iterations=p["iterations"]) for x in seen])
        return dino(scores, codes[:, :p["n"]], student_temperature=p["temperature"], teacher_temperature=None), codes
    with jax.enable_x64(True):
        for p, c in cases("swav"):
            names = ["high0", "high1"] + [f"low{i}" for i in range(p["n_low"])]
            seen = [double(np.concatenate([c[k] for k in (f"high{i}", f"queue{i}") if k in c])) for i in range(2)]
            (loss, codes), g = jax.jit(jax.value_and_grad(functools.partial(swav, p=p), has_aux=True))(
                double([c[k] for k in names]), seen)
            exact(codes, [c["out_q0_f64"], c["out_q1_f64"]])
            exact(codes, [c["out_q0_official_f64"], c["out_q1_official_f64"]])
            exact(loss, c["out_loss_f64"][0])
            exact_gradient(g, [c[f"grad_{k}_f64"] for k in names])


def test_dino_equals_the_released_code():
    with jax.enable_x64(True):
        for p, c in cases("dino"):
            student, teacher = (double(c[k]).reshape(-1, p["B"], p["K"]) for k in ("student", "teacher"))
            loss, g = value_and_grad(lambda s: dino(
                s, teacher, student_temperature=p["student_temp"], teacher_temperature=p["teacher_temp"],
                center=c["center"][0]))(student)
            exact(loss, c["out_loss_f64"])
            exact(loss, c["out_lightly_f64"])
            exact_gradient(g.reshape(-1, p["K"]), c["grad_student_f64"])


def test_the_centre_is_a_moving_average_of_the_teachers_global_mean():
    p, c = cases("dino")[1]

    def after(teacher):
        m = p["center_momentum"]
        return (m * c["center"] + (1 - m) * dist.pmean(teacher.mean(axis=0, keepdims=True), "data"))
    got = on_devices(4, lambda t: jnp.broadcast_to(after(t), t.shape))(c["teacher"])
    np.testing.assert_allclose(got, np.broadcast_to(c["out_center_after_f64"], got.shape), rtol=1e-5, atol=1e-6)


def test_dino_times_its_pairs_is_dinov2s_class_loss():
    with jax.enable_x64(True):
        for p, c in cases("dinov2_cls"):
            student, teacher = (jnp.stack([double(c[f"{who}{i}"]) for i in range(p[f"n_{who}"])])
                                for who in ("student", "teacher"))
            temperature, center = p["teacher_temp"], c["center"][0]
            value, gradient = exact, exact_gradient
            if p["mode"] == "sinkhorn_knopp":
                value, gradient = casting, casting
                teacher = spread_evenly(teacher, temperature=temperature)  # the rows of all views together
                temperature, center = None, None
                casting(teacher, [c[f"out_tprob{i}_f64"] for i in range(len(teacher))])
            loss, g = value_and_grad(lambda s: len(student) * len(teacher) * dino(
                s, teacher, student_temperature=p["student_temp"], teacher_temperature=temperature, center=center,
                pairs="all"))(student)
            value(loss, c["out_loss_f64"])
            gradient(g, [c[f"grad_student{i}_f64"] for i in range(len(student))])


@pytest.mark.parametrize("packed", [False, True], ids=["every patch", "slots"])
def test_ibot_equals_dinov2s_masked_loss(packed):
    """With every patch, or with the masked ones of each image moved to its first slots."""
    with jax.enable_x64(True):
        for p, c in cases("dinov2_ibot")[:2 if packed else 4]:
            mask = c["mask"]
            if packed:
                mask = np.arange(mask.sum(axis=1).max()) < mask.sum(axis=1)[:, None]
            value, gradient = exact, exact_gradient
            nowhere = jnp.full((*mask.shape, p["K"]), jnp.nan)  # what is not masked must not matter
            spread = lambda x: nowhere.at[np.nonzero(mask)].set(x)
            teacher, temperature, center = spread(double(c["teacher_masked"])), p["teacher_temp"], c["center"][0, 0]
            if p["mode"] == "sinkhorn_knopp":
                value, gradient = casting, casting
                teacher = spread_evenly(teacher, temperature=temperature, weights=mask)
                temperature, center = None, None
                casting(teacher[mask], c["out_tprob_f64"])
            loss, g = value_and_grad(lambda s: ibot(
                spread(s), teacher, mask, student_temperature=p["student_temp"], teacher_temperature=temperature,
                center=center))(double(c["student_masked"]))
            value(loss, c["out_loss_f64"])
            gradient(g, c["grad_student_masked_f64"])
            if "out_lightly_f64" in c:
                value(loss, c["out_lightly_f64"])


def test_koleo_equals_the_released_code():
    with jax.enable_x64(True):
        for _, c in cases("koleo"):
            loss, g = value_and_grad(koleo)(double(c["x"]))
            exact(loss, c["out_loss_f64"])
            exact(loss, c["out_lightly_f64"])
            exact_gradient(g, c["grad_x_f64"])


# Sinkhorn.


def scores(b=16, k=6, seed=0):
    return jax.random.normal(jax.random.key(seed), (b, k))


def test_sinkhorn_tends_to_even_columns():
    q = spread_evenly(scores(), temperature=0.5, iterations=100)
    np.testing.assert_allclose(q.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(q.sum(axis=0), 16 / 6, rtol=1e-4)


def test_sinkhorn_of_equal_scores_is_even():
    np.testing.assert_allclose(spread_evenly(jnp.zeros((4, 5)), temperature=0.05), 0.2, rtol=1e-6)


@pytest.mark.parametrize("n", [2, 8])
def test_sinkhorn_is_that_of_the_whole_batch(n):
    got = on_devices(n, lambda x: sinkhorn(x, temperature=0.3, iterations=4, axis="data"))(scores())
    np.testing.assert_allclose(got, sinkhorn_written_out(scores(), 0.3, 4), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("n", [1, 4])
def test_a_row_counts_as_often_as_its_weight_says(n):
    times = np.arange(16) % 4  # 0, 1, 2, 3
    got = on_devices(n, lambda x: sinkhorn(x[0], temperature=0.3, weights=x[1], axis="data"))((scores(), times))
    want = sinkhorn_written_out(np.repeat(scores(), times, axis=0), 0.3)
    np.testing.assert_allclose(np.repeat(got, times, axis=0), want, rtol=1e-4, atol=1e-5)
    assert not np.any(got[times == 0])


def test_sinkhorn_takes_rows_of_any_shape():
    np.testing.assert_allclose(spread_evenly(scores().reshape(2, 8, 6), temperature=0.3).reshape(16, 6),
                               spread_evenly(scores(), temperature=0.3), rtol=1e-6)


@pytest.mark.parametrize("scale, temperature", [(1e3, 0.04), (1.0, 1e-4), (1e-6, 1e3)])
def test_sinkhorn_neither_overflows_nor_leaves_a_row_empty(scale, temperature):
    q = spread_evenly(scale * scores(), temperature=temperature)
    assert np.isfinite(q).all()
    np.testing.assert_allclose(q.sum(axis=1), 1, rtol=1e-5)


def test_sinkhorn_leaves_out_what_is_not_finite_and_may_be_left_with_nothing():
    x = scores().at[3].set(jnp.nan)
    q = spread_evenly(x, temperature=0.3, weights=jnp.arange(16) != 3)
    want = spread_evenly(jnp.delete(x, 3, axis=0), temperature=0.3)
    np.testing.assert_allclose(jnp.delete(q, 3, axis=0), want, rtol=1e-5)
    assert not np.any(q[3])
    assert not np.any(spread_evenly(x, temperature=0.3, weights=jnp.zeros(16)))


def test_sinkhorn_carries_no_gradient():
    _, g = value_and_grad(lambda x, t: jnp.sum(sinkhorn(x, temperature=t) ** 2), argnums=(0, 1))(scores(), 0.3)
    assert not np.any(g[0]) and not np.any(g[1])


# Closed forms and symmetries.


def test_closed_forms():
    @jax.jit
    def found(x, same, mask):
        return (cosine_regression(x, 3 * x), cosine_regression(x, -x), dino(same, same[:2], teacher_temperature=0.04),
                ibot(same, same, mask, teacher_temperature=0.04), koleo(jnp.eye(6)))
    mask = jnp.eye(3, 5, dtype=bool).at[2].set(False)  # two of three images have a masked patch
    np.testing.assert_allclose(found(jax.random.normal(jax.random.key(1), (5, 4)), jnp.ones((3, 5, 7)), mask),
                               [0, 4, np.log(7), 2 / 3 * np.log(7), -np.log(2) / 2], rtol=1e-6, atol=1e-6)


def views(s, b=8, k=6, seed=0):
    return jax.random.normal(jax.random.key(seed), (s, b, k))


@pytest.mark.slow
def test_dino_over_all_pairs_is_that_over_other_pairs_and_own():
    s, t = views(3), views(2, seed=1)
    whole = functools.partial(dino, teacher_temperature=0.2)
    all_pairs, other, own = jax.jit(lambda: (
        6 * whole(s, t, pairs="all"), 4 * whole(s, t),
        whole(s[:1], t[:1], pairs="all") + whole(s[1:2], t[1:], pairs="all")))()
    np.testing.assert_allclose(all_pairs, other + own, rtol=1e-6)


def test_dino_takes_a_teachers_logits_or_its_probabilities():
    s, t, center = views(3), views(2, seed=1), views(1, b=1, seed=2)[0, 0]
    given = jax.nn.softmax((t - center) / 0.2)
    got, want = jax.jit(lambda: (dino(s, given, teacher_temperature=None),
                                 dino(s, t, teacher_temperature=0.2, center=center)))()
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_no_gradient_reaches_the_teacher():
    s, t, mask = views(3), views(3, seed=1), jnp.ones((3, 8), bool)
    for loss in (lambda t, x, c: dino(s, t, teacher_temperature=x, center=c),
                 lambda t, x, c: ibot(s, t, mask, teacher_temperature=x, center=c)):
        assert not any(np.any(g) for g in jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(t, 0.2, jnp.ones(6)))
    for loss in (lambda t: dino(s, t, teacher_temperature=None), lambda t: ibot(s, t, mask, teacher_temperature=None)):
        assert not np.any(jax.jit(jax.grad(loss))(jax.nn.softmax(t)))


def test_the_gradient_of_cosine_regression_reaches_both_unless_the_caller_stops_it():
    p, z = views(2)
    gradients = jax.jit(jax.grad(lambda p, z, loss: loss(p, z), argnums=(0, 1)), static_argnums=2)
    both, swapped = (gradients(*pair, cosine_regression) for pair in ((p, z), (z, p)))
    np.testing.assert_allclose(both[1], swapped[0], rtol=1e-5, atol=1e-7)
    stopped = gradients(p, z, lambda p, z: cosine_regression(p, lax.stop_gradient(z)))
    np.testing.assert_allclose(stopped[0], both[0], rtol=1e-6)
    assert np.any(both[1]) and not np.any(stopped[1])


def test_dino_keeps_no_softmax_of_all_views():
    """The backward pass needs room for the teacher and for a view, however many the student has."""
    k, room = 4096, []
    for s in (4, 16):
        arrays = (jax.ShapeDtypeStruct((v, 8, k), jnp.float32) for v in (s, 2))
        grad = jax.jit(jax.grad(lambda s, t: dino(s, t, teacher_temperature=0.04)))
        room.append(grad.lower(*arrays).compile().memory_analysis().temp_size_in_bytes)
    assert room[1] - room[0] < 8 * k * 4


# KoLeo's neighbours.


@functools.cache
def tied(eps):
    """Rows of integers, whose distances are exact, with many equally near; their loss and gradient."""
    x = np.random.default_rng(3).integers(-1, 2, (16, 3)).astype(np.float32)
    distance = np.square(x[:, None] - x).sum(axis=2) + np.where(np.eye(16), np.inf, 0)
    assert (np.sort(distance)[:, 0] == np.sort(distance)[:, 1]).sum() > 8
    near = distance.argmin(axis=1)
    return x, value_and_grad(lambda x: -jnp.mean(jnp.log(jnp.linalg.norm(x - x[near] + eps, axis=1) + eps)))(x)


@pytest.mark.parametrize("n, how", [(1, {"block": 5}), (4, {}), (4, {"comm": "ring"}),
                                    (8, {"comm": "ring", "block": 1})], ids=str)
def test_of_equally_near_rows_the_first_is_the_neighbour(n, how):
    x, want = tied(eps=1e-2)
    got = value_and_grad(lambda x: on_devices(n, lambda x: koleo(
        x, normalize=False, eps=1e-2, axis="data", **how)[None])(x).mean())(x)
    np.testing.assert_allclose(got[0], want[0], rtol=1e-5)
    np.testing.assert_allclose(got[1], want[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("how", [{"comm": "gather"}, {"comm": "ring", "block": 3}], ids=str)
def test_koleo_of_shards_weighted_differently(how):
    """The gradient that reaches a row as another shard's neighbour has that shard's weight."""
    case, weights = of_distill.CASES["koleo"], np.array([0.5, 3.0, 0.0, 1.0], np.float32)
    x = jnp.asarray(case.rows["x"])
    u = np.asarray(x / jnp.linalg.norm(x, axis=1, keepdims=True))
    near = (u @ u.T - 2 * np.eye(16)).argmax(axis=1)

    def weighted(x):
        u = x / jnp.linalg.norm(x, axis=1, keepdims=True)
        return -jnp.mean(jnp.repeat(weights, 4) * jnp.log(jnp.linalg.norm(u - u[near], axis=1)))
    want = value_and_grad(weighted)(x)
    got = measured(case, 4, weights=weights, **how)
    np.testing.assert_allclose(got[0], want[0], rtol=1e-5)
    np.testing.assert_allclose(got[1]["x"], want[1], rtol=1e-4, atol=1e-6)


def test_koleo_of_equal_rows_is_the_logarithm_of_eps():
    loss, g = value_and_grad(koleo)(jnp.ones((4, 9)))
    np.testing.assert_allclose(loss, -np.log(1e-8 * (np.sqrt(9) + 1)), rtol=1e-5)
    assert np.isfinite(g).all()


# Metrics.


def test_metrics_of_cosine_regression():
    p, z = np.asarray(views(2))
    cosine = (p * z).sum(1) / np.linalg.norm(p, axis=1) / np.linalg.norm(z, axis=1)
    loss, metrics = jax.jit(functools.partial(cosine_regression, metrics=True))(p, z)
    np.testing.assert_allclose(metrics["positive"], cosine.mean(), rtol=1e-5)
    np.testing.assert_allclose(loss, 2 - 2 * metrics["positive"], rtol=1e-5)


def written_out_metrics(pairs):
    """Means over [(weight, p, log q)] of entropy, divergence and agreement."""
    total = sum(w for w, _, _ in pairs)
    mean = lambda f: sum(w * f(p, log_q) for w, p, log_q in pairs) / total
    return {"entropy": mean(lambda p, log_q: -(p * np.log(p)).sum()),
            "kl": mean(lambda p, log_q: (p * (np.log(p) - log_q)).sum()),
            "accuracy": mean(lambda p, log_q: p.argmax() == log_q.argmax())}


@pytest.mark.parametrize("pairs", ["other", "all"])
def test_metrics_of_dino(pairs):
    s, t = views(3, k=4), views(2, k=4, seed=1)
    loss, got = jax.jit(functools.partial(dino, student_temperature=0.5, teacher_temperature=0.8, pairs=pairs,
                                          metrics=True))(s, t)
    p, log_q = np.asarray(jax.nn.softmax(t / 0.8), np.float64), np.asarray(jax.nn.log_softmax(s / 0.5), np.float64)
    want = written_out_metrics([(1, p[j, r], log_q[i, r]) for i in range(3) for j in range(2) for r in range(8)
                                if pairs == "all" or i != j])
    assert 0 < want["accuracy"] < 1 and got.keys() == want.keys()
    for name, value in want.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-5, err_msg=name)
    np.testing.assert_allclose(loss, want["entropy"] + want["kl"], rtol=1e-5)


@pytest.mark.parametrize("n", [1, 4])
def test_metrics_of_ibot_are_means_over_images_with_masked_patches(n):
    s, t = views(8, b=5, k=4), views(8, b=5, k=4, seed=1)
    mask = np.random.default_rng(1).random((8, 5)) < 0.5
    mask[2:4] = False  # of four shards, one has no masked patch

    def shard(x):
        return jax.tree.map(lambda v: dist.pmean(v, "data") + jnp.zeros(len(x[2])), ibot(
            *x, student_temperature=0.5, teacher_temperature=0.8, axis="data", metrics=True))
    loss, got = jax.tree.map(lambda x: x[0], on_devices(n, shard)((s, t, mask)))
    p, log_q = np.asarray(jax.nn.softmax(t / 0.8), np.float64), np.asarray(jax.nn.log_softmax(s / 0.5), np.float64)
    want = written_out_metrics([(1 / mask[i].sum(), p[i, j], log_q[i, j]) for i, j in zip(*np.nonzero(mask))])
    assert 0 < want["accuracy"] < 1 and got.keys() == want.keys()
    for name, value in want.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-5, err_msg=name)
    np.testing.assert_allclose(loss, (want["entropy"] + want["kl"]) * mask.any(axis=1).mean(), rtol=1e-5)


def test_metrics_of_koleo():
    x = np.asarray(views(1)[0])
    loss, metrics = jax.jit(functools.partial(koleo, metrics=True))(x)
    u = x / np.linalg.norm(x, axis=1, keepdims=True)
    distance = np.linalg.norm(u[:, None] - u, axis=2) + 9 * np.eye(8)
    np.testing.assert_allclose(metrics["distance"], distance.min(axis=1).mean(), rtol=1e-5)
    np.testing.assert_allclose(loss, -np.log(distance.min(axis=1)).mean(), rtol=1e-5)


def test_metrics_carry_no_gradient():
    s, t, mask = views(3), views(3, seed=1), jnp.ones((3, 8), bool)
    for loss in (lambda s: cosine_regression(s[0], t[0], metrics=True), lambda s: koleo(s[0], metrics=True),
                 lambda s: dino(s, t, teacher_temperature=0.2, metrics=True),
                 lambda s: ibot(s, t, mask, teacher_temperature=0.2, metrics=True)):
        assert not np.any(jax.jit(jax.grad(lambda s: sum(loss(s)[1].values())))(s))


# Edges.


def finite(loss, x):
    value, g = value_and_grad(loss)(x)
    assert np.isfinite(value) and np.isfinite(g).all()
    return value


def test_zero_rows_and_extreme_temperatures_stay_finite():
    zero, t, mask = jnp.zeros((2, 4, 5)), views(2, 4, 5), jnp.ones((2, 4), bool)
    finite(lambda x: cosine_regression(x, t[0]), zero[0])
    finite(koleo, zero[0])
    finite(koleo, t[0].at[1].set(0))
    of_both = jax.jit(jax.value_and_grad(lambda x, temperature: sum(
        loss(student_temperature=temperature, teacher_temperature=temperature) for loss in (
            functools.partial(dino, x, 100 * t), functools.partial(ibot, x, 100 * t, mask))), argnums=(0, 1)))
    for temperature in (1e-4, 1e4):
        for x in (zero, t, 100 * t):
            assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(of_both(x, temperature)))


def test_one_row_is_a_batch():
    t = views(2, 1, 5)
    finite(lambda x: cosine_regression(x, t[0]), t[1])
    finite(lambda x: dino(x, t, teacher_temperature=0.1), t)
    np.testing.assert_allclose(spread_evenly(t[0], temperature=0.1), 0.2, rtol=1e-5)  # even columns of one row


def test_no_masked_patch_at_all_is_no_loss():
    s, mask = views(2), jnp.zeros((2, 8), bool)
    assert finite(lambda s: ibot(s, s, mask, teacher_temperature=0.1), s) == 0
    assert not any(jax.jit(functools.partial(ibot, teacher_temperature=0.1, metrics=True))(s, s, mask)[1].values())


@pytest.mark.slow
def test_bfloat16_is_computed_in_float32():
    x, mask = views(2).astype(jnp.bfloat16), jnp.ones((2, 8), bool)

    @jax.jit
    def losses(x):
        return (cosine_regression(x[0], x[1]), dino(x, x, teacher_temperature=0.1),
                ibot(x, x, mask, teacher_temperature=0.1), koleo(x[0]), sinkhorn(x[0], temperature=0.1))
    for got, want in zip(losses(x), losses(x.astype(jnp.float32))):
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got, want, rtol=1e-6)


def test_refusals():
    x, mask = jnp.ones((2, 4, 3)), jnp.ones((2, 4), bool)
    for match, call in (
            ("one shape", lambda: cosine_regression(x[0], x[0, :2])),
            ("dino wants student", lambda: dino(x, x[:, :2], teacher_temperature=0.1)),
            ("pairs='some'", lambda: dino(x, x, teacher_temperature=0.1, pairs="some")),
            ("2 or more of the student's, got 1 and 1", lambda: dino(x[:1], x[:1], teacher_temperature=0.1)),
            ("got 2 and 1", lambda: dino(x[:1], x, teacher_temperature=0.1)),
            ("dino: a teacher of probabilities", lambda: dino(x, x, teacher_temperature=None, center=jnp.ones(3))),
            ("ibot: a teacher of probabilities", lambda: ibot(x, x, mask, teacher_temperature=None, center=x[0, 0])),
            ("ibot wants", lambda: ibot(x, x, mask[:, :2], teacher_temperature=0.1)),
            ("sinkhorn wants", lambda: sinkhorn(x[0], temperature=0.1, weights=jnp.ones(3))),
            ("iterations=0", lambda: sinkhorn(x[0], temperature=0.1, iterations=0)),
            ("two rows or more", lambda: koleo(x[0, :1])),
            ("comm='all'", lambda: koleo(x[0], comm="all"))):
        with pytest.raises(ValueError, match=match):
            call()
