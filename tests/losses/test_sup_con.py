"""SupCon and UniCL: the numbers of original implementations, closed forms, and anchors without a positive."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from exactness import close, f64, normal, value_and_grad, views
from losses.of_softmax import LABELS, TEXT_LABELS
from oracle import cases
from simclr_jax import dist
from simclr_jax.losses.nt_xent import nt_xent
from simclr_jax.losses.sup_con import sup_con
from simclr_jax.losses.uni_cl import uni_cl

STATIC = "contrast", "normalize", "comm", "block", "metrics"
of_views, of_pairs = jax.jit(sup_con, static_argnames=STATIC), jax.jit(uni_cl, static_argnames=STATIC[1:])
METRICS = "accuracy", "entropy", "positive", "negative"


def test_equals_supcontrast():
    for p, c in cases("supcontrast"):
        labels, block = (jnp.asarray(c["labels"]), 5) if p["labels"] else (None, None)
        options = dict(temperature=p["temperature"], base_temperature=p["base_temperature"], normalize=False,
                       contrast=p["contrast_mode"], block=block)
        with jax.enable_x64(True):
            loss, g = value_and_grad(lambda z: sup_con(z, labels, **options))(f64(c["features"]))
        close(loss, c["out_loss_f64"], [g], [c["grad_features_f64"]])


def test_equals_pytorch_metric_learning_with_one_view():
    for p, c in cases("pml"):
        if p["loss"] != "SupConLoss":
            continue
        labels = jnp.asarray(c["labels"])
        with jax.enable_x64(True):
            loss, g = value_and_grad(lambda z: sup_con(z[:, None], labels, temperature=p["temperature"]))(
                f64(c["embeddings"]))
        close(loss, c["out_loss_f64"], [g], [c["grad_embeddings_f64"]])


def test_equals_the_formula_of_unicl_run_in_pytorch():
    for (p, c), block in zip(cases("unicl"), (None, 5)):
        labels = jnp.asarray(c["labels"])
        with jax.enable_x64(True):
            loss, g = value_and_grad(
                lambda u, v, s: uni_cl(u, v, labels, scale=s, normalize=False, block=block), (0, 1, 2))(
                    *(f64(c[n]) for n in ("image", "text", "logit_scale")))
        close(loss, c["out_loss_f64"], g, [c[f"grad_{n}_f64"] for n in ("image", "text", "logit_scale")])
        close(2 * np.asarray(loss), c["out_loss_sum_convention_f64"])  # the paper adds the directions


def test_sup_con_without_labels_is_nt_xent():
    z1, z2 = views(6)
    z = jnp.stack([z1, z2], axis=1)
    want = jax.jit(lambda a, b: nt_xent(a, b, temperature=0.2, metrics=True))(z1, z2)
    for got in (of_views(z, temperature=0.2, metrics=True), of_views(z, jnp.arange(16), temperature=0.2, metrics=True),
                of_views(z, jnp.full(16, -1), temperature=0.2, metrics=True)):
        np.testing.assert_allclose(got[0], want[0], rtol=1e-6)
        for name in METRICS:
            np.testing.assert_allclose(got[1][name], want[1][name], rtol=1e-5, atol=1e-6)


def test_sup_con_closed_forms():
    b, v, t = 6, 3, 0.3
    z = jnp.eye(b)[:, None].repeat(v, axis=1)
    lse = np.log((v - 1) * np.exp(1 / t) + (b - 1) * v)
    np.testing.assert_allclose(of_views(z, temperature=t), lse - 1 / t, rtol=1e-6)
    alike = lse - (v - 1) / t / (b * v - 1)  # one class: of its b v - 1 positives only its v - 1 views are near
    for contrast in ("all", "one"):
        np.testing.assert_allclose(of_views(z, jnp.full(b, 5), temperature=t, contrast=contrast), alike, rtol=1e-6)
    np.testing.assert_allclose(of_views(z, temperature=t, base_temperature=0.1), 3 * (lse - 1 / t), rtol=1e-6)
    same = jnp.ones((b, v, 4))
    np.testing.assert_allclose(of_views(same, jnp.arange(b) % 2, temperature=t), np.log(b * v - 1), rtol=1e-6)


def test_uni_cl_closed_forms():
    b, scale = 6, 4.0
    lse = np.log(np.exp(scale) + b - 1)
    z = jnp.eye(b)
    for labels, want in [(jnp.arange(b), lse - scale), (jnp.full(b, -1), lse - scale),
                         (jnp.zeros(b, int), lse - scale / b), (jnp.arange(b) // 2, lse - scale / 2)]:
        np.testing.assert_allclose(of_pairs(z, z, labels, scale=scale), want, rtol=1e-6)
    # The images are all of class 0, and so are the first two texts: an image's positives are these and its own text, a
    # text's are all images, or its own only.
    got = of_pairs(z, z, jnp.zeros(b, int), text_labels=jnp.array([0, 0, 1, 1, 2, -1]), scale=scale)
    i2t, t2i = (2 * (lse - scale / 2) + 4 * (lse - scale / 3)) / b, (2 * (lse - scale / b) + 4 * (lse - scale)) / b
    np.testing.assert_allclose(got, (i2t + t2i) / 2, rtol=1e-6)


def test_symmetries():
    z, image, text = normal(16, 2, 6), *views(6)
    order = np.random.default_rng(0).permutation(16)
    renamed = np.where(LABELS < 0, -7, 10 - LABELS)  # which number a class has does not matter
    loss = of_views(z, LABELS, temperature=0.2)
    for got in (of_views(z[order], LABELS[order], temperature=0.2), of_views(z[:, ::-1], LABELS, temperature=0.2),
                of_views(z, renamed, temperature=0.2), of_views(z, LABELS.astype(np.int8), temperature=0.2)):
        np.testing.assert_allclose(got, loss, rtol=1e-6)
    loss = of_pairs(image, text, LABELS, scale=5.0)
    for got in (of_pairs(image[order], text[order], LABELS[order], scale=5.0), of_pairs(text, image, LABELS, scale=5.0),
                of_pairs(image, text, renamed, scale=5.0),
                of_pairs(image, text, LABELS, text_labels=LABELS, scale=5.0)):
        np.testing.assert_allclose(got, loss, rtol=1e-6)
    np.testing.assert_allclose(of_pairs(text, image, TEXT_LABELS, text_labels=LABELS, scale=5.0),
                               of_pairs(image, text, LABELS, text_labels=TEXT_LABELS, scale=5.0), rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"block": 3}], ids=str)
def test_anchors_without_a_positive_do_not_count(options):
    z = jnp.asarray(normal(6, 5))[:, None]
    labels = jnp.array([0, 0, 1, 2, -1, -1])
    u = np.asarray(z[:, 0] / jnp.linalg.norm(z[:, 0], axis=1, keepdims=True))
    s = u @ u.T / 0.5
    np.fill_diagonal(s, -np.inf)
    want = np.mean([np.log(np.exp(s[i]).sum()) - s[0, 1] for i in (0, 1)])  # the other four only are negatives
    np.testing.assert_allclose(sup_con(z, labels, temperature=0.5, **options), want, rtol=1e-5)
    for z, labels in ((z, jnp.arange(6)), (z[:1], None)):  # none has a positive; the last no candidate either
        (loss, report), g = value_and_grad(lambda z: sup_con(z, labels, temperature=0.5, metrics=True, **options),
                                               has_aux=True)(z)
        assert loss == 0 and not np.any(g)
        assert all(np.isfinite(x) for x in report.values()) and report["accuracy"] == 0


@pytest.mark.parametrize("options", [{}, {"block": 3}], ids=str)
def test_extremes_stay_finite(options):
    z, image, text = jnp.asarray(normal(16, 2, 6)), *map(jnp.asarray, views(6))
    views_of = value_and_grad(lambda z, t: sup_con(z, LABELS, temperature=t, **options), (0, 1))
    pairs_of = value_and_grad(lambda u, v, s: uni_cl(u, v, LABELS, scale=s, **options), (0, 1, 2))
    for result in (views_of(z, 1e-3), views_of(0 * z, 0.01), pairs_of(image, text, 100.0),
                   pairs_of(0 * image, text, 100.0)):
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(result))
    assert of_pairs(image[:1], text[:1], LABELS[:1], scale=1.0, **options) == pytest.approx(0, abs=1e-6)


@pytest.mark.slow
def test_bfloat16_rows_are_compared_in_float32():
    z, image, text = (jnp.asarray(x, jnp.bfloat16) for x in (normal(16, 2, 6), *views(6)))
    for loss in (lambda z, u, v: of_views(z, LABELS, temperature=0.5, normalize=False),
                 lambda z, u, v: of_pairs(u, v, LABELS, scale=2.0, normalize=False)):
        got = loss(z, image, text)
        assert got.dtype == jnp.float32
        with jax.enable_x64(True):
            np.testing.assert_allclose(got, loss(f64(z), f64(image), f64(text)), rtol=1e-5)


def written_out(s, candidate, positive, temperature):
    """Hits and entropies, means over the rows that have a positive, and mean similarities of all pairs of each kind."""
    hits, entropies = [], []
    for row, c, p in zip(s, candidate, positive):
        if p.any():
            hits.append(row[p].max() > row[c & ~p].max())
            q = np.exp(row[c] / temperature) / np.exp(row[c] / temperature).sum()
            entropies.append(-(q * np.log(q)).sum())
    assert 0 < np.mean(hits) < 1
    return np.array([np.mean(hits), np.mean(entropies), s[positive].mean(), s[candidate & ~positive].mean()])


def assert_metrics(mesh, n, local, arrays, want):
    fn = jax.shard_map(lambda x: dist.pmean(local(**x), "data"), mesh=mesh(n), in_specs=P("data"), out_specs=P())
    got = jax.jit(fn)(arrays)
    assert got.keys() == set(METRICS)
    np.testing.assert_allclose([got[name] for name in METRICS], want, rtol=1e-5, atol=1e-6)


HOW = [(1, {}), (1, {"block": 5}), (4, {}), (8, {"comm": "ring", "block": 3})]


@pytest.mark.parametrize("n, how", HOW, ids=str)
@pytest.mark.parametrize("count", [1, 2])
def test_metrics_of_sup_con_against_the_written_out_softmax(mesh, n, how, count):
    z = normal(16, count, 6) + normal(6, 6, seed=1)[LABELS][:, None]
    u = z.reshape(-1, 6).astype(np.float64)
    u /= np.linalg.norm(u, axis=1, keepdims=True)
    example, label = np.arange(16).repeat(count), LABELS.repeat(count)
    itself = np.eye(16 * count, dtype=bool)
    alike = (example[:, None] == example) | (label[:, None] == label) & (label >= 0)
    want = written_out(u @ u.T, ~itself, alike & ~itself, 0.5)
    local = lambda features, labels: sup_con(features, labels, temperature=0.5, axis="data", metrics=True, **how)[1]
    assert_metrics(mesh, n, local, {"features": z, "labels": LABELS}, want)


@pytest.mark.parametrize("n, how", HOW, ids=str)
def test_metrics_of_uni_cl_against_the_written_out_softmax(mesh, n, how):
    image, text = (x.astype(np.float64) for x in views(6))
    s = image / np.linalg.norm(image, axis=1, keepdims=True) @ (text / np.linalg.norm(text, axis=1, keepdims=True)).T
    alike = np.eye(16, dtype=bool) | (LABELS[:, None] == TEXT_LABELS) & (TEXT_LABELS >= 0)
    every = np.ones_like(alike)
    want = (written_out(s, every, alike, 0.25) + written_out(s.T, every, alike.T, 0.25)) / 2
    local = lambda image, text, labels, text_labels: uni_cl(image, text, labels, text_labels=text_labels, scale=4.0,
                                                            axis="data", metrics=True, **how)[1]
    image, text = views(6)
    assert_metrics(mesh, n, local, {"image": image, "text": text, "labels": LABELS, "text_labels": TEXT_LABELS}, want)


def test_metrics_carry_no_gradient():
    z, image, text = jnp.asarray(normal(16, 2, 6)), *views(6)
    for fn, x in ((lambda z: sup_con(z, LABELS, temperature=0.5, metrics=True)[1], z),
                  (lambda u: uni_cl(u, text, LABELS, scale=2.0, metrics=True)[1], jnp.asarray(image))):
        report = jax.jit(jax.jacrev(fn))(x)
        assert report.keys() == set(METRICS) and not any(np.any(g) for g in report.values())


def test_refuses_what_does_not_fit():
    z = jnp.ones((4, 2, 3))
    for call, text in [(lambda: sup_con(z[:, 0], temperature=1), r"\[b, V, D\], got \(4, 3\)"),
                       (lambda: sup_con(z, jnp.arange(3), temperature=1), r"sup_con wants labels int\[4\], got int32"),
                       (lambda: sup_con(z, jnp.ones(4), temperature=1), r"got float32\[4\]"),
                       (lambda: sup_con(z, temperature=1, contrast="two"), "contrast='two'"),
                       (lambda: sup_con(z, temperature=1, comm="all"), "comm='all'"),
                       (lambda: uni_cl(z[:, 0], z[:3, 0], jnp.arange(4), scale=1), "one shape"),
                       (lambda: uni_cl(z[:, 0], z[:, 1], jnp.arange(5), scale=1), r"uni_cl wants labels int\[4\]"),
                       (lambda: uni_cl(z[:, 0], z[:, 1], jnp.arange(4), text_labels=jnp.ones(4), scale=1), "float32")]:
        with pytest.raises(ValueError, match=text):
            call()
