"""A pre-decoded cache: images as arrays on disk, mapped into memory. Needs neither TensorFlow nor a decoder."""
import functools
import mmap
import os

import numpy as np

from simclr_jax.data import cache
from simclr_jax.data.source import Example, Source
from simclr_jax.errors import UsageError

_LARGE = 4 * mmap.PAGESIZE  # bytes of a row from which on it is asked for ahead and copied by itself


def make(*, root: str, split: str = "train", verify: bool = False) -> Source:
    """A split of a cache that `python -m simclr_jax.data --cache=DIR` wrote.

    Args:
      root: its directory.
      split: named as when it was written.
      verify: whether to test the checksums of all shards first, which reads every byte once. Their lengths and the
        index are always tested.

    Returns:
      A source with `rows`, and with the originals' `sizes` where the images were squeezed into one size. Class names
      and captions are those of the source that was cached; examples that were unreadable there are missing here.

    Raises:
      UsageError: no such cache or split, another format version, or an index or a shard that is damaged.
    """
    if not root:
        raise UsageError("cache: no root given; name the directory of a cache, as in --config.data.root=DIR")
    if "://" in root:
        raise UsageError(f"cache: {root}: a cache is mapped into memory; copy it to a disk of this machine")
    root = os.path.expanduser(root)
    index = cache.read(root, split)
    if not len(index.labels):
        raise UsageError(f"cache: {cache.folder(root, split)} holds no images; write it anew")
    if verify:
        cache.check(root, split, index)
    rows = Rows(cache.folder(root, split), index)

    def read(i, cut=None):
        image, label = rows(i)
        return Example(image, int(label), int(i), cut and cut(*index.shape))

    describe = (f"cache {cache.folder(root, split)}: {len(index.labels)} images of {index.shape[0]}x{index.shape[1]}"
                f"{', squeezed' if index.sizes is not None else ''}, from {index.describe}")
    return Source(len(index.labels), read, index.shape, index.classes, describe, lambda: [], index.digest, rows=rows,
                  sizes=index.sizes, captions=index.captions and functools.partial(cache.texts, index.captions))


class Rows:
    """(i64[n]) -> (u8[n,H,W,3], labels i64[n]), for any thread; a scalar index gives one example."""

    def __init__(self, folder: str, index: cache.Index):
        self._ends, self._counts = np.cumsum(index.counts), index.counts
        self._labels, self._shape, self._folder = index.labels, index.shape, folder
        self._bytes = int(np.prod(index.shape)) * 3
        # Each map keeps a file open, of which a process may have a thousand.
        self._shard = functools.lru_cache(maxsize=cache.MOST)(self._map)

    def __call__(self, index):
        index = np.asarray(index, np.int64)
        if index.ndim == 0:
            images, labels = self(index[None])
            return images[0], labels[0]
        if index.size and not 0 <= index.min() <= index.max() < len(self._labels):
            raise IndexError(f"example {index.min()} or {index.max()} of {len(self._labels)}")
        shard = np.searchsorted(self._ends, index, side="right")
        place = index - (self._ends - self._counts)[shard]
        used = np.unique(shard).tolist()
        parts = {s: self._shard(s) for s in used}
        if self._bytes >= _LARGE:
            # The disk reads what is not in memory yet for all rows at once, not page by page as they are copied.
            for s, i in zip(shard.tolist(), place.tolist()):
                start = (cache.HEADER + i * self._bytes) // mmap.PAGESIZE * mmap.PAGESIZE
                end = cache.HEADER + (i + 1) * self._bytes
                parts[s][0].madvise(mmap.MADV_WILLNEED, start, end - start)
        if len(used) == 1:
            return parts[used[0]][1][place], self._labels[index]
        images = np.empty((len(index), *self._shape, 3), np.uint8)
        if self._bytes >= _LARGE:
            for row, (s, i) in enumerate(zip(shard.tolist(), place.tolist())):
                images[row] = parts[s][1][i]
        else:
            for s in used:
                mine = shard == s
                images[mine] = parts[s][1][place[mine]]
        return images, self._labels[index]

    def _map(self, shard):
        file = os.path.join(self._folder, cache.shard(shard, len(self._counts)))
        return cache.map_shard(file, int(self._counts[shard]), self._shape)
