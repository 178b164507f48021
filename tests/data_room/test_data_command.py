"""`python -m simclr_jax.data`: caches, previews and measurements from a config, and one line for what is wrong."""
import re

import numpy as np
import pytest
from feeding import batches
from PIL import Image
from runs import ROOT, SMALL

from simclr_jax import augment, bench, config as configs
from simclr_jax.data import cache_write, source as sources, stages
from simclr_jax.data.__main__ import main
from simclr_jax.data.sources import cache, digits, folder
from simclr_jax.errors import UsageError

DIGITS = f"--config={ROOT}/configs/simclr_digits.py"
FOLDER = f"--config={ROOT}/configs/simclr_folder.py:size=16,net=convnet,width=0.1,batch=8"
NORMALIZED = """
from simclr_jax.config import base

def get_config(arg="scaled"):
    config = base()
    config.nets = dict(backbone=dict(name="convnet", channels=(4,)), projector=dict(name="mlp", out=4))
    op = dict(scaled=("normalize", dict(mean=(.5, .4, .3), std=(.2, .3, .1))), plain=("clip", {}))[arg]
    views = [("random_resized_crop", dict(size=8)), op, ("flip", {}), ("intensity", dict(brightness=(0.2, 0.4)))]
    small = [("random_resized_crop", dict(size=4)), op]
    config.augment = dict(views=(views, views, small), eval=(("resize", dict(size=8)),))
    return config
"""


def run(*flags):
    main(["data", *flags])


def pictures(root, count=12, sizes=((20, 30), (33, 18))):
    rng = np.random.default_rng(0)
    for i in range(count):
        name = root / ("cat", "dog")[i % 2] / f"{i:02}.png"
        name.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (*sizes[i % len(sizes)], 3), np.uint8)).save(name)
    return f"--config.data.root={root}"


@pytest.mark.parametrize("flags, said", [
    ([DIGITS], "none given; wanted exactly one of --cache=DIR, --check=DIR, --preview=FILE.png, --bench"),
    ([DIGITS, "--bench", "--cache=c"], "--cache and --bench given; wanted exactly one"),
    (["--bench"], "no --config given"), ([DIGITS, "--prview=x.png"], "unknown flag; did you mean 'preview'"),
    ([DIGITS, "--preview=views.jpg"], "wanted a file that ends in .png"),
    ([DIGITS, "--preview=v.png", "--examples=0"], "at least one example"),
    ([DIGITS, "--preview=no/such/folder/v.png"], "v.png: cannot be written"),
    ([DIGITS, "--bench", "--seconds=soon"], "--seconds=soon: wanted a number above 0"),
    ([DIGITS, "--bench", "--config.batch=4096"], "fewer than a global batch of 4096"),
    ([DIGITS, "--cache=c", "--split=trian"], "'trian'"), ([DIGITS, "--cache=gs://b/c"], "a disk of this machine"),
    ([DIGITS, "--cache=c", "--size=-1"], "size=-1"),
    (["--check=nowhere"], "nowhere holds no cache")])
def test_refusals(tmp_path, monkeypatch, flags, said):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=said) as e:
        run(*flags)
    assert "\n" not in str(e.value) and not (tmp_path / "c").exists()


def test_a_cache_of_every_split_is_checked_and_previewed(tmp_path, capsys):
    root = pictures(tmp_path / "p")
    run(FOLDER, root, f"--cache={tmp_path / 'c'}", "--size=16")
    train, test = (cache.make(root=str(tmp_path / "c"), split=split) for split in ("train", "test"))
    assert (train.size, test.size, train.shape, train.classes) == (10, 2, (16, 16), ("cat", "dog"))
    assert "--config.data.name=cache" in capsys.readouterr().out
    run(f"--check={tmp_path / 'c'}")
    said = capsys.readouterr().out
    assert "train: 10 images" in said and "test: 2 images" in said
    for split in ("train", "test"):
        shard = tmp_path / "c" / split / "images-00000-of-00001.npy"
        shard.write_bytes(shard.read_bytes()[:-1] + b"\x7b")
    with pytest.raises(UsageError, match="test: damaged .*; cache: .*train: damaged") as e:
        run(f"--check={tmp_path / 'c'}")
    assert "\n" not in str(e.value)
    run(FOLDER, "--config.data.name=cache", f"--config.data.root={tmp_path / 'c'}", f"--preview={tmp_path / 'v.png'}")
    sheet = np.asarray(Image.open(tmp_path / "v.png"))
    assert sheet.shape == (16 + 4 + 8 * 100, 4 + 3 * 100, 3)  # 16 px, six times as large


def test_views_from_a_cache_are_those_of_the_files_but_for_the_resizing(tmp_path):
    """windows are drawn for the originals' proportions: the same numbers give the same part of a smooth picture."""
    for i in range(8):
        height, width = (90, 180) if i % 2 else (160, 70)
        rows, columns = np.mgrid[:height, :width] / [[[height]], [[width]]]
        image = np.stack([rows, columns, 0.5 + 0.5 * np.sin(3 * rows + 4 * columns + i)], axis=-1)
        Image.fromarray(np.rint(255 * image).astype(np.uint8)).save(tmp_path / f"{i}.png")
    files = folder.make(root=str(tmp_path))
    cache_write.write(files, str(tmp_path / "c"), "train", size=80, say=lambda line: None)
    crop = dict(size=16, area=(0.1, 1.0), method="bilinear", antialias=True)
    views = ((("random_resized_crop", crop), ("flip", {})),) * 2
    squeezed = cache.make(root=str(tmp_path / "c"))
    wanted, got = (next(batches(source, views, batch=8, seed=3)) for source in (files, squeezed))
    assert np.array_equal(wanted["id"], got["id"])
    assert np.abs(wanted["views"] - got["views"]).max() < 0.03
    assert wanted["views"].std(axis=(2, 3)).mean() > 0.1  # and these are no flat colours


def test_a_source_without_a_test_split_is_cached_all_the_same(tmp_path, capsys):
    pictures(tmp_path / "p")
    run(FOLDER, f"--config.data.root={tmp_path / 'p' / 'cat'}", f"--cache={tmp_path / 'c'}")
    assert "test: left out, there is none: folder" in capsys.readouterr().out
    assert cache.make(root=str(tmp_path / "c")).size == 6
    with pytest.raises(UsageError, match="all of it is split 'train'"):  # asked for by name
        run(FOLDER, f"--config.data.root={tmp_path / 'p' / 'cat'}", f"--cache={tmp_path / 'd'}", "--split=test")


def test_a_preview_shows_originals_beside_their_views(tmp_path):
    run(DIGITS, f"--preview={tmp_path / 'v.png'}", "--examples=5")
    sheet = np.asarray(Image.open(tmp_path / "v.png"))
    assert sheet.shape == (16 + 4 + 5 * 100, 4 + 3 * 100, 3)
    cells = [[sheet[y:y + 96, x:x + 96][6::12, 6::12] for x in (4, 104, 204)]  # a pixel is 12 x 12 here
             for y in range(16, 516, 100)]
    known = {image.tobytes() for image in digits.make().rows(np.arange(1297))[0]}
    for original, *views in cells:
        assert original.tobytes() in known
        assert all(view.std() > 0 and not np.array_equal(view, original) for view in views)
        assert not np.array_equal(*views)


def test_normalised_views_are_shown_in_their_own_colours_and_draw_the_same(tmp_path):
    (tmp_path / "c.py").write_text(NORMALIZED)
    for kind in ("scaled", "plain"):
        run(f"--config={tmp_path / 'c.py'}:{kind}", f"--preview={tmp_path / kind}.png", "--examples=3")
    scaled, plain = (np.asarray(Image.open(tmp_path / f"{kind}.png")) for kind in ("scaled", "plain"))
    assert scaled.shape == (16 + 4 + 300, 4 + 4 * 100, 3)  # the original, two views and one small crop
    assert np.array_equal(scaled, plain)


@pytest.mark.parametrize("step", [pytest.param([], marks=pytest.mark.slow), ["--nostep"]])
def test_bench_names_every_stage_and_recommends(capsys, step):
    flags = [f for f in SMALL if not f.startswith("--config.checkpoint")]
    run(DIGITS, *flags, "--bench", "--seconds=0.02", *step)
    lines = capsys.readouterr().out.splitlines()
    rates = {m[1].strip(): float(m[2].replace(",", "")) for line in lines
             if (m := re.match(r"  (.{36}) +([\d,]+)  ", line))}
    stages = ["gather", "resize", "affine", "intensity", "batch", "transfer, where=host", "transfer, where=device",
              "all ops, on the device", "the whole feed, where=host", "the whole feed, where=device"]
    assert list(rates)[:10] == stages and min(rates.values()) > 0
    assert any(name.startswith("training, where=device") for name in rates) == (not step)
    flag = r"--config\.augment\."
    assert re.fullmatch(rf"recommended: {flag}where=(host|device) {flag}workers=\d+ \(.*\)", lines[-1])
    configs.parse(["data", DIGITS, *lines[-1].split()[1:3]])  # they are flags as they stand


@pytest.mark.parametrize("bad", [0, 4])
def test_stages_of_encoded_images(tmp_path, bad):
    pictures(tmp_path)
    for i in range(bad):
        (tmp_path / "cat" / f"bad{i}.png").write_bytes(b"no picture")
    source = folder.make(root=str(tmp_path), max_bad=0.1)
    recipe = augment.build([[("random_resized_crop", dict(size=8)), ("flip", {})]] * 2)
    real = sources.decode
    stage = stages.measure(source, recipe, rows=4, seed=0, seconds=0.02)
    if bad:
        with pytest.raises(UsageError, match="cannot be read, and max_bad"):
            list(stage)
    else:
        assert [(name, rate > 0) for name, rate, _ in stage] == [
            (name, True) for name in ("read", "decode", "decode + crop", "resize")]
        assert [name for name, *_ in stages.measure(digits.make(), recipe, rows=4, seed=0, seconds=0.02)] == ["gather"]
    assert sources.decode is real  # which reading alone replaces


@pytest.mark.slow
def test_bench_of_encoded_images_has_reading_decoding_and_resizing(tmp_path, capsys):
    run(FOLDER, pictures(tmp_path), "--bench", "--seconds=0.02", "--nostep")
    said = capsys.readouterr().out
    for stage in ("read", "decode", "decode + crop", "resize", "flip", "color_jitter", "grayscale"):
        assert re.search(rf"^  {re.escape(stage)} +[\d,]+  ", said, re.M), stage
    assert "decoding alone" in said


def test_the_fastest_is_recommended_and_of_equals_the_one_with_fewer_threads():
    steps = [bench.Step("host", 1, 100.0, 0.3), bench.Step("host", 2, 128.0, 0.0), bench.Step("device", 1, 130.0, 0.1)]
    line = bench.recommendation(steps, {}, "cpu", encoded=False)
    assert line.endswith("where=device --config.augment.workers=1 (130 images/s, waiting for data 10%)")
    assert "--cache=DIR" in bench.recommendation(steps, {}, "cpu", encoded=True)
    assert "where=host --config.augment.workers=2" in bench.recommendation(steps[:2], {}, "cpu", encoded=True)
    assert "where=device" in bench.recommendation([], dict(host=9.0, device=5.0), "gpu", encoded=True)
    assert "where=host" in bench.recommendation([], dict(host=5.0, device=9.0), "cpu", encoded=True)
