"""TFRecord files of `tf.train.Example`, local or remote (gs://...), with random access.

TFDS's own sets are better read by `tfds`, which knows their splits and classes.
"""
import numpy as np
from etils import epath

from simclr_jax.data import captions
from simclr_jax.data.host_tf import tensorflow
from simclr_jax.data.memory import Recent
from simclr_jax.data.source import Problems, Source, of_encoded
from simclr_jax.data.sources import _shards, _tfrecord
from simclr_jax.errors import UsageError
from simclr_jax.names import near


def make(*, root: str, split: str = "train", test_root: str = "", image_key: str = "image",
         text_key: str | None = "caption", label_key: str | None = None, max_bad: float = 0.01,
         memory: float = 1.0) -> Source:
    """Images, with captions and labels if there are any, in the features of examples.

    The places of all records are found once and kept; see `_shards.kept`. So examples are read in any order, shuffled
    over all files, and each comes once an epoch. Processes share out whole files; see `order.make`. An example without
    an image or a caption counts as unreadable.

    Args:
      root: the files: paths, patterns such as `DIR/train-{00000..00012}.tfrecord` and `DIR/train-*`, or folders (of
        which all files *.tfrecord* count), separated by "::" or commas.
      split: "train" is `root`; "test" or "val" is `test_root`.
      test_root: the files held out, named like `root`; "": there are none.
      image_key: the feature that holds the bytes of an image file.
      text_key: the feature with its captions, UTF-8, one or several; None: no captions are wanted.
      label_key: an integer feature; None: no labels are wanted.
      max_bad: the fraction of examples that may be unreadable before the run stops; see `Problems`.
      memory: GiB for the decoded images, which are kept if all are of one size and fit; 0: decode in every epoch.

    Raises:
      UsageError: no such split, files or feature, a file that is damaged or compressed, or no examples.
    """
    files, sizes = _shards.of_split("tfrecord", root, split, test_root, "*.tfrecord*")
    counts, record = _tfrecord.of_files(files, sizes, "tfrecord")
    root, total, ends = root if split == "train" else test_root, sum(counts), np.cumsum(counts)
    if not total:
        raise UsageError(f"tfrecord: {len(files)} files from {root} hold no examples")
    keys = {image_key: "bytes_list", text_key: "bytes_list", label_key: "int64_list"}
    keys.pop(None, None)
    _check(record, keys, files[int(np.argmax(ends > 0))])
    captioned = "captions" if text_key else "no captions"
    describe = f"tfrecord {root} ({split}): {total} images in {len(files)} files, {captioned}"
    recent = Recent()

    def load(index):
        features = parse(record(index))
        if text_key:
            recent.put(int(index), captions.texts(_values(features, text_key, "bytes_list")))
        image = _values(features, image_key, "bytes_list")
        label = _values(features, label_key, "int64_list") if label_key else [-1]
        for key, values in ((image_key, image), (label_key, label)):
            if len(values) != 1:
                raise ValueError(f"{len(values)} values of feature {key!r}; wanted one")
        return image[0], label[0]

    def read_texts(index):
        return captions.texts(_values(parse(record(index)), text_key, "bytes_list"))

    def where(index):
        file = int(np.searchsorted(ends, index, side="right"))
        return f"{files[file]}: record {index - (ends[file] - counts[file])}"

    identity = repr([[epath.Path(f).name for f in files], sizes, image_key, text_key, label_key])
    return of_encoded(total, load, where, Problems(total, max_bad, describe), describe=describe, identity=identity,
                      memory=memory, shards=counts,
                      captions=(lambda index: recent.get(index, read_texts)) if text_key else None)


def parse(record: bytes):
    """The features of a record, by name. Raises ValueError."""
    from google.protobuf.message import DecodeError

    try:
        return tensorflow().train.Example.FromString(record).features.feature
    except DecodeError:
        raise ValueError("not a tf.train.Example") from None


def _values(features, key, kind):
    return list(getattr(features[key], kind).value) if key in features else []


def _check(record, keys, file):
    """Refuses features that the first example has not, or of another type: they are misspelt."""
    try:
        features = parse(record(0))
    except (ValueError, OSError) as e:
        raise UsageError(f"tfrecord: {file}: its first record cannot be read: {e}; wanted examples with the features "
                         f"{', '.join(keys)}") from None
    for key, kind in keys.items():
        there = [name for name, value in features.items() if value.WhichOneof("kind") == kind]
        if key not in there:
            raise UsageError(f"tfrecord: {file}: its first example has no {kind.split('_')[0]} feature {key!r}"
                             f"{near(key, there)}")
