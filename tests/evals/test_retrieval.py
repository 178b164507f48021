"""Ranks against a dense sort, at every size of tile; recalls at their closed forms; memory of a tile."""
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simclr_jax.errors import UsageError
from simclr_jax.evals import retrieval


def data(n=37, m=101, d=8, seed=0, noise=1.5, ties=True):
    """Images with one to several captions each in mixed order; some images and some texts stand there twice."""
    r = np.random.default_rng(seed)
    owner = r.permutation(np.concatenate([np.arange(n), r.integers(0, n, m - n)]))
    image = r.normal(size=(n, d)).astype(np.float32)
    text = (image[owner] + noise * r.normal(size=(m, d))).astype(np.float32)
    if ties:
        image[n // 2:n // 2 + 5] = image[:5]
        text[m // 2:m // 2 + 20] = text[:20]
    return 3 * image, text / 7, owner


def unit(x):
    x = x.astype(np.float64)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def dense(image, text, owner):
    """The definition in float64: sort everything, one's own last among equals, and look where it stands."""
    similarity = np.round(unit(image) @ unit(text).T, 9)
    of_images, of_texts = [], []
    for i, row in enumerate(similarity):
        mine = np.flatnonzero(owner == i)
        best = mine[row[mine].argmax()]
        pool = np.setdiff1d(np.arange(len(text)), mine)  # its other captions are never wrong
        pool = np.append(pool, best)
        order = pool[np.argsort(-row[pool], kind="stable")]
        of_images.append(int(np.flatnonzero(order == best)[0]))
    for j, column in enumerate(similarity.T):
        pool = np.append(np.setdiff1d(np.arange(len(image)), owner[j]), owner[j])
        order = pool[np.argsort(-column[pool], kind="stable")]
        of_texts.append(int(np.flatnonzero(order == owner[j])[0]))
    return np.array(of_images), np.array(of_texts)


@pytest.mark.parametrize("ties", [False, True])
def test_ranks_are_those_of_a_dense_sort_at_every_size_of_tile(ties):
    image, text, owner = data(ties=ties)
    expected = dense(image, text, owner)
    assert len(set(expected[0])) > 5 and (expected[1] == 0).any()
    for a, b in [(4096, 4096), *itertools.product((1, 7, 36), (10, 101)), (37, 64)]:
        got = retrieval.ranks(image, text, owner, image_chunk=a, text_chunk=b)
        for g, e in zip(got, expected):
            assert g.dtype == np.int64
            np.testing.assert_array_equal(g, e, err_msg=f"tiles of {a} x {b}")


def test_padding_is_no_rival():
    image, text, owner = data(n=5, m=9, ties=False)
    image, text = -np.abs(image), np.abs(text)  # every similarity is below the 0 of padding
    ranks = retrieval.ranks(image, text, owner, image_chunk=4, text_chunk=7)
    for got, expected in zip(ranks, dense(image, text, owner)):
        np.testing.assert_array_equal(got, expected)


def test_no_array_grows_with_both_sets(monkeypatch):
    def sizes(jaxpr):
        for equation in jaxpr.eqns:
            yield from (v.aval.size for v in equation.outvars)
            for value in equation.params.values():
                if hasattr(value, "jaxpr"):
                    yield from sizes(value.jaxpr)

    seen = {"_tile": [], "_own": [], "_unit": []}

    def spy(name, original):
        def call(*args):
            seen[name].append(max(sizes(jax.make_jaxpr(original)(*args).jaxpr)))
            return original(*args)
        return call

    for name in seen:
        monkeypatch.setattr(retrieval, name, spy(name, getattr(retrieval, name)))
    image, text, owner = data(n=200, m=300)
    retrieval.ranks(image, text, owner, image_chunk=64, text_chunk=100)
    assert {name: (len(s), max(s)) for name, s in seen.items()} == {
        "_tile": (4 * 3, 64 * 100), "_own": (4 * 3, 64 * 100), "_unit": (3 + 4 + 4, 100 * 8)}


def test_every_tile_runs_the_same_program():
    image, text, owner = data(n=83, m=131)
    before = retrieval._tile._cache_size()
    retrieval.ranks(image, text, owner, image_chunk=20, text_chunk=30)
    assert retrieval._tile._cache_size() == before + 1


@pytest.mark.parametrize("d", [3, 512, 1000])
@pytest.mark.parametrize("constant", [True, False])
def test_a_collapsed_encoder_is_last_everywhere(d, constant):
    vector = np.ones(d) if constant else np.random.default_rng(0).normal(size=d)
    owner = np.arange(111) % 37
    lengths = np.random.default_rng(1).uniform(0.1, 9, 148)[:, None]  # the unit vectors then differ by rounding
    image, text = np.split(vector * lengths, [37])
    for a, b in ((16, 9), (5, 100), (37, 111)):
        ranks = retrieval.ranks(image, text, owner, image_chunk=a, text_chunk=b)
        np.testing.assert_array_equal(ranks[0], 111 - 3)
        np.testing.assert_array_equal(ranks[1], 37 - 1)
    record = retrieval.score(image, text, owner, step=0, features="x")
    assert record["accuracy"] == 0 < record["chance_r1"] and record["image_to_text"]["r10"] == 0


def test_texts_in_the_order_of_their_images_read_few_tiles_twice(monkeypatch):
    image, text, owner = data(n=50, m=100)
    calls, original = [], retrieval._own
    monkeypatch.setattr(retrieval, "_own", lambda *args: (calls.append(1), original(*args))[1])
    order = np.argsort(owner, kind="stable")
    got = retrieval.ranks(image, text[order], owner[order], image_chunk=10, text_chunk=10)
    assert len(calls) < 20 < 5 * 10
    expected = retrieval.ranks(image, text, owner)
    np.testing.assert_array_equal(got[0], expected[0])
    np.testing.assert_array_equal(got[1], expected[1][order])


def test_perfect_pairs_have_recall_one():
    image, owner = np.eye(20, dtype=np.float32), np.repeat(np.arange(20), 3)
    text = image[owner] + 0.01 * np.random.default_rng(0).normal(size=(60, 20))
    record = retrieval.score(image, text, owner, step=7, features="clip")
    perfect = {"r1": 1.0, "r5": 1.0, "r10": 1.0, "median_rank": 1.0}
    assert record["image_to_text"] == perfect == record["text_to_image"] and record["accuracy"] == 1
    key = [record[k] for k in ("eval", "features", "labels_per_class", "step")]
    assert key == ["retrieval", "clip", 0, 7]
    assert (record["n_images"], record["n_texts"]) == (20, 60)


def test_one_good_caption_is_enough_for_an_image():
    image = np.eye(3, dtype=np.float32)
    text = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 1.0]])  # image 0 also owns a text that fits image 2
    record = retrieval.score(image, text, np.array([0, 1, 2, 0]), step=0, features="x", ks=(1, 2))
    assert record["image_to_text"] == {"r1": 2 / 3, "r2": 1.0, "median_rank": 1.0}  # image 2: a foreign text as near
    # the misplaced text: of the images other than its own, image 2 is nearer and image 1 as near
    assert record["text_to_image"] == {"r1": 0.75, "r2": 0.75, "median_rank": 1.0}
    assert record["accuracy"] == pytest.approx((2 / 3 + 0.75) / 2)


def test_chance_is_the_mean_over_all_orders():
    captions, n, m = [1, 2, 3], 3, 6
    owner = np.repeat(np.arange(n), captions)
    image, text = np.random.default_rng(0).normal(size=(n, 4)), np.random.default_rng(1).normal(size=(m, 4))
    record = retrieval.score(image, text, owner, step=0, features="x", ks=(1, 2, 4, 10))
    orders = np.array(list(itertools.permutations(range(m))))
    for k in (1, 2, 4, 10):
        hits = [np.mean([np.any(np.isin(order[:k], np.flatnonzero(owner == i))) for order in orders]) for i in range(n)]
        assert record["chance"]["image_to_text"][f"r{k}"] == pytest.approx(np.mean(hits), abs=1e-12)
        assert record["chance"]["text_to_image"][f"r{k}"] == min(k / n, 1)
    assert record["chance_r1"] == pytest.approx((1 / 3 + 1 / 3) / 2)


def test_shuffled_pairs_recall_at_chance():
    image, text, owner = data(n=400, m=2000, d=32, ties=False)
    text = text[np.random.default_rng(5).permutation(2000)]
    record = retrieval.score(image, text, owner, step=0, features="x")
    for way, rows in (("image_to_text", 400), ("text_to_image", 2000)):
        for k in ("r1", "r5", "r10"):
            p = record["chance"][way][k]
            assert abs(record[way][k] - p) < 4 * np.sqrt(p * (1 - p) / rows), (way, k)


def test_recalls_are_shares_of_the_ranks():
    image, text, owner = data()
    record = retrieval.score(image, text, owner, step=0, features="x")
    for way, rank in zip(("image_to_text", "text_to_image"), dense(image, text, owner)):
        for k in (1, 5, 10):
            assert record[way][f"r{k}"] == pytest.approx(np.mean(rank < k))
        assert record[way]["median_rank"] == np.median(rank) + 1


def test_search_finds_the_nearest_in_order():
    image, text, _ = data(ties=False)
    index, similarity = retrieval.search(text[:3], image, 5)
    expected = unit(text[:3]) @ unit(image).T
    np.testing.assert_array_equal(index, np.argsort(-expected, axis=1)[:, :5])
    np.testing.assert_allclose(similarity, -np.sort(-expected, axis=1)[:, :5], atol=1e-6)
    assert retrieval.search(text[:1], image, 99).index.shape == (1, 37)


@pytest.mark.parametrize("change, message", [
    (dict(owner=np.arange(101) % 36), "1 of 37 images have no text, the first is row 36"),
    (dict(owner=np.arange(101) % 38), r"owner has values in 0..37, wanted rows of the 37 images, 0..36"),
    (dict(owner=np.arange(101) - 1), "values in -1..99"),
    (dict(owner=np.arange(100)), r"owner is int64\[100\], wanted integers \[101\]"),
    (dict(owner=np.zeros(101)), r"owner is float64\[101\]"),
    (dict(image=np.full((37, 8), np.nan)), "image: 37 of 37 feature rows are not finite"),
    (dict(text=np.full((101, 8), np.inf)), "text: 101 of 101"),
    (dict(text=np.ones((101, 9))), "8 columns and text features 9"),
    (dict(image=np.ones(8)), r"image features have shape \(8,\)"),
    (dict(text=np.ones((0, 8))), r"text features have shape \(0, 8\)"),
])
def test_what_cannot_work_is_refused_in_one_line(change, message):
    given = dict(zip(("image", "text", "owner"), data())) | change
    with pytest.raises(UsageError, match=message) as e:
        retrieval.score(**given, step=0, features="x")
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("query, k, message", [
    (np.ones((1, 9)), 5, "queries have 9 columns, the features searched 8"),
    (np.ones((1, 8)), 0, "k=0"),
    (np.full((1, 8), np.nan), 5, "query: 1 of 1 feature rows are not finite"),
])
def test_a_search_that_cannot_work_is_refused(query, k, message):
    with pytest.raises(UsageError, match=message):
        retrieval.search(query, data()[0], k)


def test_half_precision_features_are_taken():
    image, text, owner = data(ties=False)
    half = [np.asarray(jnp.asarray(x, jnp.bfloat16)) for x in (image, text)]
    for got, expected in zip(retrieval.ranks(*half, owner), dense(*(h.astype(np.float32) for h in half), owner)):
        np.testing.assert_array_equal(got, expected)
