"""Batches: the same pixels for the same (seed, epoch, index, view), whoever makes them, and each example once."""
import itertools
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from feeding import batches, examples
from simclr_jax import augment, data
from simclr_jax.data import resize
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
    return list(itertools.islice(batches(*args, **kwargs), count))


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
    # From files TensorFlow resizes, to 16 bits, and from memory matrix products do: the same crops but for rounding.
    for a, b in zip(got, unbroken["folder"], strict=True):
        np.testing.assert_allclose(a["views"], b["views"], atol=4e-5)
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
    ids = np.concatenate([b["id"][:, 0] for b in examples(kept, EVAL, batch=4)])
    assert sorted(ids) == [i for i in range(SIZE) if i != 5]  # its stand-in is not counted twice
    assert len(kept.problems()) == 1 and "05.png" in kept.problems()[0]
    with pytest.raises(UsageError, match="max_bad=0"):
        take(1, folder.make(root=str(tmp_path), max_bad=0.0, memory=1.0), VIEWS, batch=6, seed=3)


@KINDS
def test_views_whose_crops_draw_nothing(sources, kind):
    """Which leaves no numbers to pass to the crops."""
    view = (("resize", dict(size=8)), ("flip", {}))
    for b in take(3, sources[kind], (view, view), batch=6, seed=3):
        assert b["views"].shape == (6, 2, 8, 8, 3) and b["views"].std() > 0


def test_a_subset_is_those_examples_in_that_order(sources):
    for source in sources.values():
        some = data.subset(source, [7, 3, 3])
        got = np.concatenate([b["image"] for b in examples(some, EVAL, batch=2)])
        whole = np.concatenate([b["image"] for b in examples(source, EVAL, batch=30)])
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
    """bit for bit: rows of two epochs, computed alone, outside the pipeline."""
    recipe = augment.build(VIEWS)
    f = jax.jit(augment.make(recipe, 3))
    for b in (unbroken[kind][0], unbroken[kind][5]):
        row = b["id"][2:3]
        image = images[row[0, 0]]
        if kind == "arrays":
            alone = {"image": image[None]}
        else:
            numbers = recipe.numbers(3, row)[0]
            places = [resize.places(v.chain[0], u[0], 12, 10) for v, u in zip(recipe.views, numbers)]
            crops = [resize.chain(v.chain, image, p, u) for v, p, u in zip(recipe.views, places, numbers)]
            exact = (np.stack(crops)[None] / 255 + 0.5) * 32767.5
            alone = {"views": np.floor(exact + 0.5).astype(np.uint16)}
            assert np.abs(exact % 1 - 0.5).min() > 1e-4  # no pixel lies where rounding may go either way
        np.testing.assert_array_equal(f({**alone, "id": row})["views"][0], b["views"][2])


@KINDS
@pytest.mark.scorecard(34)
@pytest.mark.parametrize("change", [dict(workers=1), dict(piece=2), *(
    pytest.param(change, marks=pytest.mark.slow) for change in (dict(workers=7), dict(piece=1), dict(piece=6)))], ids=str)
def test_pixels_do_not_depend_on_workers_or_pieces(sources, unbroken, kind, change):
    """bit for bit."""
    assert same(take(3, sources[kind], VIEWS, batch=6, seed=3, **change), unbroken[kind][:3])


@KINDS
@pytest.mark.parametrize("piece", [1, 2, 3])
def test_pieces_are_the_batches_in_parts(sources, kind, piece):
    """of what the host makes, before the recipe's program."""
    recipe = augment.build(VIEWS)
    whole, parts = (list(itertools.islice(data.batches(sources[kind], recipe, batch=12, seed=3, process=(1, 2), piece=p), n))
                    for p, n in ((None, 3), (piece, 3 * 6 // piece)))
    assert whole[0].keys() == parts[0].keys() and len(whole[0]["id"]) == 6 and len(parts[0]["id"]) == piece
    for key in whole[0]:
        assert np.array_equal(np.concatenate([b[key] for b in whole]), np.concatenate([b[key] for b in parts])), key


@KINDS
def test_what_the_host_gives_to_the_device(sources, images, kind):
    """Rows as they are, of images of one size; else crops, as bytes if so wished."""
    recipe = augment.build(VIEWS)
    for bits in (16, 8):
        b = next(data.batches(sources[kind], recipe, batch=6, seed=3, bits=bits))
        if kind == "arrays":
            assert b.keys() == {"image", "label", "id"} and b["image"].dtype == np.uint8
            assert np.array_equal(b["image"], images[b["id"][:, 0]]) and b["image"].flags.c_contiguous
        else:
            assert b.keys() == {"views", "label", "id"} and b["views"].shape == (6, 2, 8, 8, 3)
            assert b["views"].dtype == (np.uint8 if bits == 8 else np.uint16)
        assert b["label"].dtype == np.int32 and b["id"].dtype == np.uint32


def test_images_squeezed_into_one_size(images):
    """Training gets the originals' sizes beside the rows; an evaluation sees pictures in their proportions."""
    sizes = np.stack([np.arange(SIZE) + 20, 60 - np.arange(SIZE)], axis=1).astype(np.int32)
    source = arrays.make(images=images)._replace(sizes=sizes)
    for b in itertools.islice(data.batches(source, augment.build(VIEWS), batch=6, seed=0), 5):
        assert b["size"].dtype == np.int32 and np.array_equal(b["size"], sizes[b["id"][:, 0]])
        assert np.array_equal(b["image"], images[b["id"][:, 0]])
    assert next(batches(source, VIEWS, batch=6, seed=0)).keys() == {"views", "label", "id"}
    assert np.array_equal(data.subset(source, [3, 9]).sizes, sizes[[3, 9]])
    square = (("resize", dict(size=8, shorter=True)), ("center_crop", dict(size=6)))
    got = np.concatenate([b["image"] for b in examples(source, square, batch=5)])
    for image, (height, width), one in zip(images, sizes, got):
        scale = (120 / (height * width)) ** 0.5  # of no more pixels than the image has
        side = round(width * scale), round(height * scale)
        image = np.asarray(Image.fromarray(image).resize(side, Image.BICUBIC))
        short = min(side)
        h, w = 8 * side[1] // short, 8 * side[0] // short
        wanted = tf.image.resize(image, [h, w], "bicubic").numpy().clip(0, 255) / 255
        y, x = round((h - 6) / 2), round((w - 6) / 2)
        np.testing.assert_allclose(one, wanted[y:y + 6, x:x + 6], atol=1e-5)


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


@KINDS
def test_start_far_on_reads_only_what_it_gives(sources, kind):
    """A resumed run replays nothing: step 10 million reads a few batches' worth of examples."""
    asked = []
    first = take(1, counted(sources[kind], asked), VIEWS, batch=6, seed=0, start_step=10_000_000)[0]
    assert set(first["id"][:, 1]) <= {60_000_000 // SIZE, 60_000_000 // SIZE + 1}
    assert 6 <= len(asked) < 10 * 6 + 16 * 16  # what is ahead is bounded too


def counted(source, asked):
    def rows(index):
        asked.extend(index)
        return source.rows(index)

    def read(index, cut=None):
        asked.append(index)
        return source.read(index, cut)
    return source._replace(read=read, rows=source.rows and rows)


@pytest.mark.scorecard(34)
def test_views_images_and_epochs_all_differ(sources):
    """one picture over and over, so that only the keys can tell the views apart."""
    flat = arrays.make(images=np.repeat(np.random.default_rng(1).integers(0, 256, (1, 12, 10, 3), np.uint8), 8, 0))
    two_epochs = np.concatenate([b["views"].reshape(16, -1) for b in take(2, flat, VIEWS, batch=8, seed=0)])
    assert len({v.tobytes() for v in two_epochs}) == 32
    other_seed = take(1, flat, VIEWS, batch=8, seed=1)[0]["views"].reshape(16, -1)
    assert not {v.tobytes() for v in other_seed} & {v.tobytes() for v in two_epochs}


@KINDS
@pytest.mark.scorecard(36)
@pytest.mark.parametrize("batch, count", [(5, 1), (5, 3), (22, 1), (100, 4)])
def test_examples_come_once_each_and_in_order(sources, images, kind, batch, count):
    """neither the batch nor the processes divide the split; each example is counted once."""
    parts = [list(examples(sources[kind], EVAL, batch=batch, process=(p, count))) for p in range(count)]
    rows = [b for part in parts for b in part]
    assert [int(i) for b in rows for i, _ in b["id"]] == list(range(SIZE))
    assert all(len(b["label"]) == batch for part in parts for b in part[:-1])
    sizes = [sum(len(b["label"]) for b in part) for part in parts]
    assert max(sizes) - min(sizes) <= 1
    got = np.concatenate([b["image"] for b in rows])
    assert got.dtype == np.float32 and all(b["label"].dtype == np.int32 and b["id"].dtype == np.uint32 for b in rows)
    wanted = tf.image.resize(images, [8, 8], "bicubic").numpy().clip(0, 255) / 255
    np.testing.assert_allclose(got, wanted, atol=1e-5)
    assert np.array_equal(got, next(examples(sources[kind], EVAL, batch=SIZE))["image"])  # bit for bit


def test_more_processes_than_examples_leaves_some_with_none(images):
    source = arrays.make(images=images[:2])
    parts = [list(examples(source, EVAL, batch=4, process=(p, 3))) for p in range(3)]
    assert sorted(int(b["id"][0, 0]) for part in parts for b in part) == [0, 1]


@pytest.mark.scorecard(38)
def test_refusals_come_at_once_with_the_numbers(sources):
    """before the first batch is asked for."""
    for kwargs, said in [(dict(batch=23), "22 examples.* 23"), (dict(batch=9, process=(0, 2)), "9 rows.* 2 processes"),
                         (dict(batch=6, seed=-1), "seed=-1"), (dict(batch=6, start_step=-1), "start_step=-1"),
                         (dict(batch=6, workers=0), "workers=0"), (dict(batch=6, piece=4), "piece=4 .* 6 rows"),
                         (dict(batch=6, piece=2, process=(0, 2)), "piece=2 .* 3 rows")]:
        with pytest.raises(UsageError, match=said):
            batches(sources["arrays"], VIEWS, **{"seed": 0, **kwargs})
    with pytest.raises(UsageError, match="resiez"):
        examples(sources["arrays"], (("resiez", dict(size=8)),), batch=5)
    for kwargs in (dict(batch=0), dict(batch=5, process=(2, 2))):
        with pytest.raises(UsageError, match="wanted batch >= 1"):
            examples(sources["arrays"], EVAL, **kwargs)


@KINDS
def test_what_runs_ahead_is_bounded(sources, kind):
    """Prefetching stops at a few batches, however long the consumer takes."""
    asked = []
    stream = batches(counted(sources[kind], asked), VIEWS, batch=16, seed=0, workers=2)
    next(stream)
    deadline, before = time.time() + 10, -1
    while len(asked) != before and time.time() < deadline:
        before = len(asked)
        time.sleep(0.5)
    assert len(asked) == before <= 16 * 12
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
from simclr_jax import augment
images = arrays.make(images=np.zeros([4000, 8, 8, 3], np.uint8))
def read(index, cut=None):
    for _ in range(300_000):
        pass
    return images.read(index, cut)
recipe = augment.build(((("random_resized_crop", {"size": 8}), ("flip", {})),))
streams = []
for source in (images, images._replace(read=read, rows=None, shape=None)):
    pieces = data.batches(source, recipe, batch=1024, seed=0, workers=4, piece=64)
    streams.append(augment.finished(pieces, augment.make(recipe, 0), rows=1024, workers=4))
    next(streams[-1])
print("leaving", flush=True)
"""
    done = subprocess.run([sys.executable, "-c", program], timeout=60, capture_output=True, text=True)
    assert done.returncode == 0 and "leaving" in done.stdout, done.stderr
