"""What is kept once read: small sources whole (CIFAR and the like are then as fast as arrays), and recent captions."""
import collections
import ctypes
import functools
import os
import threading
from concurrent import futures

import numpy as np

from simclr_jax.data.source import Source, failed, of_arrays


def in_memory(source: Source) -> Source:
    """The source with its images decoded into an array, if all are of one size and fit into `source.memory` bytes.

    Otherwise the source itself. Unreadable examples keep their stand-ins.

    Raises:
      UsageError: more examples are unreadable than the source allows.
    """
    return source if source.shape is not None or not source.memory else _decoded(source)


@functools.lru_cache(maxsize=8)
def _decoded(source):
    images = labels = index = None
    with futures.ThreadPoolExecutor(cores()) as pool:
        for i, example in enumerate(in_order(pool, source.read, range(source.size))):
            image = example.image
            if failed(source) is not None:
                break
            if images is None:
                if image.nbytes * source.size > source.memory:
                    return source
                images = np.empty((source.size, *image.shape), np.uint8)
                labels, index = np.empty((2, source.size), np.int64)
            if image.shape != images.shape[1:]:
                return source
            images[i], labels[i], index[i] = image, example.label, example.index
    if failed(source) is not None:
        raise failed(source) from None
    arrays = of_arrays(images, labels, classes=source.classes, describe=source.describe)

    def read(asked, cut=None):
        return arrays.read(asked, cut)._replace(index=int(index[asked]))
    captions = source.captions and (lambda asked: source.captions(int(index[asked])))  # a stand-in comes with its own
    return arrays._replace(read=read, problems=source.problems, captions=captions, shards=source.shards,
                           digest=source.digest)


@functools.cache
def reuse_freed() -> None:
    """Tells glibc's malloc to keep what is freed for the next batch instead of giving it back to the kernel.

    Large buffers are otherwise new pages each time, which the kernel has to clear: measured on photos, as much time as
    a third of their decoding and cropping. Elsewhere than on glibc, nothing happens.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return
    for option, value in ((-3, 2**30), (-1, 2**31 - 1), (-2, 2**26)):  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, M_TOP_PAD
        mallopt(option, value)


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_order(pool, function, items, ahead: int = 64):
    """`function` of each item, some of them ahead of being asked for; what is not asked for is called off."""
    waiting = collections.deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, int(item)))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for task in waiting:
            task.cancel()


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
