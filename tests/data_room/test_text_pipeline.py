"""Texts beside images: the caption is the image's own, and the same whoever makes the batch."""
import itertools

import numpy as np
import pytest
from PIL import Image

from feeding import batches, examples
from simclr_jax import data, keys
from simclr_jax.data import captions, order
from simclr_jax.data.sources import arrays, folder
from simclr_jax.errors import UsageError

VIEWS = ((("random_resized_crop", dict(size=8)), ("flip", {})),)
EVAL = (("resize", dict(size=8)),)
SIZE = 22
BAD = (4, 5, 21)  # neighbours, and the last, for which the first stands in


class Tokens:
    """"7 2", the second caption of an image of shade 7, becomes [7, 2]."""

    length = 2

    @staticmethod
    def encode(texts):
        return np.array([[int(word) for word in text.split()] for text in texts], np.int32)


def captions_of(i):
    return [f"{i * 10} {k}" for k in range(1 + i % 4)]


def picture(i):
    return np.full((9, 11, 3), i * 10, np.uint8)


def write(root, bad, memory):
    """A folder with its captions, as a source."""
    lines = [f"{i:02}.png,{text},train" for i in range(SIZE) for text in captions_of(i)]
    (root / "captions.csv").write_text("\n".join(["image,caption,split", *lines, ""]))
    for i in range(SIZE):
        Image.fromarray(picture(i)).save(root / f"{i:02}.png")
        if i in bad:
            (root / f"{i:02}.png").write_bytes(b"no image")
    return folder.make(root=str(root), max_bad=0.2, memory=memory)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    images = np.stack([picture(i) for i in range(SIZE)])
    made = {kind: write(tmp_path_factory.mktemp(kind), *how)
            for kind, how in {"folder": ((), 0.0), "bad": (BAD, 0.0), "kept": (BAD, 1.0)}.items()}
    return {"arrays": arrays.make(images=images, captions=[captions_of(i) for i in range(SIZE)]), **made}


KINDS = pytest.mark.parametrize("kind", ["arrays", "folder", "bad", "kept"])


def take(count, source, batch=6, seed=3, **kwargs):
    stream = batches(source, VIEWS, batch=batch, seed=seed, tokenizer=Tokens, **kwargs)
    return list(itertools.islice(stream, count))


def same(a, b):
    return len(a) == len(b) and all(x.keys() == y.keys() and all(np.array_equal(x[k], y[k]) for k in x)
                                    for x, y in zip(a, b))


@pytest.fixture(scope="module")
def unbroken(sources):
    return {kind: take(8, source) for kind, source in sources.items()}


def shades(batch):
    views = batch["views"].reshape(len(batch["views"]), -1) * 255
    assert np.ptp(views, axis=1).max() < 0.01
    return np.rint(views[:, 0]).astype(int)


@KINDS
def test_each_row_has_a_caption_of_its_own_image(unbroken, kind):
    for b in unbroken[kind]:
        assert b["text"].shape == (6, 2) and b["text"].dtype == np.int32
        assert np.array_equal(b["text"][:, 0], shades(b))
        assert np.all(b["text"][:, 1] <= b["text"][:, 0] // 10 % 4)
    rows = np.concatenate([b["id"][:, 0] for b in unbroken[kind]])
    shown = np.concatenate([b["text"][:, 0] // 10 for b in unbroken[kind]])
    bad = np.isin(rows, BAD) if kind in ("bad", "kept") else np.zeros(len(rows), bool)
    assert np.array_equal(rows[~bad], shown[~bad])
    assert bad.sum() == (6 if kind in ("bad", "kept") else 0) and set(shown[bad]) <= {6, 0}


@pytest.mark.parametrize("kind, change", [
    *itertools.product(["bad"], [dict(workers=1), dict(workers=4), dict(piece=2), dict(start=5), dict(processes=2)]),
    ("arrays", dict(workers=1, piece=3, start=5)), ("kept", dict(processes=2))])
def test_texts_do_not_depend_on_who_makes_the_batch(sources, unbroken, kind, change):
    """bit for bit, over two epochs that batches do not divide."""
    count, start = change.get("processes", 1), change.get("start", 0)
    shares = [take(3, sources[kind], start_step=start, workers=change.get("workers"), process=(p, count),
                   piece=change.get("piece"))
              for p in range(count)]
    together = [{k: np.concatenate([s[k] for s in step]) for k in step[0]} for step in zip(*shares)]
    assert same(together, unbroken[kind][start:start + 3])


def test_images_are_those_without_a_tokenizer(sources, unbroken):
    plain = list(itertools.islice(batches(sources["folder"], VIEWS, batch=6, seed=3), 4))
    assert all(b.keys() == {"views", "label", "id"} for b in plain)
    assert all(np.array_equal(a["views"], b["views"]) for a, b in zip(plain, unbroken["folder"]))


def test_the_draw_is_the_row_keys(unbroken):
    """floor(u * n), u of a key folded from the row's; computed alone, outside the pipeline."""
    for b in unbroken["arrays"]:
        for (index, epoch), (_, chosen) in zip(b["id"], b["text"]):
            key = keys.fold_in(keys.fold_in(keys.seed_key(3), epoch), index)
            u = float(keys.uniform(keys.fold_in(key, 0x74657874), 1)[0])
            assert chosen == int(u * len(captions_of(int(index))))


def test_all_captions_are_as_likely_as_another():
    """400 epochs of 8 examples with 4 captions each: chi-square of 8 * 3 degrees of freedom, below 6 sigma."""
    texts = [[f"{i} {k}" for k in range(4)] for i in range(8)]
    source = arrays.make(images=np.stack([picture(3)] * 8), captions=texts)
    index, epoch = np.tile(np.arange(8), 400), np.repeat(np.arange(400), 8)
    ids = captions.drawn(source, Tokens, 1, np.stack([index, epoch], axis=1).astype(np.uint32), index)
    seen = np.zeros((8, 4))
    np.add.at(seen, tuple(ids.T), 1)
    assert seen.sum(1).tolist() == [400] * 8
    assert ((seen - 100) ** 2 / 100).sum() < 24 + 6 * np.sqrt(48)
    assert np.mean(np.ptp(ids[:, 1].reshape(400, 8), axis=1) > 0) > 0.99  # rows draw apart from each other


def test_a_subset_keeps_captions_with_their_images(sources):
    """also of stand-ins, and in a subset of a subset."""
    for kind in ("arrays", "bad"):
        some = data.subset(data.subset(sources[kind], [9, 4, 7, 5, 1, 21]), [1, 3, 2, 0, 5])
        for b in take(1, some, batch=5):
            assert np.array_equal(b["text"][:, 0], shades(b))
        assert some.captions(2) == tuple(captions_of(7)) and some.captions(3) == tuple(captions_of(9))
        ids = [int(i) for b in examples(some, EVAL, batch=5) for i, _ in b["id"]]
        assert ids == ([0, 1, 2, 3, 4] if kind == "arrays" else [2, 3])
    assert data.subset(arrays.make(images=np.zeros((3, 4, 4), np.uint8)), [0]).captions is None


@pytest.mark.parametrize("error, said", [(OSError("the disk is gone"), "example 7 cannot be read: the disk is gone"),
                                         (ValueError("no\ncaption"), "no caption"),
                                         (UsageError("mend it"), "^mend it$")])
def test_captions_that_cannot_be_read_end_the_run_in_one_line(sources, error, said):
    def texts(index):
        if index == 7:
            raise error
        return sources["arrays"].captions(index)

    with pytest.raises(UsageError, match=said) as e:
        take(8, sources["arrays"]._replace(captions=texts), workers=4)
    assert "\n" not in str(e.value)


def test_a_bug_in_a_tokenizer_keeps_its_kind(sources):
    class Broken(Tokens):
        @staticmethod
        def encode(texts):
            return {}["missing"]

    stream = batches(sources["arrays"], VIEWS, batch=6, seed=0, tokenizer=Broken)
    with pytest.raises(KeyError, match="missing"):
        next(stream)


def test_a_tokenizer_for_a_source_without_captions_is_refused():
    source = arrays.make(images=np.zeros((8, 4, 4), np.uint8))
    for start in (lambda: data.check(source, batch=4, tokenizer=Tokens), lambda: take(1, source, batch=4)):
        with pytest.raises(UsageError, match="8 images: it has no captions.*captions.csv") as e:
            start()
        assert "\n" not in str(e.value)
    data.check(source, batch=4)


@pytest.mark.parametrize("texts, said", [(["a"], "1 captions for 2"), (["a", " "], "example 1 are"),
                                            (["a", []], "example 1"), (["a", ["b", ""]], "example 1"),
                                            (["a", [3]], "example 1")])
def test_arrays_refuse_captions_that_are_none(texts, said):
    with pytest.raises(UsageError, match=said):
        arrays.make(images=np.zeros((2, 4, 4), np.uint8), captions=texts)


def test_other_captions_are_other_data():
    images = np.zeros((2, 4, 4), np.uint8)
    digests = [arrays.make(images=images, captions=c).digest for c in (None, ["a", "b"], ["b", "a"], [["a", "b"], "b"])]
    assert len(set(digests)) == 4


SHARDS = (3, 0, 7, 1, 5, 6)  # 22 examples


def own(process, count):
    ends = np.cumsum(SHARDS)
    return sorted(i for s in range(process, len(SHARDS), count) for i in range(ends[s] - SHARDS[s], ends[s]))


@pytest.mark.parametrize("count", [2, 3])
def test_processes_share_out_whole_shards_and_all_of_them(count):
    """each has every one of its own examples once an epoch, and no other's."""
    assert sorted(i for p in range(count) for i in own(p, count)) == list(range(SIZE))
    for p in range(count):
        positions = order.make(3, SIZE, 2 * count, (p, count), SHARDS)
        rows = np.concatenate([np.stack(positions(step), 1) for step in range(40)])
        assert rows[-1, 1] >= 3 and np.all(np.diff(rows[:, 1]) >= 0)
        for epoch in range(rows[-1, 1]):
            assert sorted(rows[rows[:, 1] == epoch, 0]) == own(p, count)


def test_batches_of_shards_go_on_where_they_were(sources):
    source = sources["arrays"]._replace(shards=SHARDS)
    got = take(8, source, batch=4, process=(1, 2))
    assert {int(i) for b in got for i in b["id"][:, 0]} <= set(own(1, 2))
    assert all(np.array_equal(b["text"][:, 0], shades(b)) for b in got)
    assert same(take(4, source, batch=4, process=(1, 2), start_step=4), got[4:])


def test_one_process_has_the_order_of_any_source(sources, unbroken):
    assert same(take(8, sources["arrays"]._replace(shards=SHARDS)), unbroken["arrays"])


def test_what_is_in_one_batch_changes_from_epoch_to_epoch_across_processes():
    """equal shards, so that only orders of their own can part the examples of two processes."""
    hosts = [order.make(0, 40, 4, (p, 2), (20, 20)) for p in range(2)]
    pairs = [{(int(a), int(b)) for a in hosts[0](step)[0] for b in hosts[1](step)[0]} for step in range(20)]
    mates = [set().union(*pairs[:10]), set().union(*pairs[10:])]
    assert len(mates[0]) == 40 and len(mates[0] & mates[1]) < 20


@pytest.mark.parametrize("shards, batch, process, said", [
    ((11, 11), 6, (0, 3), "2 shards, fewer than 3 processes"),
    ((1, 21), 4, (1, 2), "process 0 of 2 hold 1 examples.* 2 rows"),
    ((11, 0, 11, 0), 4, (0, 2), "process 1 of 2 hold 0")])
def test_shards_that_cannot_be_dealt_out_are_refused(sources, shards, batch, process, said):
    """in every process alike, before anything is read."""
    source = sources["arrays"]._replace(shards=shards)
    for start in (lambda: data.check(source, batch=batch, process=process),
                  lambda: take(1, source, batch=batch, process=process)):
        with pytest.raises(UsageError, match=said) as e:
            start()
        assert "\n" not in str(e.value)


def test_only_own_shards_are_read(sources):
    """also of a source that would be kept in memory whole."""
    asked = []
    kept = sources["kept"]

    def read(index, cut=None):
        asked.append(int(index))
        return kept.read(index, cut)

    take(4, kept._replace(read=read, shards=(11, 11)), batch=4, process=(1, 2))
    assert asked and set(asked) <= set(range(11, 22))
