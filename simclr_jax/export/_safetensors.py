"""Safetensors: a header of JSON, then the arrays' bytes end to end (github.com/huggingface/safetensors, README).

Parsed here and not by the library, whose NumPy side knows no bfloat16 and names no file when it refuses one. What it
refuses is refused here too: a header that is too long or not whole, offsets that overlap, leave a hole or go past the
end.
"""
import json
import math
import os
import struct
from pathlib import Path

import ml_dtypes
import numpy as np

from simclr_jax.export.refused import Refused, refusing, shown
from simclr_jax.export.tensors import Tensor

MOST = 32 * 2**20  # bytes of header; some hundred thousand tensors
_DTYPES = {name: np.dtype(kind) for name, kind in {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": ml_dtypes.bfloat16, "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2, "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U64": "<u8", "U32": "<u4",
    "U16": "<u2", "U8": "u1", "BOOL": "?", "C64": "<c8"}.items()}
NAMES = {kind: name for name, kind in _DTYPES.items()}
INDEX = "model.safetensors.index.json"


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a file in the header's order, each read when asked for."""
    header, start = _header(path)
    header.pop("__metadata__", None)
    tensors, spans = {}, []
    for name, entry in header.items():
        kind, shape, (begin, end) = _entry(name, entry)
        if end - begin != math.prod(shape) * kind.itemsize:
            raise Refused(f"the header gives {shown(name)} {kind}{list(shape)} {end - begin} bytes")
        spans.append((begin, end))
        tensors[name] = Tensor(shape, kind, _reader(path, start + begin, kind, shape))
    at, size = 0, os.path.getsize(path) - start
    for begin, end in sorted(spans):
        if begin != at:
            raise Refused("the header has tensors that overlap, or bytes that are of none")
        at = end
    if at != size:
        raise Refused(f"the header speaks of {at} bytes of tensors, and there are {size}")
    return tensors


def metadata(path: Path) -> dict[str, str]:
    """The texts that a file has beside its tensors."""
    found = _header(path)[0].get("__metadata__", {})
    if not isinstance(found, dict) or not all(isinstance(v, str) for v in found.values()):
        raise Refused("the header's metadata are not texts")
    return found


def directory(path: Path) -> dict[str, Tensor]:
    """The tensors of a directory with model.safetensors, or with shards and the index that lists them."""
    if not (path / INDEX).exists():
        return read(path / "model.safetensors")
    with refusing(path / INDEX):
        index = _json((path / INDEX).read_bytes()[:MOST + 1])
        names = index.get("weight_map")
        if not isinstance(names, dict) or not names or not all(isinstance(v, str) for v in names.values()):
            raise Refused("it has no weight_map of tensors to files")
        for file in names.values():
            plain = file == os.path.basename(file) and "\\" not in file and file.isprintable()
            if not plain or not file.endswith(".safetensors"):
                raise Refused(f"its weight_map names {shown(file)}, which is no file of this directory",
                              "do not use it")
    tensors = {}
    for file in dict.fromkeys(names.values()):
        with refusing(path / file):
            found = read(path / file)
        tensors.update((name, (file, t)) for name, t in found.items() if names.get(name) == file)
        strange = [name for name in found if names.get(name) != file]
        if strange:
            raise Refused(f"{file} holds {shown(strange[0])}, which {INDEX} has not there")
    missing = [name for name in names if name not in tensors]
    if missing:
        raise Refused(f"{names[missing[0]]} has no {shown(missing[0])}, which {INDEX} has there")
    return {name: tensors[name][1] for name in names}


def _header(path):
    size = os.path.getsize(path)
    with open(path, "rb") as f:
        start = f.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else -1
        if not 2 <= length <= size - 8:
            raise Refused("it is not a whole safetensors file")
        if length > MOST:
            raise Refused(f"its header has {length} bytes, more than the {MOST} that one may have")
        return _json(f.read(length)), 8 + length


def _json(text):
    try:
        found = json.loads(text, object_pairs_hook=_once)
    except (UnicodeDecodeError, json.JSONDecodeError):
        raise Refused("what should be JSON is none") from None
    if not isinstance(found, dict):
        raise Refused("what should be a JSON object is none")
    return found


def _once(pairs):
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise Refused(f"it has {shown(next(n for n in names if names.count(n) > 1))} twice")
    return found


def _entry(name, entry):
    whole = lambda x, n: isinstance(x, list) and len(x) <= n and all(type(i) is int and 0 <= i < 2**48 for i in x)
    if not isinstance(entry, dict) or not whole(entry.get("shape"), 32) or not whole(entry.get("data_offsets"), 2):
        raise Refused(f"the header has no possible shape and place for {shown(name)}")
    kind = _DTYPES.get(str(entry.get("dtype")))
    if kind is None:
        raise Refused(f"{shown(name)} is {shown(entry.get('dtype'))}", "it has to be stored as F32, F16 or BF16")
    begin, end = entry["data_offsets"]
    if begin > end:
        raise Refused(f"the header lets {shown(name)} end before it begins")
    return kind, tuple(entry["shape"]), (begin, end)


def _reader(path, offset, kind, shape):
    def load():
        with refusing(path):
            made = np.empty(shape, kind)
            with open(path, "rb") as f:
                f.seek(offset)
                if f.readinto(made.reshape(-1).view(np.uint8)) != made.nbytes:
                    raise Refused("it has become shorter while it was read")
            return made
    return load
