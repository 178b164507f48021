"""What a data source is, and the two ways to make one: of arrays, and of encoded images that may be damaged."""
import threading
import zlib
from typing import Callable, NamedTuple

import numpy as np
from etils import epath

from simclr_jax.data.decode import decode
from simclr_jax.errors import UsageError


class Example(NamedTuple):
    """One example as it is read."""

    image: np.ndarray  # u8[h,w,3]: the picture or, where windows were asked for, a part that holds them all
    label: int  # -1: none
    index: int  # the one asked for or, if that is unreadable, the one that stands in
    windows: np.ndarray | None = None  # i32[n,4]: y, x, height, width in `image`


class Source(NamedTuple):
    """Random access to the examples of one split; `sources/<name>.py` each have a `make` that returns one.

    A source of images of one size also has `shape` and `rows`, which is all that training then uses, and needs no
    TensorFlow.
    """

    size: int
    read: Callable  # (index, cut=None) -> Example, from any thread; cut: (height, width) -> windows i32[n,4]
    shape: tuple[int, int] | None  # (H, W) if every image has it at no cost
    classes: tuple[str, ...]
    describe: str  # one line
    problems: Callable  # () -> list[str]: "path: reason" of each example found unreadable so far
    digest: int = 0  # of what the source holds: a resumed run must find the same
    memory: int = 0  # bytes that the decoded images may take, if they are worth keeping; see `memory.in_memory`
    captions: Callable | None = None  # int index -> tuple[str, ...], at least one; called from any thread
    shards: tuple[int, ...] = ()  # examples in each shard, which are runs of indices in turn; see `order.make`
    load: Callable | None = None  # index -> (bytes of the image file, label), as `of_encoded` has it
    rows: Callable | None = None  # i64[n] -> (u8[n,H,W,3], i64[n] labels), from any thread; where `shape` is known
    sizes: np.ndarray | None = None  # i32[size,2]: height and width of originals that were squeezed into `shape`


class Problems:
    """The unreadable examples of a source: counted, named, and tolerated up to a limit. Shared by reader threads.

    Up to ceil(max_bad * size) are tolerated: one in a small source, none if max_bad is 0.
    """

    def __init__(self, size: int, max_bad: float, describe: str):
        if not 0 <= max_bad <= 1:
            raise UsageError(f"max_bad={max_bad} is a fraction of the examples; wanted 0 <= max_bad <= 1")
        # What ends the reading. Kept for the consumer to raise: an exception in a function that TensorFlow calls from
        # several threads takes the process down with a segmentation fault now and then (TensorFlow 2.21).
        self.error = None
        self._limit = min(int(np.ceil(round(max_bad * size, 6))), size - 1)
        self._size, self._max_bad, self._describe = size, max_bad, describe
        self._lock, self._found = threading.Lock(), {}

    def __call__(self) -> list[str]:
        with self._lock:
            return [text for _, text in sorted(self._found.items())]

    def __contains__(self, index: int) -> bool:
        return index in self._found

    def add(self, index: int, text: str) -> None:
        """Counts an example once. Above the limit, `error` is set."""
        with self._lock:
            self._found[index] = text
            if self.error is None and len(self._found) > self._limit:
                worst = "; ".join(text for _, text in sorted(self._found.items())[:5])
                self.error = UsageError(
                    f"{self._describe}: {len(self._found)} images cannot be read, and max_bad={self._max_bad} allows "
                    f"{self._limit} of {self._size}: {worst}; mend or remove them, or raise max_bad")

    def stop(self, text: str) -> None:
        """Gives up at once, for what no other example can stand in for."""
        self.error = UsageError(f"{self._describe}: {text}")


def of_arrays(images, labels=None, *, classes=(), describe="arrays", captions=None) -> Source:
    """A source of images in memory (or in a `np.memmap`).

    Args:
      images: u8[n,H,W,3], or grey u8[n,H,W] or u8[n,H,W,1].
      labels: integers [n], or None.
      classes: names of the labels.
      describe: one line for the log.
      captions: n of them, each a str or a sequence of str; or None.

    Raises:
      UsageError: no images, another type or shape, a different number of labels or captions, or an empty caption.
    """
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] not in (1, 3)):
        raise UsageError(f"{describe}: images are {images.dtype}{list(images.shape)}; wanted uint8[n,H,W,3], "
                         "uint8[n,H,W,1] or uint8[n,H,W] with values 0..255")
    labels = np.full(len(images), -1) if labels is None else np.asarray(labels)
    if not np.issubdtype(labels.dtype, np.integer) or labels.shape != (len(images),):
        raise UsageError(f"{describe}: labels are {labels.dtype}{list(labels.shape)}; wanted integers [{len(images)}], "
                         "one for each image")
    if not len(images):
        raise UsageError(f"{describe}: there are no images in it")

    texts = None if captions is None else _texts(captions, len(images), describe)

    def rows(index):
        picked = images[index]
        if images.ndim == 3:
            picked = picked[..., None]
        return np.ascontiguousarray(np.broadcast_to(picked, (*picked.shape[:-1], 3))), labels[index].astype(np.int64)

    def read(index, cut=None):
        image, label = rows(np.int64(index))
        return Example(image, int(label), int(index), cut and cut(*image.shape[:2]))

    digest = zlib.crc32(np.ascontiguousarray(images)) ^ zlib.crc32(np.ascontiguousarray(labels))
    if texts is not None:
        digest ^= zlib.crc32(repr(texts).encode())
    return Source(len(images), read, tuple(images.shape[1:3]), tuple(classes), describe, lambda: [], digest,
                  captions=texts and texts.__getitem__, rows=rows)


def _texts(captions, size, describe):
    texts = [(t,) if isinstance(t, str) else tuple(t) for t in captions]
    bad = [i for i, t in enumerate(texts) if not t or not all(isinstance(c, str) and c.strip() for c in t)]
    if len(texts) != size or bad:
        raise UsageError(f"{describe}: " + (f"the captions of example {bad[0]} are {texts[bad[0]]!r}" if bad else
                                            f"{len(texts)} captions for {size} images")
                         + "; wanted for each image a text or several, none of them empty")
    return texts


def of_encoded(size: int, load, where, problems: Problems, *, classes=(), describe: str, identity: str,
               memory: float = 0.0, captions=None, shards=()) -> Source:
    """A source of image files, of whatever sizes. For an unreadable one the next readable index stands in.

    Which one stands in depends on the files alone, and the keys of the row stay those of the index asked for, so a
    run is the same whoever meets the bad file first.

    Args:
      size: number of examples.
      load: index -> (bytes of the image file, label), from any thread. OSError and ValueError mean an unreadable
        example.
      where: index -> the name of the example in messages.
      identity: a text that differs if the examples do, such as the list of files.
      memory: GiB that the decoded images may take; 0: never kept.
      captions, shards: as in `Source`.
    """
    def read(index, cut=None):
        index = int(index)
        # Ends, because Problems tolerates fewer bad examples than there are, and reads no more after that.
        while not problems.error:
            if index not in problems:
                try:
                    data, label = load(index)
                    image, windows = decode(data, cut)
                    return Example(image, int(label), index, windows)
                except (ValueError, OSError) as e:
                    reason = (e.strerror if isinstance(e, OSError) else None) or str(e)
                    problems.add(index, f"{where(index)}: {' '.join(reason.split())}")
            index = (index + 1) % size
        # No one will see this one; the search for a stand-in ends.
        return Example(np.zeros([1, 1, 3], np.uint8), -1, index, cut and cut(1, 1))

    return Source(size, read, None, tuple(classes), describe, problems, zlib.crc32(identity.encode(errors="replace")),
                  int(memory * 2**30), captions, tuple(shards), load)


def of_files(paths) -> Source:
    """A source of image files, of any sizes, for `examples`: one that cannot be read is left out, however many they are."""
    def read(index, cut=None):
        try:
            image, windows = decode(read_file(paths[int(index)]), cut)
            return Example(image, -1, int(index), windows)
        except (ValueError, OSError):
            return Example(np.zeros([1, 1, 3], np.uint8), -1, -1, cut and cut(1, 1))
    return Source(len(paths), read, None, (), f"{len(paths)} files", lambda: [])


def failed(source: Source):
    """The UsageError that ends the reading of a source, or None."""
    return getattr(source.problems, "error", None)


def read_file(path: str) -> bytes:
    """The bytes of a file, local or remote. Raises OSError."""
    if "://" in path:
        return epath.Path(path).read_bytes()
    with open(path, "rb") as f:
        return f.read()
