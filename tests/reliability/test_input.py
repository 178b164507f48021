"""Data: who reads what, what random draws hang on, archives with bad intentions, and data that cannot be dealt out."""
import collections
import io
import itertools
import tarfile

import numpy as np
import pytest
from PIL import Image

from reliability.jobs import FLAGS
from simclr_jax.data import order
from simclr_jax.data.sources import folder, webdataset
from simclr_jax.errors import UsageError
from simclr_jax.train.__main__ import main


@pytest.mark.slow
@pytest.mark.scorecard(33)
def test_shard_mates_meet_elsewhere_in_the_next_epoch():
    """Two hosts, two epochs, shards of 16: pairs that share a batch in both epochs are as few as chance has it."""
    size, batch, hosts = 256, 16, 2
    shards = (16,) * 16
    makes = [order.make(3, size, batch, (p, hosts), shards) for p in range(hosts)]
    pairs, seen = [set(), set()], [collections.Counter(), collections.Counter()]
    for epoch, steps in enumerate((range(0, 16), range(16, 32))):
        for step in steps:
            for p in range(hosts):
                index, of_epoch = makes[p](step)
                assert (of_epoch == epoch).all()
                assert {i // 16 % hosts for i in index.tolist()} == {p}  # each reads its own shards alone
                seen[epoch].update(index.tolist())
                pairs[epoch].update(frozenset(c) for c in itertools.combinations(index.tolist(), 2))
    for count in seen:
        assert len(count) == size and set(count.values()) == {1}
    chance = len(pairs[0]) * 7 / 127  # 7 others of a host's 127 share a host's part of a batch
    assert abs(len(pairs[0] & pairs[1]) - chance) < 4 * np.sqrt(chance)


@pytest.mark.slow
@pytest.mark.scorecard(34)
def test_keys_of_views_images_and_epochs_differ_and_those_of_hosts_and_workers_do_not():
    from simclr_jax.augment import build as recipe_of
    recipe = recipe_of(((("resize", dict(size=8)), ("flip", dict(p=0.5))),) * 2)
    ids = np.array([[i, e] for i in range(50) for e in range(2)], np.int64)
    numbers = np.asarray(recipe.numbers(7, ids))
    by_view = numbers.reshape(len(ids) * 2, -1)
    assert len(np.unique(by_view, axis=0)) == len(by_view)
    assert np.array_equal(np.asarray(recipe.numbers(7, ids[30:31])), numbers[30:31])  # alone, on another host
    assert not np.array_equal(np.asarray(recipe.numbers(8, ids)), numbers)


def picture(shade=0):
    out = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, shade, shade)).save(out, "PNG")
    return out.getvalue()


@pytest.mark.slow
@pytest.mark.scorecard(37)
def test_names_that_lead_out_links_and_duplicates_in_a_shard_write_nothing_and_are_no_samples(tmp_path):
    root, outside = tmp_path / "data", tmp_path / "evil.png"
    root.mkdir()
    (tmp_path / "secret.png").write_bytes(picture(200))
    with tarfile.open(root / "a.tar", "w") as tar:
        def add(name, data):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        for i in range(6):
            add(f"{i}.png", picture(i))
            add(f"{i}.txt", b"a shade")
        add("../evil.png", picture(99))
        add("../evil.txt", b"out")
        add(str(tmp_path / "absolute.png"), picture(98))
        add(str(tmp_path / "absolute.txt"), b"out")
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path / "secret.png")
        tar.addfile(link)
        add("link.txt", b"a link")
        add("lone.png", picture(50))  # no text
    before = sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*"))
    source = webdataset.make(root=str(root), max_bad=0.5, memory=0.0)
    shades = [int(source.read(i).image[0, 0, 0]) for i in range(source.size)]
    assert [s for s in shades if s < 90] == list(range(6)) and 200 not in shades  # a link is never followed
    for lacking in ("lone", "link"):
        assert any(f"{lacking}: no member" in p for p in source.problems())
    after = sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*"))
    assert not outside.exists()
    assert {p.parts[0] for p in set(after) - set(before)} <= {"data"}  # but an index, beside the shards


@pytest.mark.slow
@pytest.mark.scorecard(38)
def test_too_few_shards_an_empty_folder_and_a_large_batch_are_refused_with_the_numbers(tmp_path):
    with pytest.raises(UsageError, match="the source has 3 shards, fewer than 4 processes"):
        order.check(300, 8, (0, 4), (100, 100, 100))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="empty"):
        folder.make(root=str(tmp_path / "empty"))
    for flag, said in ((["--config.batch=1298"], "1297 examples, fewer than a global batch of 1298"),
                       (["--config.data.name=folder", f"--config.data.root={tmp_path / 'empty'}"], "empty")):
        with pytest.raises(UsageError, match=said):
            main(["train", *FLAGS, f"--workdir={tmp_path / 'run'}", *flag])
        assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.scorecard(36)
def test_accuracy_of_a_set_that_nothing_divides_is_that_of_a_loop():
    """13 test rows, on 8 devices, with batches of 5: each is counted once."""
    import jax

    from simclr_jax.evals import features, knn
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((40, 6)).astype(np.float32), rng.integers(0, 3, 40)
    q, t = rng.standard_normal((13, 6)).astype(np.float32), rng.integers(0, 3, 13)
    stream = [{"image": q[i:i + 5], "label": t[i:i + 5]} for i in range(0, 13, 5)]
    embed = jax.jit(lambda a: 2 * a)
    got, labels = features.extract(embed, iter(stream), batch=8)
    assert np.array_equal(labels, t) and len(got) == 13
    unit = lambda a: a / np.linalg.norm(a, axis=1, keepdims=True)  # noqa: E731
    hits = 0
    for row, label in zip(unit(q), t):
        nearest = np.argsort(-(unit(x) @ row), kind="stable")[:1]
        hits += int(y[nearest[0]] == label)
    found = knn.predict(x, y, got, setting=knn.Setting(1, 0.07), classes=3)
    assert np.mean(found == labels) == pytest.approx(hits / 13)
