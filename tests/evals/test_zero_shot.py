"""The classifier against a written-out loop, scores at their closed forms, and what is refused."""
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simclr_jax.errors import UsageError
from simclr_jax.evals import templates, zero_shot

NAMES = ["cat", "dog", "great white shark", "Ühu", "{braces}", "ship", "frog"]


def encode(texts):
    """Bytes of the text, padded to 64."""
    rows = [list(t.encode())[:64] for t in texts]
    return np.array([r + [0] * (64 - len(r)) for r in rows], np.int32)


class Tower:
    """A text tower that mixes bytes at random, and remembers how it was called."""

    def __init__(self, d=12):
        self.table = np.random.default_rng(0).normal(size=(64, 256, d)).astype(np.float32)
        self.shapes, self.rows = [], []

    def embed(self, ids):
        return np.tanh(0.2 * self.table[np.arange(64), ids].sum(1)) * (1 + ids[:, :1] % 5)  # of different lengths

    def __call__(self, ids):
        self.shapes.append(ids.shape)
        self.rows.append(ids)
        return jnp.asarray(self.embed(ids))


@pytest.mark.parametrize("sentences, batch", [
    ("simple", 256), ("simple", 7), ("simple", 10), ("simple", 1), ("plain", 3), ("openai", 64), ("simple", 49)])
def test_classifier_equals_a_loop_over_classes_and_templates(sentences, batch):
    tower, sentences = Tower(), templates.read(sentences)
    got = zero_shot.classifier(tower, encode, NAMES, sentences, batch=batch)
    for name, row in zip(NAMES, got, strict=True):
        vectors = []
        for t in sentences:
            v = tower.embed(encode([t.format(name)]))[0].astype(np.float64)
            vectors.append(v / np.linalg.norm(v))
        mean = np.mean(vectors, axis=0)
        np.testing.assert_allclose(row, mean / np.linalg.norm(mean), atol=1e-6)
    total = len(NAMES) * len(sentences)
    assert got.dtype == np.float32 and tower.shapes == [(batch, 64)] * -(-total // batch)
    used = total - (len(tower.rows) - 1) * batch
    np.testing.assert_array_equal(tower.rows[-1][used:], np.repeat(tower.rows[-1][used - 1:used], batch - used, axis=0))


def test_the_mean_is_of_unit_vectors_and_not_of_raw_ones():
    vectors = {"a x": [10.0, 0.0], "b x": [0.0, 1.0]}
    ids = {t: i for i, t in enumerate(vectors)}
    table = np.array(list(vectors.values()))
    got = zero_shot.classifier(lambda i: table[i[:, 0]], lambda ts: np.array([[ids[t]] for t in ts]), ["x"],
                               ["a {}", "b {}"], batch=4)
    np.testing.assert_allclose(got, [[np.sqrt(0.5)] * 2], atol=1e-6)


def test_sentences_stream_and_only_two_batches_are_ever_held():
    alive, most = [], []

    class Out(np.ndarray):
        def __del__(self):
            if self.base is None:
                alive.pop()

    def embed(ids):
        out = np.ndarray.__new__(Out, (len(ids), 4), np.float32)
        out[:] = ids[:, :4] + 1
        alive.append(1)
        most.append(len(alive))
        return out

    asked = []
    zero_shot.classifier(embed, lambda texts: (asked.append(len(texts)), encode(texts))[1], NAMES, templates.OPENAI,
                         batch=16)
    assert sum(asked) == 7 * 80 and max(asked) == 16 and len(most) == 35 and max(most) == 2


def sets(n=210, d=16, signal=1.0, seed=0, classes=7):
    r = np.random.default_rng(seed)
    weights = r.normal(size=(classes, d)).astype(np.float32)
    labels = r.permutation(np.arange(n) % classes)
    return (signal * weights[labels] + r.normal(size=(n, d))).astype(np.float32), labels, weights


def score(x, y, w, **options):
    return zero_shot.score(x, y, w, **dict(step=3, features="clip", names=NAMES[:len(w)], templates=80) | options)


def test_the_record_is_that_of_a_dense_ranking():
    x, y, w = sets(signal=0.6)
    y[y == 6] = 0  # classes of unequal sizes, one empty
    unit = [a / np.linalg.norm(a, axis=1, keepdims=True) for a in (x.astype(np.float64), w.astype(np.float64))]
    order = np.argsort(-(unit[0] @ unit[1].T), axis=1)
    right = order == y[:, None]
    record = score(x, y, w)
    assert 0.3 < record["accuracy"] < 0.9
    assert record == dict(
        eval="zero_shot", features="clip", labels_per_class=0, accuracy=pytest.approx(right[:, 0].mean()),
        top5=pytest.approx(right[:, :5].any(1).mean()), std=0.0, draws=1, step=3, chance=pytest.approx(60 / 210),
        mean_per_class=pytest.approx(np.mean([right[y == c, 0].mean() for c in range(6)])), n_train=0, n_test=210,
        classes=7, templates=80)
    assert json.loads(json.dumps(record)) == record
    np.testing.assert_array_equal(zero_shot.predict(x, w), order[:, 0])


def test_perfect_random_and_collapsed():
    x, y, w = sets()
    assert score(w[y], y, w)["accuracy"] == 1 == score(w[y], y, w)["mean_per_class"]
    noise = np.random.default_rng(8).normal(size=(2100, 16))
    assert abs(score(noise, np.arange(2100) % 7, w)["accuracy"] - 1 / 7) < 4 * np.sqrt(6 / 49 / 2100)
    collapsed = score(x, y, np.ones_like(w))
    assert collapsed["accuracy"] == collapsed["top5"] == 0
    assert score(np.zeros_like(x), y, w)["accuracy"] == 0  # a dead tower: every similarity is 0


def test_top_5_needs_more_than_five_classes():
    assert score(*sets(classes=5))["top5"] is None and score(*sets(classes=6))["top5"] is not None


def test_of_classes_with_one_name_the_first_gets_the_image():
    w = np.eye(7, 16, dtype=np.float32)
    w[4] = w[1]
    y = np.arange(70) % 7
    names = ["a", "b", "c", "d", "b", "e", "f"]
    for nearly in (w, w + 1e-2 * np.eye(7, 16, 3)):  # one text can round to two vectors
        record = score(nearly[np.where(y == 4, 1, y)], y, nearly, names=names)
        assert record["accuracy"] == pytest.approx(6 / 7) and record["top5"] == 1
    assert score(w[y], y, w)["accuracy"] == pytest.approx(5 / 7)  # equal by collapse and not by name: no one's
    assert score(w[y], y, np.ones_like(w), names=names)["accuracy"] == 0


def test_a_jitted_tower_is_compiled_once():
    traced = []

    @jax.jit
    def embed(ids):
        traced.append(ids.shape)
        return jnp.stack([ids.sum(1), ids.max(1), ids[:, 0]], axis=1).astype(jnp.float32)

    zero_shot.classifier(embed, encode, NAMES, templates.SIMPLE, batch=10)
    assert traced == [(10, 64)]


@pytest.mark.parametrize("change, message", [
    (dict(labels=np.full(210, -1)), "clip: 210 of 210 images have no label"),
    (dict(labels=np.arange(210) % 8), r"label 7 but there are 7 class names, for labels 0..6"),
    (dict(labels=np.zeros(9, int)), r"labels are int64\[9\] for 210 images"),
    (dict(labels=np.zeros(210)), "float64"),
    (dict(names=["a"]), "1 class names for 7 class vectors"),
    (dict(image_features=np.full((210, 16), np.nan)), "clip: 210 of 210 feature rows are not finite"),
    (dict(weights=np.full((7, 16), np.nan)), "class: 7 of 7 feature rows"),
    (dict(weights=np.ones((7, 15))), "16 columns and class vectors 15"),
    (dict(image_features=np.ones((0, 16)), labels=np.zeros(0, int)), r"shape \(0, 16\)"),
])
def test_what_cannot_work_is_refused_in_one_line(change, message):
    given = dict(zip(("image_features", "labels", "weights"), sets()))
    given |= dict(step=0, features="clip", names=NAMES, templates=1) | change
    with pytest.raises(UsageError, match=message) as e:
        zero_shot.score(**given)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("embed, names, sentences, message", [
    (Tower(), [], ["{}"], "0 class names, 1 templates"),
    (Tower(), NAMES, [], "7 class names, 0 templates"),
    (lambda i: np.ones(3), NAMES, ["{}"], r"shape \(3,\) for 8 texts"),
    (lambda i: np.ones((7, 3)), NAMES, ["{}"], r"shape \(7, 3\) for 8 texts, wanted \(8, D\)"),
    (lambda i: np.full((8, 3), np.nan), NAMES, ["{}"], "embed_text gave values that are not finite"),
])
def test_a_classifier_that_cannot_be_made_is_refused_in_one_line(embed, names, sentences, message):
    with pytest.raises(UsageError, match=message) as e:
        zero_shot.classifier(embed, encode, names, sentences, batch=8)
    assert "\n" not in str(e.value)
