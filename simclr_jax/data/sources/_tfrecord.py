"""Random access to TFRecord files, which have no index of their own.

A record is: length u64, a checksum of it u32, the payload, a checksum of the payload u32 (little endian; the format
comment of TensorFlow's `lib/io/record_writer.h`). Reading the lengths and skipping the payloads finds every record.
A checksum is CRC-32C, turned right by 15 bits and added to a constant (`lib/hash/crc32c.h`).
"""
import os
import struct

import numpy as np
from etils import epath

from simclr_jax.data.sources._shards import in_threads, kept, open_file, sizes_of
from simclr_jax.errors import UsageError

_HEADER, _FOOTER = 12, 4


def index(folder: epath.Path, instructions):
    """Opens the records that a split consists of, where metadata say how many a file has.

    Args:
      folder: where to keep the index; see `_shards.kept`.
      instructions: have `filename`, `skip`, `take`, `examples_in_shard`, as TFDS gives for a split.

    Returns:
      record(i) -> bytes, for any thread. Raises OSError.

    Raises:
      UsageError: a file is missing, damaged, or holds another number of records than its metadata say.
    """
    counts = {os.fspath(i.filename): i.examples_in_shard for i in instructions}
    files = sorted(counts)
    sizes = sizes_of(files, "tfds", "prepare it again")
    total = sum(counts.values())

    def scan():
        return np.concatenate(in_threads(lambda f, n: _scan(f, n, "tfds", "prepare it again", counts[f]), files, sizes))

    places = kept(folder, "record_index.npy", files, sizes, who="tfds", make=scan,
                  good=lambda found: found.shape == (total, 2))
    starts = dict(zip(files, np.cumsum([0] + [counts[f] for f in files])))
    rows = np.concatenate([starts[os.fspath(i.filename)] + i.skip + np.arange(i.take) for i in instructions])
    numbers = np.repeat(np.arange(len(files)), [counts[f] for f in files])
    return lambda i: _record(files[numbers[rows[i]]], *map(int, places[rows[i]]))


def of_files(files: list[str], sizes: list[int], who: str):
    """Opens all records of files of which the number of records is not known. Empty files are fine.

    Returns:
      (counts, record): records in each file, and record(i) -> bytes, for any thread. Raises OSError.

    Raises:
      UsageError: a file is damaged or compressed.
    """
    def scan():
        found = in_threads(lambda file, size: _scan(file, size, who, "write it again or leave it out"), files, sizes)
        return np.concatenate([np.insert(p, 0, i, axis=1) for i, p in enumerate(found)])

    places = kept(epath.Path(files[0]).parent, "record_places.npy", files, sizes, who=who,
                  make=scan, good=lambda found: found.ndim == 2 and found.shape[1] == 3)
    counts = np.bincount(places[:, 0], minlength=len(files))

    def record(i):
        number, offset, length = map(int, places[i])
        return _record(files[number], offset, length)

    return tuple(counts.tolist()), record


def _record(file, offset, length):
    with open_file(file) as f:
        f.seek(offset)
        data = f.read(_HEADER + length)
    if len(data) != _HEADER + length or struct.unpack_from("<Q", data)[0] != length:
        raise OSError(f"{file} has no record of {length} bytes at {offset}")
    return data[_HEADER:]


def _scan(file, size, who, remedy, count=None):
    """i64[records, 2]: offset of the header and length of the payload. `count`: how many there must be."""
    places, offset = [], 0
    with open_file(file) as f:
        while offset < size if count is None else len(places) < count:
            f.seek(offset)
            header = f.read(_HEADER) if offset + _HEADER <= size else b""
            length = struct.unpack_from("<Q", header)[0] if len(header) == _HEADER else size
            # Where metadata tell the number of records, that is check enough.
            sound = count is not None or len(header) == _HEADER and _masked(header[:8]) == header[8:]
            if not sound or offset + _HEADER + length + _FOOTER > size:
                if header[:2] == b"\x1f\x8b" and not offset:
                    raise UsageError(f"{who}: {file} is compressed, which allows no random access; gunzip it")
                number = f"record {len(places)}" + (f" of {count}" if count is not None else "")
                raise UsageError(f"{who}: {file} is cut off or damaged at byte {offset}, in {number}; {remedy}")
            places.append((offset, length))
            offset += _HEADER + length + _FOOTER
    if offset != size:
        raise UsageError(f"{who}: {file} has more than the {count} records that its metadata name; {remedy}")
    return np.array(places, np.int64).reshape(-1, 2)


def _table():
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return table


_CRC32C = _table()


def _masked(data):
    """The checksum of some bytes, as it stands in a file."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _CRC32C[(crc ^ byte) & 255] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)
