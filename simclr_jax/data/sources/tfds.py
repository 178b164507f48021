"""Image data sets of TensorFlow Datasets, on disk or gs://, by name, with random access.

A set that is prepared is read by what its files say, and no builder code is run. One that is not is downloaded and
prepared first, as `tfds build` does it.
"""
import numpy as np
from etils import epath

from simclr_jax.data import captions
from simclr_jax.data.host_tf import tensorflow
from simclr_jax.data.memory import Recent
from simclr_jax.data.sources import _tfrecord, tfrecord
from simclr_jax.data.source import Problems, Source, of_encoded
from simclr_jax.errors import UsageError
from simclr_jax.names import near


def make(*, dataset: str, split: str = "train", data_dir: str | None = None, image_key: str = "image",
         label_key: str | None = "label", text_key: str | None = None, max_bad: float = 0.01,
         memory: float = 1.0, download: bool = True) -> Source:
    """A split of a TFDS data set.

    array_record files are random access by nature. TFRecord files get an index of their records' places, made once;
    see `_tfrecord.index`.

    Args:
      dataset: its name, with config and version where needed: "cifar10", "imagenet2012:5.1.0", "food101".
      split: any expression of TFDS's slicing: "train", "train[:90%]", "train+validation", "test[100:200]".
      data_dir: where it was prepared; None: TFDS's default, `~/tensorflow_datasets` or `$TFDS_DATA_DIR`.
      image_key: the image feature.
      label_key: the integer label feature; None: no labels are wanted, or there are none.
      text_key: the feature with the captions, a text or a sequence of them; of one in a sequence of dicts the path, as
        "captions/text" for coco_captions; None: no captions are wanted.
      max_bad: the fraction of examples that may be unreadable before the run stops; see `Problems`.
      download: whether a set that is not prepared may be downloaded and prepared.
      memory: GiB for the decoded images, which are kept if all are of one size and fit; 0: decode in every epoch.

    Raises:
      UsageError: not prepared there, no such split or feature, a file format without random access, damaged files.
    """
    if not dataset:
        raise UsageError("tfds: no dataset given; name one, as in --config.data.dataset=cifar10")
    tf = tensorflow()
    try:
        import tensorflow_datasets as tfds
    except ImportError:
        raise UsageError("tfds: tensorflow-datasets is not installed; pip install tensorflow-datasets") from None
    builder = _prepared(tfds, dataset, data_dir, download)
    try:
        info = builder.info.splits[split]
    except (KeyError, ValueError, AssertionError) as e:  # an unknown name, or a slice that does not parse
        raise UsageError(f"tfds: {dataset} has no split {split!r} ({' '.join(str(e).split())[:120]}); "
                         f"there are: {', '.join(sorted(builder.info.splits))}, and slices such as 'train[:90%]'"
                         ) from None
    classes = _classes(tfds, builder, dataset, image_key, label_key)
    if text_key is not None:
        _check_text(builder.info.features, dataset, text_key)
    describe = f"tfds {builder.info.full_name} ({split}): {info.num_examples} images, {len(classes)} classes"
    if not info.num_examples:
        raise UsageError(f"{describe}: the split is empty")
    problems = Problems(info.num_examples, max_bad, describe)
    record, recent = _records(builder, dataset, info.file_instructions), Recent()

    def where(index):
        return f"{dataset} {split}[{index}]"

    def parsed(index):
        try:
            return tfrecord.parse(record(index))
        except (OSError, ValueError, RuntimeError, tf.errors.OpError) as e:
            problems.stop(f"example {index} cannot be read: {' '.join(str(e).split())[:300]}; prepare it again")
            raise ValueError("its record cannot be read") from None

    def texts_of(features):
        return captions.texts(list(features[text_key].bytes_list.value))

    def load(index):
        features = parsed(index)
        if text_key is not None:
            recent.put(index, texts_of(features))  # one without a caption has a stand-in too
        return features[image_key].bytes_list.value[0], features[label_key].int64_list.value[0] if label_key else -1

    return of_encoded(info.num_examples, load, where, problems, classes=classes, describe=describe, memory=memory,
                      identity=describe if text_key is None else f"{describe}, captions in {text_key}",
                      captions=None if text_key is None else
                      lambda index: recent.get(index, lambda i: texts_of(parsed(i))))


def _prepared(tfds, dataset, data_dir, download):
    where = data_dir or "~/tensorflow_datasets ($TFDS_DATA_DIR)"
    name = dataset.split("/")[0].split(":")[0]
    try:
        return tfds.core.read_only_builder.builder_from_files(dataset, data_dir=data_dir)
    except Exception as e:  # TFDS raises many kinds: unknown, not prepared, unparsable name, unreadable metadata
        reason = type(e).__name__
    known = tfds.list_builders(with_community_datasets=False)
    if name not in known:
        guess = near(name, known)
        raise UsageError(f"tfds: {dataset!r} is not prepared in {where} ({reason}); TFDS itself knows no {name!r}"
                         + (guess if len(guess) < 200 else ""))
    command = f"tfds build {dataset}" + (f" --data_dir={data_dir}" if data_dir else "")
    if download:
        print(f"tfds: {dataset} is not prepared in {where}: downloading and preparing it, once "
              "(--config.data.download=false to refuse instead)", flush=True)
        try:
            tfds.builder(dataset, data_dir=data_dir).download_and_prepare()
            return tfds.core.read_only_builder.builder_from_files(dataset, data_dir=data_dir)
        except Exception as e:  # no network, no room, or a set whose files one has to ask its owners for
            reason = f"{type(e).__name__}: {' '.join(str(e).split())[:200]}"
    raise UsageError(f"tfds: {dataset!r} is not prepared in {where} ({reason}); "
                     f"run `{command}` on a machine with network access")


def _classes(tfds, builder, dataset, image_key, label_key):
    """The class names; () without labels. Refuses features that are not there."""
    there = builder.info.features
    images = [k for k, v in there.items() if isinstance(v, tfds.features.Image)]
    if image_key not in images:
        raise UsageError(f"tfds: {dataset} has no image feature {image_key!r}{near(image_key, images)}")
    if label_key is None:
        return ()
    labels = [k for k, v in there.items() if v.shape == () and np.issubdtype(v.np_dtype, np.integer)]
    if label_key not in labels:
        raise UsageError(f"tfds: {dataset} has no integer feature {label_key!r}{near(label_key, labels)}; "
                         "label_key=None for none")
    return tuple(getattr(there[label_key], "names", None) or ())


def _check_text(there, dataset, text_key):
    """Refuses a feature that is no text, no sequence of texts and no text in a sequence of dicts."""
    import tensorflow_datasets as tfds

    def texts(feature, path, deep):
        if isinstance(feature, tfds.features.Sequence) and not deep:
            return texts(feature.feature, path, True)
        if isinstance(feature, tfds.features.FeaturesDict):
            return [t for name, inner in feature.items() for t in texts(inner, [*path, name], deep)]
        return ["/".join(path)] if isinstance(feature, tfds.features.Text) else []

    if text_key not in texts(there, [], False):
        raise UsageError(f"tfds: {dataset} has no text feature {text_key!r}{near(text_key, texts(there, [], False))}")


def _records(builder, dataset, instructions):
    """index -> the bytes of a record, from any thread."""
    kind = builder.info.file_format.value
    if kind == "tfrecord":
        return _tfrecord.index(epath.Path(builder.data_path), instructions)
    if kind == "array_record":
        try:
            from array_record.python.array_record_data_source import ArrayRecordDataSource
        except ImportError:
            raise UsageError(f"tfds: {dataset} is in array_record files; pip install array_record") from None
        return ArrayRecordDataSource(instructions).__getitem__
    raise UsageError(f"tfds: {dataset} is in {kind} files, which have no random access here; prepare it with "
                     f"`tfds build {dataset} --file_format=array_record`")
