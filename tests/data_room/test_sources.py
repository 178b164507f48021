"""Sources: what is found, in which order, under which label and split; and what is refused in one line."""
import os

import numpy as np
import pytest
from PIL import Image

from feeding import read
from simclr_jax import names
from simclr_jax.data.sources import arrays, digits, folder
from simclr_jax.data.sources import tfds as tfds_source
from simclr_jax.errors import UsageError


def everything(source):
    """All examples of a source."""
    return [(e.image, e.label) for e in read(source)]


def picture(value, size=(5, 4)):
    return np.full((*size, 3), value, np.uint8)


def put(root, paths, format="PNG"):
    for i, path in enumerate(paths):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(i)).save(root / path, format)


def labels_and_values(source):
    return [(int(image[0, 0, 0]), label) for image, label in everything(source)]


def test_digits_splits():
    parts = {s: digits.make(split=s) for s in ("train", "test", "fit", "val")}
    assert [parts[s].size for s in parts] == [1297, 500, 1037, 260]
    pixels = {s: [(im.tobytes(), label) for im, label in everything(p)] for s, p in parts.items()}
    assert sorted(pixels["fit"] + pixels["val"]) == sorted(pixels["train"])
    from sklearn.datasets import load_digits
    whole = load_digits()
    wanted = sorted((np.repeat(np.rint(im * 15.9375).astype(np.uint8)[..., None], 3, 2).tobytes(), int(label))
                    for im, label in zip(whole.images, whole.target))
    assert sorted(pixels["train"] + pixels["test"]) == wanted  # each of the 1,797 in one of the two
    shares = np.bincount([label for _, label in pixels["test"]]) / np.bincount(whole.target)
    assert np.all(np.abs(shares - 500 / 1797) < 0.01)
    assert parts["test"].shape == (8, 8) and max(max(im) for im, _ in pixels["test"]) == 255


def test_digits_unknown_split_is_refused():
    with pytest.raises(UsageError, match="'tset'.*train, test, fit, val"):
        names.make("data.sources", dict(name="digits", split="tset"))


def test_flat_folder_is_unlabelled_train(tmp_path):
    put(tmp_path, ["b.PNG", "a.Jpeg", "sub/c.webp", "d.tif", ".hidden.png", ".git/e.png"])
    (tmp_path / "notes.txt").write_text("no image")
    source = folder.make(root=str(tmp_path))
    assert labels_and_values(source) == [(1, -1), (0, -1), (3, -1), (2, -1)]  # a, b, d, sub/c
    assert source.classes == () and "no labels" in source.describe
    with pytest.raises(UsageError, match="all of it is split 'train'"):
        folder.make(root=str(tmp_path), split="test")


def test_class_folders_hold_out_a_fifth_of_each(tmp_path):
    paths = [f"{name}/{'deep/er/' if i % 2 else ''}{i:02}.png" for name in ("cat", "dog") for i in range(10)]
    put(tmp_path, paths)
    put(tmp_path, ["alone/x.png"])
    train, test = (folder.make(root=str(tmp_path), split=s) for s in ("train", "test"))
    assert train.classes == test.classes == ("alone", "cat", "dog")
    seen = labels_and_values(train), labels_and_values(test)
    assert sorted(seen[0] + seen[1]) == sorted([(0, 0)] + [(i, 1 + i // 10) for i in range(20)])
    assert [label for _, label in seen[1]] == [1, 1, 2, 2]
    before = os.path.getmtime(tmp_path)
    os.utime(tmp_path / "cat", (before - 1e6, before - 1e6))
    assert labels_and_values(folder.make(root=str(tmp_path), split="test")) == seen[1]
    with pytest.raises(UsageError, match="no val folder"):
        folder.make(root=str(tmp_path), split="val")


def test_train_and_val_folders_are_the_splits(tmp_path):
    put(tmp_path, ["train/b/0.jpg", "train/a/1.jpg", "val/b/2.jpg", "train/empty/skip.txt"])
    assert labels_and_values(folder.make(root=str(tmp_path))) == [(1, 0), (0, 1)]
    for split in ("test", "val"):
        source = folder.make(root=str(tmp_path), split=split)
        assert labels_and_values(source) == [(2, 1)] and source.classes == ("a", "b")
    put(tmp_path, ["val/zebra/3.jpg"])
    with pytest.raises(UsageError, match="zebra"):
        folder.make(root=str(tmp_path), split="test")


def test_links_are_followed_once(tmp_path):
    put(tmp_path, ["real/a.png"])
    root = tmp_path / "root"
    put(root, ["cls/x.png", "cls/y.png"])
    (root / "cls" / "linked.png").symlink_to(tmp_path / "real" / "a.png")
    (root / "cls" / "loop").symlink_to(root)
    (root / "more").symlink_to(tmp_path / "real")
    sources = [folder.make(root=str(root), split=s) for s in ("train", "test")]
    assert sum(s.size for s in sources) == 4 and sources[0].classes == ("cls", "more")


@pytest.mark.parametrize("kwargs, said", [
    (dict(root="nowhere"), "nowhere is not a folder"), (dict(), "no images"), (dict(split="dev"), "no split 'dev'")])
def test_folder_refusals(tmp_path, kwargs, said):
    """nothing there to train on is said before anything is built."""
    with pytest.raises(UsageError, match=said) as e:
        folder.make(**{"root": str(tmp_path), **kwargs})
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("images, labels, said", [
    (np.zeros((3, 4, 4, 3), np.float32), None, "float32"), (np.zeros((3, 4, 4, 2), np.uint8), None, "2"),
    (np.zeros((3, 4, 4, 3), np.uint8), [0, 1], "one for each image"),
    (np.zeros((0, 4, 4), np.uint8), None, "no images"),
    (np.zeros((2, 4, 4), np.uint8), [0.5, 1.0], "integers")])
def test_arrays_refusals(images, labels, said):
    with pytest.raises(UsageError, match=said):
        arrays.make(images=images, labels=labels)


def build_tfds(data_dir, file_format):
    """A small data set as `tfds build` leaves it, images told apart by their grey."""
    import tensorflow_datasets as tfds

    class TinyShades(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")
        url_infos = {}  # nothing to download

        def _info(self):
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict({
                "image": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
                "other": tfds.features.Image(shape=(2, 2, 3)),
                "label": tfds.features.ClassLabel(names=["dark", "light"])}))

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(0, 23), "test": self._generate_examples(100, 5)}

        def _generate_examples(self, first, count):
            for i in range(first, first + count):
                yield i, {"image": picture(i, (3 + i % 4, 5)), "other": picture(0, (2, 2)), "label": i % 2}

    builder = TinyShades(data_dir=data_dir, file_format=file_format)
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(num_shards=3))
    assert len(list(builder.data_path.glob("*train*-of-00003"))) == 3
    return builder


def in_tfds_order(builder, file_format):
    if file_format == "array_record":
        return builder.as_data_source(split="train")
    import tensorflow_datasets as tfds
    one_file_after_another = tfds.ReadConfig(interleave_cycle_length=1)
    return builder.as_dataset(split="train", read_config=one_file_after_another).as_numpy_iterator()


@pytest.mark.parametrize("file_format", ["tfrecord", "array_record"])
def test_tfds_reads_any_record_by_its_number(tmp_path, file_format):
    builder = build_tfds(tmp_path, file_format)
    wanted = [(int(e["image"][0, 0, 0]), int(e["label"])) for e in in_tfds_order(builder, file_format)]
    make = lambda split: tfds_source.make(dataset="tiny_shades", split=split, data_dir=str(tmp_path))  # noqa: E731
    source = make("train")
    assert labels_and_values(source) == wanted and sorted(v for v, _ in wanted) == list(range(23))
    assert source.classes == ("dark", "light") and source.size == 23
    assert labels_and_values(make("train[5:12]")) == wanted[5:12]
    assert labels_and_values(make("train[:10%]+test")) == wanted[:2] + labels_and_values(make("test"))
    assert [e.image[0, 0, 0] for e in read(source, range(22, -1, -1))] == [v for v, _ in wanted][::-1]


def test_tfds_record_index_is_kept_beside_the_data_or_in_the_cache(tmp_path, monkeypatch):
    builder = build_tfds(tmp_path, "tfrecord")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    made = lambda: tfds_source.make(dataset="tiny_shades", data_dir=str(tmp_path))  # noqa: E731
    wanted = labels_and_values(made())
    kept = list(builder.data_path.glob("record_index_*.npy"))
    assert len(kept) == 1
    from simclr_jax.data.sources import _tfrecord
    with monkeypatch.context() as m:
        m.setattr(_tfrecord, "_scan", None)  # so that a second scan would fail
        assert labels_and_values(made()) == wanted
    kept[0].unlink()
    real = type(builder.data_path).write_bytes

    def read_only(path, data):
        if "cache" not in path.parts:
            raise PermissionError(13, "Permission denied")
        return real(path, data)

    monkeypatch.setattr(type(builder.data_path), "write_bytes", read_only)
    assert labels_and_values(made()) == wanted
    assert not list(builder.data_path.glob("record_index_*.npy"))
    assert len(list((tmp_path / "cache" / "simclr_jax").glob("record_index_*.npy"))) == 1


def test_tfds_refusals(tmp_path):
    build_tfds(tmp_path, "tfrecord")
    for kwargs, said in [(dict(dataset="cifar10", download=False), f"tfds build cifar10 --data_dir={tmp_path}"),
                         (dict(dataset="tiny_shadow"), "tiny_shadow.*not prepared"),
                         (dict(split="valid"), "'valid'.*test, train"), (dict(split="train[5"), "no split"),
                         (dict(image_key="img"), "'img'.*'image'"), (dict(label_key="lable"), "'lable'.*'label'")]:
        with pytest.raises(UsageError, match=said) as e:
            tfds_source.make(**{"dataset": "tiny_shades", "data_dir": str(tmp_path), **kwargs})
        assert "\n" not in str(e.value)


def test_tfds_cut_off_file_is_refused(tmp_path):
    builder = build_tfds(tmp_path, "tfrecord")
    file = sorted(builder.data_path.glob("*train*tfrecord*"))[0]
    data = file.read_bytes()
    for wrong in (data[:-7], data + b"\0" * 9):
        file.write_bytes(wrong)
        with pytest.raises(UsageError, match="prepare it again"):
            tfds_source.make(dataset="tiny_shades", data_dir=str(tmp_path))
