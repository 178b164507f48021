"""Random access to TFRecord files, which have no index of their own.

A record is: length u64, a checksum of it u32, the payload, a checksum of the payload u32 (little endian; the format
comment of TensorFlow's `lib/io/record_writer.h`). Reading the lengths and skipping the payloads finds every record.
"""
import concurrent.futures
import hashlib
import io
import os
import struct
import uuid

import numpy as np
from etils import epath

from simclr_jax.data.host_tf import tensorflow
from simclr_jax.errors import UsageError

_HEADER, _FOOTER = 12, 4


def index(folder: epath.Path, instructions):
    """Opens the records that a split consists of.

    The places of the records are kept as a .npy file in `folder`, or in the user's cache directory if that cannot be
    written to; its name holds the names and sizes of the files, so that files made anew get an index anew.

    Args:
      folder: where to keep the index.
      instructions: have `filename`, `skip`, `take`, `examples_in_shard`, as TFDS gives for a split.

    Returns:
      record(i) -> bytes, for any thread. Raises OSError.

    Raises:
      UsageError: a file is missing, damaged, or holds another number of records than its metadata say.
    """
    counts = {os.fspath(i.filename): i.examples_in_shard for i in instructions}
    files = sorted(counts)
    try:
        sizes = [epath.Path(f).stat().length for f in files]
    except OSError as e:
        raise UsageError(f"tfds: {e.filename or folder} cannot be read ({e.strerror or e}); prepare it again") from None
    places = _load_or_scan(folder, files, sizes, [counts[f] for f in files])
    starts = dict(zip(files, np.cumsum([0] + [counts[f] for f in files])))
    rows = np.concatenate([starts[os.fspath(i.filename)] + i.skip + np.arange(i.take) for i in instructions])
    numbers = np.repeat(np.arange(len(files)), [counts[f] for f in files])

    def record(i):
        row = rows[i]
        offset, length = map(int, places[row])
        with _open(files[numbers[row]]) as f:
            f.seek(offset)
            data = f.read(_HEADER + length)
        if len(data) != _HEADER + length or struct.unpack_from("<Q", data)[0] != length:
            raise OSError(f"{files[numbers[row]]} has no record of {length} bytes at {offset}")
        return data[_HEADER:]

    return record


def _load_or_scan(folder, files, sizes, counts):
    """i64[records, 2]: offset of the header and length of the payload, file by file."""
    text = "\n".join(f"{os.path.basename(f)} {size}" for f, size in zip(files, sizes))
    name = f"record_index_{hashlib.sha256(text.encode()).hexdigest()[:16]}.npy"
    cache = epath.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "simclr_jax"
    for place in (folder, cache):
        if (place / name).exists():
            places = np.load(io.BytesIO((place / name).read_bytes()), allow_pickle=False)
            if places.shape == (sum(counts), 2):
                return places
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        places = np.concatenate(list(pool.map(_scan, files, sizes, counts)))
    data = io.BytesIO()
    np.save(data, places)
    for place in (folder, cache):
        try:
            place.mkdir(parents=True, exist_ok=True)
            part = place / f".{name}.{uuid.uuid4().hex}"  # other processes may be at it too
            part.write_bytes(data.getvalue())
            part.replace(place / name)
            break
        except OSError:
            continue  # read-only; without any index the files are scanned again next time
    return places


def _scan(file, size, count):
    places, offset = np.empty((count, 2), np.int64), 0
    with _open(file) as f:
        for i in range(count):
            f.seek(offset)
            header = f.read(8) if offset + _HEADER <= size else b""
            length = struct.unpack("<Q", header)[0] if len(header) == 8 else size
            if offset + _HEADER + length + _FOOTER > size:
                raise UsageError(f"tfds: {file} is cut off or damaged at byte {offset}, in record {i} of {count}; "
                                 "prepare it again")
            places[i] = offset, length
            offset += _HEADER + length + _FOOTER
    if offset != size:
        raise UsageError(f"tfds: {file} has more than the {count} records that its metadata name; prepare it again")
    return places


def _open(file):
    return tensorflow().io.gfile.GFile(file, "rb") if "://" in file else open(file, "rb", buffering=0)
