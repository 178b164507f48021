"""What is kept once read: small sources whole (CIFAR and the like are then as fast as arrays), and recent captions."""
import collections
import functools
import threading

import numpy as np

from simclr_jax.data.host_tf import tensorflow
from simclr_jax.data.source import Source, failed, of_arrays


@functools.lru_cache(maxsize=8)
def in_memory(source: Source) -> Source:
    """The source with its images decoded into an array, if all are of one size and fit into `source.memory` bytes.

    Otherwise the source itself. Unreadable examples keep their stand-ins.

    Raises:
      UsageError: more examples are unreadable than the source allows.
    """
    if source.shape is not None or not source.memory:
        return source
    tf = tensorflow()
    plain = tf.autograph.experimental.do_not_convert
    data = tf.data.Dataset.range(source.size).map(plain(source.read), tf.data.AUTOTUNE)
    images = labels = index = None
    try:
        for i, example in enumerate(data.as_numpy_iterator()):
            image = example["image"]
            if failed(source) is not None:
                break
            if images is None:
                if image.nbytes * source.size > source.memory:
                    return source
                images = np.empty((source.size, *image.shape), np.uint8)
                labels, index = np.empty((2, source.size), np.int64)
            if image.shape != images.shape[1:]:
                return source
            images[i], labels[i], index[i] = image, example["label"], example["index"]
    except tf.errors.OpError:
        if failed(source) is None:
            raise
    if failed(source) is not None:
        raise failed(source) from None
    arrays = of_arrays(images, labels, classes=source.classes, describe=source.describe)

    def read(asked):
        return {**arrays.read(asked), "index": tensorflow().gather(index, asked)}
    return arrays._replace(read=read, problems=source.problems, captions=source.captions, shards=source.shards)


class Recent:
    """The captions of the images read last, so that what holds both is not read twice. For any thread."""

    def __init__(self, count: int = 4096):
        self._count, self._lock, self._kept = count, threading.Lock(), collections.OrderedDict()

    def put(self, index: int, captions: tuple) -> None:
        with self._lock:
            self._kept[index] = captions
            if len(self._kept) > self._count:
                self._kept.popitem(last=False)

    def get(self, index: int, read) -> tuple:
        """The captions of `index`: kept, or else `read(index)`."""
        with self._lock:
            kept = self._kept.get(index)
        return read(index) if kept is None else kept
