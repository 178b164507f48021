"""A pre-decoded cache: the images of a source as arrays on disk, so that training decodes nothing.

DIR/SPLIT/ holds shards `images-00000-of-00004.npy`, u8[n,H,W,3], which NumPy maps into memory as they are, and
`index.npz`: the shards' checksums, labels, class names, captions and the sizes of the originals. The index ends in the
CRC-32 of all before it. A cache is written into DIR/SPLIT.partial, which gets its name when all is there, so what has
the name is whole. A write that was interrupted goes on with the first shard that is missing.

Images of several sizes are squeezed to one, each axis on its own: a crop of any proportions is then a resize away.
"""
import concurrent.futures
import io
import json
import os
import shutil
import urllib.parse
import zipfile
import zlib
from typing import NamedTuple

import numpy as np

from simclr_jax.errors import UsageError

VERSION = 1
SIDE = 320  # of squeezed images, unless another is asked for
SHARD = 2**28  # bytes of a shard, about
MOST = 512  # shards, unless more are asked for: a reader keeps each of them open
INDEX, PARTIAL = "index.npz", ".partial"
HEADER = 128  # bytes before the pixels of a shard
_ANEW = "copy or write the cache anew"


class Index(NamedTuple):
    """What is in a split of a cache."""

    shape: tuple[int, int]
    counts: np.ndarray  # i64[shards], images in each
    crcs: np.ndarray  # u32[shards], CRC-32 of each shard's file
    labels: np.ndarray  # i64[n]
    examples: np.ndarray  # i64[n], the index that each had in the source
    sizes: np.ndarray | None  # i32[n,2], height and width of the originals, if they were squeezed
    captions: tuple[np.ndarray, np.ndarray, np.ndarray] | None  # see `packed`
    classes: tuple[str, ...]
    describe: str  # the source
    source: int  # its digest
    digest: int  # of the cache itself


def folder(root: str, split: str) -> str:
    """The directory of a split; its name is the split, with what file names cannot have as %XX."""
    return os.path.join(root, urllib.parse.quote(split, safe="+-_"))


def splits(root: str) -> list[str]:
    """The splits that a cache holds."""
    found = sorted(os.listdir(root)) if os.path.isdir(root) else []
    return [urllib.parse.unquote(f) for f in found
            if not f.endswith(PARTIAL) and os.path.isfile(os.path.join(root, f, INDEX))]


def shard(number: int, count: int) -> str:
    return f"images-{number:05}-of-{count:05}.npy"


def packed(captions) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Captions, a sequence of str for each example, as arrays: (text u8[], ends i64[captions], first i64[n+1]).

    Those of example i are numbers first[i] to first[i+1]; each reaches from the end of the one before to its own.
    """
    texts = [text.encode() for of_one in captions for text in of_one]
    first = np.cumsum([0] + [len(of_one) for of_one in captions])
    return np.frombuffer(b"".join(texts), np.uint8), np.cumsum([len(t) for t in texts], dtype=np.int64), first


def texts(captions, index: int) -> tuple[str, ...]:
    """The captions of an example from `packed` ones."""
    data, ends, first = captions
    numbers = range(first[index], first[index + 1])
    return tuple(data[ends[i - 1] if i else 0:ends[i]].tobytes().decode() for i in numbers)


def read(root: str, split: str) -> Index:
    """The index of a split, whose shards are there in full length.

    Raises:
      UsageError: no such cache, one of another format version, or an index or a shard that is damaged.
    """
    place = folder(root, split)
    if not os.path.isfile(os.path.join(place, INDEX)):
        if os.path.isdir(place + PARTIAL):
            raise UsageError(f"cache: {place} is unfinished; give the command that writes it once more, and it goes on")
        there = splits(root)
        raise UsageError(f"cache: {root} " + (f"has no split {split!r}; it has: {', '.join(there)}" if there else
                                              "holds no cache; write one with python -m simclr_jax.data "
                                              "--config=FILE --cache=DIR"))
    index = _read_index(os.path.join(place, INDEX))
    row = int(np.prod(index.shape)) * 3
    for number, count in enumerate(index.counts.tolist()):
        file, wanted = os.path.join(place, shard(number, len(index.counts))), HEADER + count * row
        try:
            size = os.path.getsize(file)
        except OSError as e:
            raise UsageError(f"cache: {file} cannot be read ({e.strerror or e}); {_ANEW}") from None
        if size != wanted:
            raise UsageError(f"cache: {file} has {size} bytes and not {wanted}; {_ANEW}")
    return index


def check(root: str, split: str, index: Index) -> None:
    """Reads every byte of a split and refuses it, with the names of the damaged shards, if a checksum is wrong."""
    files = [os.path.join(folder(root, split), shard(i, len(index.counts))) for i in range(len(index.counts))]
    try:
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            found = list(pool.map(_crc, files))
    except OSError as e:
        raise UsageError(f"cache: {e.filename} cannot be read ({e.strerror or e}); {_ANEW}") from None
    bad = [os.path.basename(f) for f, crc, wanted in zip(files, found, index.crcs) if crc != wanted]
    if bad:
        raise UsageError(f"cache: {folder(root, split)}: damaged (wrong checksum): {', '.join(bad[:5])}"
                         f"{f' and {len(bad) - 5} more' if bad[5:] else ''}; {_ANEW}")


def map_shard(file: str, count: int, shape) -> tuple:
    """(the memory map of a shard, its images u8[count,H,W,3])."""
    import mmap
    with open(file, "rb") as f:
        mapped = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
    return mapped, np.frombuffer(mapped, np.uint8, offset=HEADER).reshape(count, *shape, 3)


class ShardFile:
    """A shard being written: images one by one, then its header, then its name."""

    def __init__(self, file: str, shape):
        self.count, self._file, self._shape = 0, file, shape
        self._out = open(file + PARTIAL, "wb")
        self._out.write(b"\0" * HEADER)

    def add(self, image: np.ndarray) -> None:
        assert image.shape == (*self._shape, 3) and image.dtype == np.uint8
        self._out.write(np.ascontiguousarray(image).data)
        self.count += 1

    def finish(self) -> int:
        """Puts the shard on the disk under its name; its checksum."""
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, dict(descr="|u1", fortran_order=False,
                                                          shape=(self.count, *self._shape, 3)))
        assert len(header.getvalue()) == HEADER
        self._out.seek(0)
        self._out.write(header.getvalue())
        self._out.flush()
        os.fsync(self._out.fileno())
        self._out.close()
        os.replace(self._file + PARTIAL, self._file)
        return _crc(self._file)

    def close(self) -> None:
        """Gives up what is not finished."""
        if not self._out.closed:
            self._out.close()


def write_index(file: str, index: Index) -> None:
    """Puts the index on the disk, whole or not at all."""
    arrays = dict(counts=index.counts, crcs=index.crcs, labels=index.labels, examples=index.examples)
    if index.sizes is not None:
        arrays["sizes"] = index.sizes
    if index.captions is not None:
        arrays |= zip(("text", "ends", "first"), index.captions)
    about = dict(version=VERSION, shape=index.shape, classes=index.classes, describe=index.describe,
                 source=index.source, digest=index.digest)
    write_arrays(file, about, arrays)


def write_arrays(file: str, about: dict, arrays: dict) -> None:
    """An .npz of arrays and of JSON, followed by its CRC-32 in hexadecimal digits."""
    data = io.BytesIO()
    np.savez(data, about=np.frombuffer(json.dumps(about).encode(), np.uint8), **arrays)
    with open(file + PARTIAL, "wb") as f:
        f.write(data.getvalue() + b"%08x" % zlib.crc32(data.getvalue()))
        f.flush()
        os.fsync(f.fileno())
    os.replace(file + PARTIAL, file)


def read_arrays(file: str) -> tuple[dict, dict]:
    """What `write_arrays` wrote. Raises ValueError if it is damaged, OSError if it cannot be read."""
    with open(file, "rb") as f:
        data = f.read()
    if data[-8:] != b"%08x" % zlib.crc32(data[:-8]):
        raise ValueError("wrong checksum")
    try:
        with np.load(io.BytesIO(data[:-8]), allow_pickle=False) as arrays:
            arrays = dict(arrays)
        return json.loads(arrays.pop("about").tobytes()), arrays
    except (KeyError, zipfile.BadZipFile) as e:
        raise ValueError(str(e)) from None


def _read_index(file):
    try:
        about, a = read_arrays(file)
    except OSError as e:
        raise UsageError(f"cache: {file} cannot be read ({e.strerror or e}); make it readable") from None
    except ValueError as e:
        raise UsageError(f"cache: {file} is damaged ({e}); {_ANEW}") from None
    if about.get("version") != VERSION:
        raise UsageError(f"cache: {file} is of format version {about.get('version')} and this program reads "
                         f"{VERSION}; update simclr_jax, or write the cache anew")
    captions = (a["text"], a["ends"], a["first"]) if "text" in a else None
    return Index(tuple(about["shape"]), a["counts"], a["crcs"], a["labels"], a["examples"], a.get("sizes"), captions,
                 tuple(about["classes"]), about["describe"], about["source"], about["digest"])


def digest(index: Index) -> int:
    """A number that differs if what a training run sees does."""
    crc = zlib.crc32(repr((index.shape, index.classes)).encode())
    for array in (index.counts, index.crcs, index.labels, index.sizes, *(index.captions or ())):
        if array is not None:
            crc = zlib.crc32(np.ascontiguousarray(array).data, crc)
    return crc


def _crc(file):
    crc = 0
    with open(file, "rb", buffering=0) as f:
        while block := f.read(2**22):
            crc = zlib.crc32(block, crc)
    return crc


def free_bytes(path: str) -> int:
    """Bytes free where `path` is or will be."""
    while not os.path.exists(path):
        path = os.path.dirname(os.path.abspath(path))
    return shutil.disk_usage(path).free
