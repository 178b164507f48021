"""Batches: the same pixels for the same (seed, epoch, index, view), whoever makes them, and each example once."""
import itertools
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from simclr_jax import data
from simclr_jax.data import pipeline, random, recipe
from simclr_jax.data.sources import arrays, folder
from simclr_jax.errors import UsageError

VIEW = (("random_resized_crop", dict(size=8)), ("flip", {}), ("grayscale", {}), ("blur", dict(kernel=3)))
VIEWS = (VIEW, VIEW)
EVAL = (("resize", dict(size=8)),)
SIZE = 22


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (SIZE, 12, 10, 3), np.uint8)


@pytest.fixture(scope="module")
def sources(images, tmp_path_factory):
    """The same pictures as an array source and as a folder of files."""
    root = tmp_path_factory.mktemp("pictures")
    for i, image in enumerate(images):
        Image.fromarray(image).save(root / f"{i:02}.png")
    return {"arrays": arrays.make(images=images, labels=np.arange(SIZE)), "folder": folder.make(root=str(root), memory=0.0)}


def take(count, *args, **kwargs):
    return list(itertools.islice(data.batches(*args, **kwargs), count))


def same(a, b):
    return len(a) == len(b) and all(x.keys() == y.keys() and all(np.array_equal(x[k], y[k]) for k in x)
                                    for x, y in zip(a, b))


@pytest.fixture(scope="module")
def unbroken(sources):
    """Two epochs and a bit in batches of 6, which does not divide 22."""
    return {kind: take(8, source, VIEWS, batch=6, seed=3) for kind, source in sources.items()}


KINDS = pytest.mark.parametrize("kind", ["arrays", "folder"])


def test_a_small_folder_is_decoded_once_and_read_as_arrays(images, sources, unbroken, tmp_path):
    for i, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{i:02}.png")
    kept = folder.make(root=str(tmp_path), memory=0.001)
    got = take(8, kept, VIEWS, batch=6, seed=3)
    for a, b in zip(got, unbroken["arrays"], strict=True):
        assert np.array_equal(a["views"], b["views"]) and np.array_equal(a["id"], b["id"])
    (tmp_path / "00.png").write_bytes(b"gone")  # and no file is read again
    assert same(take(8, kept, VIEWS, batch=6, seed=3), got)


@pytest.mark.parametrize("why", ["sizes differ", "too large", "not wanted"])
def test_other_folders_are_read_from_their_files(images, tmp_path, why):
    from simclr_jax.data.memory import in_memory
    for i, image in enumerate(images):
        Image.fromarray(image[i % 2 if why == "sizes differ" else 0:]).save(tmp_path / f"{i:02}.png")
    source = folder.make(root=str(tmp_path), memory={"too large": 1e-6, "not wanted": 0.0}.get(why, 1.0))
    assert in_memory(source) is source


def test_what_is_kept_in_memory_counts_unreadable_files_once(images, tmp_path):
    for i, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{i:02}.png")
    (tmp_path / "05.png").write_bytes(b"no image")
    kept = folder.make(root=str(tmp_path), max_bad=0.1, memory=1.0)
    ids = np.concatenate([b["id"][:, 0] for b in data.examples(kept, EVAL, batch=4)])
    assert sorted(ids) == [i for i in range(SIZE) if i != 5]  # its stand-in is not counted twice
    assert len(kept.problems()) == 1 and "05.png" in kept.problems()[0]
    with pytest.raises(UsageError, match="max_bad=0"):
        take(1, folder.make(root=str(tmp_path), max_bad=0.0, memory=1.0), VIEWS, batch=6, seed=3)


@KINDS
def test_views_whose_crops_draw_nothing(sources, kind):
    """Which leaves no numbers to pass from the batch to its images."""
    view = (("resize", dict(size=8)), ("flip", {}))
    for b in take(3, sources[kind], (view, view), batch=6, seed=3):
        assert b["views"].shape == (6, 2, 8, 8, 3) and b["views"].std() > 0


def test_a_subset_is_those_examples_in_that_order(sources):
    for source in sources.values():
        some = data.subset(source, [7, 3, 3])
        got = np.concatenate([b["image"] for b in data.examples(some, EVAL, batch=2)])
        whole = np.concatenate([b["image"] for b in data.examples(source, EVAL, batch=30)])
        assert np.array_equal(got, whole[[7, 3, 3]])




@KINDS
def test_shapes_types_and_every_example_once_an_epoch(unbroken, kind):
    assert {(b["views"].shape, b["views"].dtype, b["label"].dtype, b["id"].dtype) for b in unbroken[kind]} == {
        ((6, 2, 8, 8, 3), np.dtype("float32"), np.dtype("int32"), np.dtype("uint32"))}
    rows = np.concatenate([b["id"] for b in unbroken[kind]])
    for epoch in (0, 1):
        assert sorted(rows[rows[:, 1] == epoch, 0]) == list(range(SIZE))
    labels = np.concatenate([b["label"] for b in unbroken[kind]])
    assert np.array_equal(labels, rows[:, 0] if kind == "arrays" else np.full(48, -1))


@KINDS
def test_pixels_are_those_of_the_recipe_under_the_row_key(unbroken, images, kind):
    """The key is fold_in(fold_in(seed, epoch), index): rows of two epochs, computed alone, outside the pipeline."""
    made = recipe.build_views(VIEWS)
    for b in (unbroken[kind][0], unbroken[kind][5]):
        index, epoch = b["id"][2]
        key = random.fold_in(random.fold_in(random.seed_key(3), epoch), index)
        alone = made.pixel(made.spatial(images[index], key)[None], key[None])[0]
        # Arrays are resampled by the batch, as matrix products, which differs in the last bits.
        np.testing.assert_allclose(b["views"][2], alone, rtol=0, atol=1e-5 if kind == "arrays" else 0)


@KINDS
@pytest.mark.parametrize("change", [dict(workers=1), dict(workers=7), dict(chunk=2), dict(chunk=5), dict(chunk=48)])
def test_pixels_do_not_depend_on_workers_or_chunks(sources, unbroken, monkeypatch, kind, change):
    """bit for bit."""
    if "chunk" in change:
        monkeypatch.setattr(pipeline, "_chunk", lambda size, rows: change["chunk"])
    assert same(take(3, sources[kind], VIEWS, batch=6, seed=3, workers=change.get("workers")), unbroken[kind][:3])


@KINDS
@pytest.mark.parametrize("count", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_processes_share_out_the_same_batches(sources, unbroken, kind, count):
    """shards in order are the batch of one process, over two epochs that batches do not divide."""
    shares = [take(8, sources[kind], VIEWS, batch=6, seed=3, process=(p, count)) for p in range(count)]
    together = [{k: np.concatenate([s[k] for s in step]) for k in step[0]} for step in zip(*shares)]
    assert same(together, unbroken[kind])


@KINDS
def test_start_step_is_the_unbroken_stream_from_there(sources, unbroken, kind):
    assert same(take(3, sources[kind], VIEWS, batch=6, seed=3, start_step=5), unbroken[kind][5:])


def test_start_far_on_reads_only_what_it_gives(images):
    """A resumed run replays nothing: step 10 million reads a few batches' worth of examples."""
    source, asked = arrays.make(images=images), []
    counted = source._replace(read=lambda index: _counted(source, index, asked))
    first = take(1, counted, VIEWS, batch=6, seed=0, start_step=10_000_000)[0]
    assert set(first["id"][:, 1]) <= {60_000_000 // SIZE, 60_000_000 // SIZE + 1}
    assert 6 <= sum(asked) < 10 * 6 + 16 * 16  # what is ahead is bounded too


def _counted(source, index, asked):
    import tensorflow as tf

    def note(i):
        asked.append(np.size(i))
        return i

    same_index = tf.numpy_function(note, [index], tf.int64)
    same_index.set_shape(index.shape)
    return source.read(same_index)


def test_views_images_and_epochs_all_differ(sources):
    """one picture over and over, so that only the keys can tell the views apart."""
    flat = arrays.make(images=np.repeat(np.random.default_rng(1).integers(0, 256, (1, 12, 10, 3), np.uint8), 8, 0))
    two_epochs = np.concatenate([b["views"].reshape(16, -1) for b in take(2, flat, VIEWS, batch=8, seed=0)])
    assert len({v.tobytes() for v in two_epochs}) == 32
    other_seed = take(1, flat, VIEWS, batch=8, seed=1)[0]["views"].reshape(16, -1)
    assert not {v.tobytes() for v in other_seed} & {v.tobytes() for v in two_epochs}


@KINDS
@pytest.mark.parametrize("batch, count", [(5, 1), (5, 3), (22, 1), (100, 4)])
def test_examples_come_once_each_and_in_order(sources, images, kind, batch, count):
    """neither the batch nor the processes divide the split; each example is counted once."""
    parts = [list(data.examples(sources[kind], EVAL, batch=batch, process=(p, count))) for p in range(count)]
    rows = [b for part in parts for b in part]
    assert [int(i) for b in rows for i, _ in b["id"]] == list(range(SIZE))
    assert all(len(b["label"]) == batch for part in parts for b in part[:-1])
    sizes = [sum(len(b["label"]) for b in part) for part in parts]
    assert max(sizes) - min(sizes) <= 1
    fn = recipe.build_eval(EVAL)
    got = np.concatenate([b["image"] for b in rows])
    assert np.array_equal(got, np.stack([fn(image) for image in images]))


def test_more_processes_than_examples_leaves_some_with_none(images):
    source = arrays.make(images=images[:2])
    parts = [list(data.examples(source, EVAL, batch=4, process=(p, 3))) for p in range(3)]
    assert sorted(int(b["id"][0, 0]) for part in parts for b in part) == [0, 1]


def test_refusals_come_at_once_with_the_numbers(sources):
    """before the first batch is asked for."""
    for kwargs, said in [(dict(batch=23), "22 examples.* 23"), (dict(batch=9, process=(0, 2)), "9 rows.* 2 processes"),
                         (dict(batch=6, seed=-1), "seed=-1"), (dict(batch=6, start_step=-1), "start_step=-1"),
                         (dict(batch=6, workers=0), "workers=0")]:
        with pytest.raises(UsageError, match=said):
            data.batches(sources["arrays"], VIEWS, **{"seed": 0, **kwargs})
    with pytest.raises(UsageError, match="resiez"):
        data.examples(sources["arrays"], (("resiez", dict(size=8)),), batch=5)


def test_what_runs_ahead_is_bounded(images):
    """Prefetching stops at a few batches, however long the consumer takes."""
    source, asked = arrays.make(images=images), []
    stream = data.batches(source._replace(read=lambda i: _counted(source, i, asked)), VIEWS, batch=16, seed=0,
                          workers=2)
    next(stream)
    deadline, before = time.time() + 10, -1
    while sum(asked) != before and time.time() < deadline:
        before = sum(asked)
        time.sleep(0.5)
    assert sum(asked) == before <= 16 * 12
    stream.close()


@pytest.mark.slow
def test_import_is_light_and_leaving_amid_work_ends_the_process():
    """Reader threads at work when Python leaves would hang it for good; and importing the room loads no TensorFlow."""
    program = """
import sys
import numpy as np
import simclr_jax.data as data
from simclr_jax.data.sources import arrays
assert not {"tensorflow", "jax"} & set(sys.modules)
source = arrays.make(images=np.zeros([4000, 8, 8, 3], np.uint8))
def read(index):
    import tensorflow as tf
    def slow(i):
        for _ in range(300_000):
            pass
        return i
    same = tf.numpy_function(slow, [index], tf.int64)
    same.set_shape(index.shape)
    return source.read(same)
stream = data.batches(source._replace(read=read), ((("resize", {"size": 8}),),), batch=1024, seed=0, workers=4)
next(stream)
print("leaving", flush=True)
"""
    done = subprocess.run([sys.executable, "-c", program], timeout=60, capture_output=True, text=True)
    assert done.returncode == 0 and "leaving" in done.stdout, done.stderr
