"""Archives of NumPy: each array a member of a zip file, of which only the header is read before it is wanted."""
import math
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np

from simclr_jax.export.refused import Refused, refusing, shown
from simclr_jax.export.tensors import Tensor

RATIO = 100  # the arrays may take so many times the file, and 64 MiB; trained weights compress by a tenth
_KINDS = "biufc"


def read(path: Path) -> dict[str, Tensor]:
    """The arrays of an archive, each read when asked for. bfloat16, which NumPy stores as bare two bytes, is that."""
    if not zipfile.is_zipfile(path):
        raise Refused("it is not an .npz archive")
    tensors, total = {}, 0
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            name = info.filename.removesuffix(".npy")
            if not info.filename.endswith(".npy") or name in tensors:
                raise Refused(f"its member {shown(info.filename)} is no array of its own")
            if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise Refused(f"its member {shown(info.filename)} is encrypted, or packed by what NumPy does not use")
            with archive.open(info) as f:
                shape, fortran, kind, start = _header(f, name)
            size = math.prod(shape) * kind.itemsize
            if start + size != info.file_size:
                raise Refused(f"{shown(name)} is {kind}{list(shape)} by its header, and has "
                              f"{info.file_size - start} bytes")
            total += size
            load = _reader(path, info.filename, start, shape, fortran, kind)
            tensors[name] = Tensor(shape, kind.newbyteorder("="), load)
    if total > RATIO * path.stat().st_size + 64 * 2**20:
        raise Refused(f"it unpacks to {total} bytes, more than {RATIO} times its size",
                      "no weights compress like that: do not use it")
    return tensors


def _header(f, name):
    version = np.lib.format.read_magic(f)
    if version not in ((1, 0), (2, 0)):
        raise Refused(f"{shown(name)} has a header of version {version}")
    of = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}[version[0]]
    shape, fortran, kind = of(f, max_header_size=10_000)
    if kind.hasobject:
        raise Refused(f"{shown(name)} holds pickled objects, which may run code",
                      "nothing of it was run; save arrays of numbers only")
    if kind == np.dtype("V2"):
        kind = np.dtype(ml_dtypes.bfloat16)
    elif kind.kind not in _KINDS or kind.itemsize > 16 or kind.subdtype:
        raise Refused(f"{shown(name)} is {shown(kind)}", "save arrays of numbers only")
    if len(shape) > 32 or any(type(n) is not int or not 0 <= n < 2**48 for n in shape):
        raise Refused(f"{shown(name)} has no possible shape")
    return shape, fortran, kind, f.tell()


def _reader(path, member, start, shape, fortran, kind):
    def load():
        with refusing(path), zipfile.ZipFile(path) as archive, archive.open(member) as f:
            f.read(start)
            made = np.empty(math.prod(shape), kind)
            view, at = memoryview(made.view(np.uint8)), 0
            while n := f.readinto(view[at:at + 2**20]):
                at += n
            if at != made.nbytes or f.read(1):  # which checks the archive's sum
                raise Refused(f"{shown(member)} has another length than its header says")
            native = made.astype(kind.newbyteorder("="), copy=False)
            return np.asarray(native.reshape(shape, order="F" if fortran else "C"), order="C")
    return load
