"""Files of tf.train.Example, and captions in data sets of TFDS: random access, captions with their images, damage."""
import gzip
import io
import struct

import numpy as np
import pytest
from PIL import Image

from feeding import read
from simclr_jax.data.host_tf import tensorflow
from simclr_jax.data.sources import _tfrecord, tfrecord
from simclr_jax.data.sources import tfds as tfds_source
from simclr_jax.errors import UsageError

tf = tensorflow()


def png(shade):
    file = io.BytesIO()
    Image.fromarray(np.full((5, 4 + shade % 2, 3), shade, np.uint8)).save(file, "PNG")
    return file.getvalue()


def record(**features):
    kinds = {bytes: lambda v: tf.train.Feature(bytes_list=tf.train.BytesList(value=v)),
             int: lambda v: tf.train.Feature(int64_list=tf.train.Int64List(value=v))}
    made = {k: kinds[type(v[0])](v) if v else tf.train.Feature() for k, v in features.items()}
    return tf.train.Example(features=tf.train.Features(feature=made)).SerializeToString()


def example(i):
    return record(image=[png(i)], caption=[f"{i} {k}".encode() for k in range(1 + i % 3)], label=[i % 4])


def write(path, records):
    with tf.io.TFRecordWriter(str(path)) as writer:
        for r in records:
            writer.write(r)


def files(root, sizes):
    first = np.cumsum([0, *sizes])
    for n, (start, size) in enumerate(zip(first, sizes)):
        write(root / f"train-{n}.tfrecord", [example(int(i)) for i in range(start, start + size)])
    return str(root)


def examples(source):
    return [(int(e.image[0, 0, 0]), source.captions(e.index), e.label) for e in read(source)]


def wanted(indices, labels=True):
    return [(i, tuple(f"{i} {k}" for k in range(1 + i % 3)), i % 4 if labels else -1) for i in indices]


def test_any_record_by_its_number(tmp_path):
    source = tfrecord.make(root=files(tmp_path, (3, 0, 5)), label_key="label")
    assert examples(source) == wanted(range(8)) and source.shards == (3, 0, 5)
    assert [e.image[0, 0, 0] for e in read(source, range(7, -1, -1))] == list(range(8))[::-1]
    assert source.captions(5) == ("5 0", "5 1", "5 2")
    assert examples(tfrecord.make(root=f"{tmp_path}/train-{{2,0}}.tfrecord")) == wanted([3, 4, 5, 6, 7, 0, 1, 2], False)
    assert tfrecord.make(root=str(tmp_path), text_key=None).captions is None


def test_the_held_out_split_has_files_of_its_own(tmp_path):
    files(tmp_path, (2, 3))
    both = dict(root=f"{tmp_path}/train-0*", test_root=f"{tmp_path}/train-1*")
    assert [tfrecord.make(split=s, **both).size for s in ("train", "test", "val")] == [2, 3, 3]
    with pytest.raises(UsageError, match="no shards are given for split 'test'"):
        tfrecord.make(root=both["root"], split="test")


def test_the_index_is_kept(tmp_path, monkeypatch):
    root = files(tmp_path, (3, 2))
    before = examples(tfrecord.make(root=root))
    monkeypatch.setattr(_tfrecord, "_scan", None)  # so that a second scan would fail
    assert examples(tfrecord.make(root=root)) == before
    assert len(list(tmp_path.glob("record_places_*.npy"))) == 1
    write(tmp_path / "train-1.tfrecord", [example(9)])
    with pytest.raises(TypeError):
        tfrecord.make(root=root)


def test_damaged_files_are_named_with_the_byte(tmp_path):
    root = files(tmp_path, (3, 2))
    file = tmp_path / "train-0.tfrecord"
    whole = file.read_bytes()
    second = 16 + struct.unpack_from("<Q", whole)[0]
    for content, said in [(whole[:-3], "record 2"), (whole[:second + 5], f"at byte {second}, in record 1"),
                          (whole[:second] + b"\x01" + whole[second + 1:], f"at byte {second}, in record 1"),
                          (gzip.compress(whole), "is compressed")]:
        file.write_bytes(content)
        with pytest.raises(UsageError, match=said) as e:
            tfrecord.make(root=root)
        assert str(file) in str(e.value) and str(e.value).startswith("tfrecord: ") and "\n" not in str(e.value)


def test_examples_that_lack_something_are_named_and_passed_over(tmp_path):
    records = [example(i) for i in range(12)]
    records[3] = record(image=[png(3)])
    records[5] = record(caption=[b"x"])
    records[7] = record(image=[png(7)], caption=[b" "])
    records[9] = record(image=[png(9)], caption=[b"\xff"])
    records[10] = b"no example"
    write(tmp_path / "a.tfrecord", records)
    source = tfrecord.make(root=str(tmp_path), max_bad=0.5, memory=0.0)
    stand_in = {3: 4, 5: 6, 7: 8, 9: 11, 10: 11}
    assert examples(source) == wanted([stand_in.get(i, i) for i in range(12)], False)
    reasons = ["3: it has no caption", "5: 0 values of feature 'image'; wanted one", "7: its caption is empty",
               "9: its caption is not UTF-8", "10: not a tf.train.Example"]
    assert source.problems() == [f"{tmp_path}/a.tfrecord: record {reason}" for reason in reasons]


@pytest.mark.parametrize("kwargs, said", [
    (dict(image_key="img"), "no bytes feature 'img'; .*'image'"), (dict(text_key="captoin"), "'captoin'.*'caption'"),
    (dict(label_key="caption"), "no int64 feature 'caption'.*label"), (dict(root="{dir}/none/*"), "no files"),
    (dict(root="{dir}/bad.tfrecord"), "first record cannot be read: not a tf.train.Example"),
    (dict(root="{dir}/empty.tfrecord"), "hold no examples")])
def test_refusals(tmp_path, kwargs, said):
    files(tmp_path, (2,))
    write(tmp_path / "bad.tfrecord", [b"\xff\xff words"])
    write(tmp_path / "empty.tfrecord", [])
    kwargs = {"root": "{dir}/train-0.tfrecord", **kwargs}
    with pytest.raises(UsageError, match=said) as e:
        tfrecord.make(**{k: v.format(dir=tmp_path) for k, v in kwargs.items()})
    assert "\n" not in str(e.value)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A set as `tfds build` leaves it, with captions in each form that a set may have them in."""
    import tensorflow_datasets as tfds

    class TinyCaptions(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")
        url_infos = {}  # nothing to download

        def _info(self):
            text = tfds.features.Text()
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict({
                "image": tfds.features.Image(shape=(None, None, 3), encoding_format="png"), "title": text,
                "many": tfds.features.Sequence(text),
                "captions": tfds.features.Sequence({"text": text, "id": np.int64}),
                "label": tfds.features.ClassLabel(names=["even", "odd"])}))

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for i in range(11):
                texts = [f"{i} {k}" for k in range(1 + i % 3)]
                yield i, {"image": np.full((3 + i % 4, 5, 3), i, np.uint8), "title": texts[0], "label": i % 2,
                          "many": [] if i == 4 else texts, "captions": [{"text": t, "id": 7} for t in texts]}

    root = tmp_path_factory.mktemp("tfds")
    TinyCaptions(data_dir=root, file_format="array_record").download_and_prepare(
        download_config=tfds.download.DownloadConfig(num_shards=2))
    return str(root)


@pytest.mark.parametrize("key, several", [("captions/text", True), ("many", True), ("title", False)])
def test_tfds_captions(prepared, key, several):
    source = tfds_source.make(dataset="tiny_captions", data_dir=prepared, text_key=key, max_bad=0.2, memory=0.0)
    found = examples(source)
    assert len(source.problems()) == (key == "many")
    assert len({shade for shade, _, _ in found}) == 11 - len(source.problems())
    for shade, texts, label in found:
        assert texts == tuple(f"{shade} {k}" for k in range(1 + shade % 3 if several else 1)) and label == shade % 2
    assert tfds_source.make(dataset="tiny_captions", data_dir=prepared).captions is None


def test_tfds_text_features_that_are_none(prepared):
    for key in ("label", "captions", "captions/id", "text"):
        with pytest.raises(UsageError, match=f"no text feature '{key}'.*(captions/text|title)"):
            tfds_source.make(dataset="tiny_captions", data_dir=prepared, text_key=key)
