"""Every example of a source once, in order: what evaluation reads. Batches of training: pipeline.py."""
from typing import Iterator

import numpy as np

from simclr_jax.data import flow
from simclr_jax.data.host_tf import tensorflow
from simclr_jax.data.memory import in_memory
from simclr_jax.data.source import Source
from simclr_jax.errors import UsageError


def examples(source: Source, view, finish, *, batch: int, process: tuple[int, int] = (0, 1),
             workers: int | None = None) -> Iterator[dict[str, np.ndarray]]:
    """Every example of a source once, in order, for evaluation.

    Args:
      view: `simclr_jax.augment.build_eval(ops)`.
      finish: `simclr_jax.augment.evaluate(view)`, which does what is not cropping here.
      batch: rows a batch of this process; the last one has what is left.
      process: (index, count); each process has a run of neighbouring examples, shares differing by at most one.

    Returns:
      An iterator of {"image": f32[n,S,S,3], "label": i32[n], "id": u32[n,2]}, n <= batch, of epoch 0. Unreadable
      examples are left out here, since a stand-in would count twice.

    Raises:
      UsageError: as `pipeline.batches`, but that the source may be smaller than the batch.
    """
    number, count = process
    if batch < 1 or not 0 <= number < count:
        raise UsageError(f"batch={batch}, process={process}: wanted batch >= 1 and (index, count), 0 <= index < count")
    source = in_memory(source)
    own = range(source.size * number // count, source.size * (number + 1) // count)
    if source.shape is not None and source.sizes is None:
        return flow.kept(_gathered_examples(source, finish, own, batch))
    return flow.kept(_read_examples(source, view, finish, own, batch, workers))


def _gathered_examples(source, finish, own, batch):
    for start in range(own.start, own.stop, batch):
        index = np.arange(start, min(start + batch, own.stop))
        index = index[[source.read(int(i)).index == i for i in index]] if source.problems() else index
        if len(index):
            images, labels = source.rows(index)
            yield {"image": finish(images), "label": labels.astype(np.int32),
                   "id": np.stack([index, np.zeros_like(index)], axis=1).astype(np.uint32)}


def _read_examples(source, view, finish, own, batch, workers):
    tf = tensorflow()
    from simclr_jax.data import resize
    plain = tf.autograph.experimental.do_not_convert
    none = np.zeros([max(1, len(view.chain)), 1], np.float32)

    def read(index):
        example = source.read(int(index))
        image = example.image if source.sizes is None else _unsqueezed(example.image, source.sizes[index])
        return image, np.int64(example.label), example.index == index, resize.places(view.chain[0], none[0], *image.shape[:2])

    def one(index):
        image, label, there, place = tf.numpy_function(read, [index], [tf.uint8, tf.int64, tf.bool, tf.int32])
        image = resize.chain(view.chain, tf.ensure_shape(image, [None, None, 3]), tf.ensure_shape(place, [8]), none)
        return {"image": tf.ensure_shape(image * (1 / 255), [view.size, view.size, 3]),
                "label": tf.cast(tf.ensure_shape(label, []), tf.int32),
                "id": tf.cast(tf.stack([index, tf.zeros_like(index)]), tf.uint32)}, tf.ensure_shape(there, [])

    data = tf.data.Dataset.range(own.start, own.stop)
    data = data.map(plain(one), flow.calls(workers)).filter(plain(lambda _, there: there)).map(plain(lambda row, _: row))
    made = flow.iterate(data.batch(batch), source, workers)
    with flow.closing(made):
        for row in made:
            yield {**row, "image": finish(row["image"])}


def _unsqueezed(image, size):
    """A picture in its original's proportions, of no more pixels than it has."""
    from PIL import Image
    height, width = (int(s) for s in size)
    scale = min(1.0, (image.shape[0] * image.shape[1] / (height * width)) ** 0.5)
    target = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(Image.fromarray(image).resize(target, Image.Resampling.BICUBIC))
