"""The host's part: pieces into batches, buffers used again only when no one holds them, restarts at a bad file."""
import itertools

import jax
import numpy as np
import pytest
from feeding import batches as fed

from configs.common import recipes
from simclr_jax import augment, data, dist
from simclr_jax.augment import host, spatial
from simclr_jax.data.sources import arrays, folder
from simclr_jax.errors import UsageError

IMAGES = np.random.default_rng(0).integers(0, 256, (24, 20, 20, 3), np.uint8)


def pieces(n, of):
    for i in itertools.count():
        yield {"id": np.stack([np.arange(n) + i * n, np.zeros(n, int)], 1).astype(np.uint32),
               "views": np.full((n, 1, of, of, 3), i % 251, np.uint8)}


@pytest.mark.parametrize("devices", [1, 4])
def test_what_is_on_a_device_stays_when_later_batches_are_made(mesh, devices):
    """Buffers of batches are used again; a CPU device may share the memory of an array that it was given."""
    made = host.finished(pieces(8, 32), lambda batch: {**batch, "views": batch["views"] / 255}, rows=32, workers=2)
    placed = [dist.place_batch(next(made), mesh(devices)) for _ in range(6)]
    for step, batch in enumerate(placed):
        want = np.repeat((np.arange(4) + 4 * step) % 251, 8)
        np.testing.assert_array_equal(np.rint(np.asarray(batch["views"])[:, 0, 0, 0, 0] * 255), want)
    made.close()


def test_buffers_that_no_one_holds_are_used_again():
    made = host.finished(pieces(8, 4), lambda batch: batch, rows=32, workers=1)
    seen = {next(made)["views"].__array_interface__["data"][0] for _ in range(8)}
    assert len(seen) <= 2
    made.close()


@pytest.mark.parametrize("piece", [1, 3, 6])
def test_pieces_do_not_show(piece):
    source, views = arrays.make(images=IMAGES), recipes.simclr_linear(16)
    whole, parts = (list(itertools.islice(fed(source, views, batch=6, seed=3, piece=p), 3)) for p in (6, piece))
    for a, b in zip(whole, parts):
        assert all(np.array_equal(a[k], b[k]) for k in a)


def test_a_piece_that_does_not_divide_a_batch_is_refused():
    with pytest.raises(UsageError, match="piece=4 does not divide the 6 rows"):
        data.batches(arrays.make(images=IMAGES), augment.build(recipes.byol(16)), batch=6, seed=3, piece=4)


def test_a_bad_file_met_in_the_graph_is_named_and_the_rest_is_as_without_it(tmp_path):
    """A JPEG with a head and an end, and between them what no decoder takes."""
    from PIL import Image
    for i, image in enumerate(IMAGES):
        Image.fromarray(image).save(tmp_path / f"{i:02}.jpg", quality=95)
    views = recipes.simclr_linear(8)

    def run():
        source = folder.make(root=str(tmp_path), max_bad=0.1, memory=0.0)
        return source, list(itertools.islice(fed(source, views, batch=6, seed=0, workers=2), 8))
    _, good = run()
    file = (tmp_path / "07.jpg").read_bytes()
    start = file.index(b"\xff\xc4")  # its tables
    (tmp_path / "07.jpg").write_bytes(file[:start] + b"\xff\xc4\x00\x03\x55" + file[start:])
    source, found = run()
    assert len(source.problems()) == 1 and "07.jpg: damaged" in source.problems()[0]
    replaced = 0
    for a, b in zip(good, found):
        assert np.array_equal(a["id"], b["id"])
        rows = a["id"][:, 0] == 7
        assert np.array_equal(a["views"][~rows], b["views"][~rows])
        replaced += (a["views"][rows] != b["views"][rows]).any(axis=(1, 2, 3, 4)).sum()
    assert replaced == 2  # once an epoch


@pytest.mark.parametrize("height,width", [(375, 500), (32, 32), (600, 240), (7, 500), (1, 9), (4000, 3000)])
@pytest.mark.parametrize("kwargs", [dict(), dict(area=(0.05, 0.3), min_covered=0.0)])
def test_windows_of_a_few_rows_are_those_of_many(height, width, kwargs):
    """The law is written a second time, in plain Python, for threads that read."""
    op = spatial.random_resized_crop(size=8, **kwargs)
    u = np.random.default_rng(height).random((4000, op.uniforms), np.float32)
    few = np.concatenate([op.windows(u[i:i + 8], height, width, np) for i in range(0, 4000, 8)])
    np.testing.assert_array_equal(few, op.windows(u, height, width, np))


def test_without_a_cpu_backend_one_line_says_so(monkeypatch):
    def none(**kwargs):
        raise RuntimeError("Unknown backend cpu")
    monkeypatch.setattr(jax, "local_devices", none)
    with pytest.raises(UsageError, match="add ',cpu'"):
        host.cpu()
