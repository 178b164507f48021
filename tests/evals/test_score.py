"""The protocol: draws, chance level, separable data, honesty about the test set, and what is refused."""
import numpy as np
import pytest

from simclr_jax.errors import UsageError
from simclr_jax.evals import draws, knn, score


def random_features(n=600, m=400, d=16, classes=4, seed=0, signal=0.0):
    r = np.random.default_rng(seed)
    y = [np.arange(k) % classes for k in (n, m)]
    centres = np.eye(classes, d) * signal
    return tuple(a for k in y for a in ((centres[k] + r.normal(size=(len(k), d))).astype(np.float32), k))


def one(records, **want):
    [record] = [r for r in records if all(r[k] == v for k, v in want.items())]
    return record


def test_draws_are_stratified_seeded_and_without_repeats():
    labels = np.random.default_rng(0).permutation(np.repeat([3, 5, 9], [40, 60, 80]))
    sets = draws.per_class(labels, 7, draws=10)
    for s in sets:
        assert len(np.unique(s)) == 21
        np.testing.assert_array_equal(np.unique(labels[s], return_counts=True), [[3, 5, 9], [7, 7, 7]])
    assert len({s.tobytes() for s in sets}) == 10
    for a, b in zip(sets, draws.per_class(labels, 7, draws=3)):
        np.testing.assert_array_equal(a, b)
    assert (draws.per_class(labels, 7, draws=1, seed=1)[0] != sets[0]).any()
    assert len(np.unique(np.concatenate(draws.per_class(labels, 7, draws=60)))) == 180  # every example can be drawn


def test_the_smallest_class_limits_the_draw():
    labels = np.repeat([3, 5, 9], [40, 6, 80])
    assert len(draws.per_class(labels, 6, draws=1)[0]) == 18
    with pytest.raises(UsageError, match="class 5 has only 6 labelled training examples"):
        draws.per_class(labels, 7)


def test_holdout_is_a_stratified_partition():
    labels = np.repeat([0, 1, 2], [50, 10, 2])
    fit, val = draws.holdout(labels)
    np.testing.assert_array_equal(np.sort(np.concatenate([fit, val])), np.arange(62))
    np.testing.assert_array_equal(np.bincount(labels[val]), [10, 2, 1])
    fit, val = draws.holdout(np.array([0, 0, 1, 2, 2]))
    assert 2 in fit and len(val) == 2  # a lone example of a class is fitted on
    with pytest.raises(UsageError, match="no class has 2 of the 3 training examples"):
        draws.holdout(np.arange(3))


def test_random_features_score_at_chance():
    records = score.score({"noise": random_features()}, labels_per_class=(5, "all"), step=3)
    assert len(records) == 4
    for r in records:
        assert abs(r["accuracy"] - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 400), r
        assert r["chance"] == 0.25


def test_separable_features_score_one_for_every_eval_and_number_of_labels():
    sets = random_features(signal=60.0)
    records = (score.score({"good": sets}, labels_per_class=(1, 5, "all"), draws=3, step=0)
               + score.score({"good": sets}, evals=("linear",), labels_per_class=("all",), protocol="sgd", step=0))
    assert [r["accuracy"] for r in records] == [1.0] * 7


def test_records_say_what_was_done():
    records = score.score({"a": random_features(signal=3.0)}, labels_per_class=(1, 5, "all"), draws=4, step=17,
                          setting=knn.SETTINGS["dino"])
    one_label, five, every = [one(records, eval="knn", labels_per_class=n) for n in (1, 5, "all")]
    assert [r["k"] for r in (one_label, five, every)] == [4, 20, 20] and one_label["k_asked"] == 20
    assert [r["n_train"] for r in (one_label, five, every)] == [4, 20, 600]
    assert [r["draws"] for r in (one_label, five, every)] == [4, 4, 1]
    assert five["std"] > 0 and every["std"] == 0 and all(r["step"] == 17 and r["n_test"] == 400 for r in records)
    assert one(records, eval="linear", labels_per_class="all")["l2"] in score.linear.L2S
    again = score.score({"a": random_features(signal=3.0)}, labels_per_class=(1, 5, "all"), draws=4, step=17)
    assert again == records


def test_more_labels_help_and_std_is_that_of_the_draws():
    sets = random_features(signal=2.5)
    records = score.score({"a": sets}, evals=("knn",), labels_per_class=(1, 50), draws=6, step=0)
    assert records[1]["accuracy"] > records[0]["accuracy"] + 0.05
    fit, _ = draws.holdout(sets[1])
    by_hand = [np.mean(knn.predict(sets[0][fit[d]], sets[1][fit[d]], sets[2], classes=4) == sets[3])
               for d in draws.per_class(sets[1][fit], 1, draws=6)]
    np.testing.assert_allclose([records[0]["accuracy"], records[0]["std"]], [np.mean(by_hand), np.std(by_hand, ddof=1)])


def test_the_choice_of_l2_never_sees_the_test_labels():
    train_x, train_y, test_x, test_y = random_features(signal=1.5)
    honest = score.score({"a": (train_x, train_y, test_x, test_y)}, evals=("linear",), labels_per_class=(5, "all"),
                         draws=3, step=0)
    shuffled = score.score({"a": (train_x, train_y, test_x, (test_y + 1) % 4)}, evals=("linear",),
                           labels_per_class=(5, "all"), draws=3, step=0)
    assert [r["l2"] for r in honest] == [r["l2"] for r in shuffled]
    assert honest[1]["accuracy"] > 0.5 > 0.25 > shuffled[1]["accuracy"]


def test_labels_may_be_any_numbers_and_a_class_never_trained_on_is_wrong():
    train_x, train_y, test_x, test_y = random_features(signal=60.0)
    names = np.array([2, 30, 31, 700])
    test_y = names[test_y].copy()
    test_y[:100] = 500
    sets = (train_x, names[train_y], test_x, test_y)
    [r] = score.score({"a": sets}, evals=("knn",), labels_per_class=("all",), step=0)
    assert r["accuracy"] == 0.75


def _without(sets, **change):
    parts = dict(zip(("train_x", "train_y", "test_x", "test_y"), sets))
    return tuple((parts | change).values())


@pytest.mark.parametrize("change, options, message", [
    (dict(test_y=np.full(400, -1)), {}, "test: 400 of 400 examples have no label"),
    (dict(train_x=np.full((600, 16), np.nan)), {}, "600 of 600 feature rows are not finite"),
    (dict(train_y=np.zeros(600, int)), {}, "one class only"),
    (dict(test_x=np.zeros((0, 16)), test_y=np.zeros(0, int)), {}, "test: features of shape"),
    (dict(), dict(labels_per_class=(121,)), "labels_per_class=121 asked, but class 0 has only 120 .* at most 120"),
    (dict(), dict(labels_per_class=("some",)), "wanted a whole number"),
    (dict(), dict(labels_per_class=(0,)), "at least 1"),
    (dict(), dict(evals=("knnn",)), "there is no 'knnn'; did you mean 'knn'"),
    (dict(), dict(protocol="adam"), "there is no 'adam'"),
])
def test_what_cannot_work_is_refused_in_one_line(change, options, message):
    with pytest.raises(UsageError, match=message) as e:
        score.score({"a": _without(random_features(), **change)}, step=0, **options)
    assert "\n" not in str(e.value)
