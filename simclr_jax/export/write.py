"""Weights and their directories on disk: streamed, and there whole or not at all."""
import contextlib
import json
import math
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np

from simclr_jax.errors import UsageError
from simclr_jax.export._safetensors import NAMES
from simclr_jax.export.refused import line
from simclr_jax.export.tensors import Tensor


def safetensors(path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Writes a safetensors file, of which memory holds one tensor at a time.

    The header keeps the order of the tensors; their bytes lie by falling width of their type, so that each is aligned.

    Args:
      metadata: texts beside the tensors.

    Raises:
      UsageError: the file cannot be written; it is then not there, or what it was. TypeError, ValueError: a type that
        the format has not, metadata that are no texts, or an array that is not what its Tensor says.
    """
    metadata = metadata or {}
    if not all(isinstance(x, str) for pair in metadata.items() for x in pair):
        raise TypeError("metadata of a safetensors file are texts")
    header, order = _header(tensors, metadata)
    with replaced(Path(os.fspath(path))) as f:
        f.write(header)
        for name in order:
            f.write(_bytes(name, tensors[name]))


def _header(tensors, metadata):
    """(the bytes of the header with its length, names in the order of the tensors' bytes)."""
    for name, tensor in tensors.items():
        if tensor.dtype.newbyteorder("<") not in NAMES:
            raise TypeError(f"{name}: safetensors has no {tensor.dtype}")
    order = sorted(tensors, key=lambda name: -tensors[name].dtype.itemsize)
    at, places = 0, {}
    for name in order:
        end = at + math.prod(tensors[name].shape) * tensors[name].dtype.itemsize
        places[name], at = [at, end], end
    entries = {"__metadata__": metadata} if metadata else {}
    for name, t in tensors.items():
        kind = NAMES[t.dtype.newbyteorder("<")]
        entries[name] = {"dtype": kind, "shape": list(map(int, t.shape)), "data_offsets": places[name]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, order


def _bytes(name, tensor):
    x = np.asarray(tensor.read())
    if x.shape != tuple(tensor.shape) or x.dtype != tensor.dtype:
        raise ValueError(f"{name}: read {x.dtype}{list(x.shape)}, announced {tensor.dtype}{list(tensor.shape)}")
    x = np.asarray(x, x.dtype.newbyteorder("<"), order="C")
    return memoryview(x.reshape(-1).view(np.uint8))


@contextlib.contextmanager
def replaced(path: Path):
    """A file to write to, which takes the place of `path` once it is whole and on the disk. UsageError if it cannot."""
    new = None
    try:
        with _writing(path), tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as f:
            new = Path(f.name)
            yield f
            f.flush()
            os.fsync(f.fileno())
        with _writing(path):
            _open_to_all(new, 0o666)
            os.replace(new, path)
            _synced(path.parent)
    except BaseException:
        if new is not None:
            new.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def directory(out):
    """A new directory that is there whole, or not at all.

    Gives the path of an empty directory beside `out`, which takes its place at the end, when all that is in it is on
    the disk. If anything goes wrong before, Ctrl-C included, nothing stays.

    Raises:
      UsageError: `out` is there and is no empty directory, is not local, or cannot be written.
    """
    if "://" in str(out):
        raise UsageError(f"{out}: directories of weights are written locally; copy it there when it is done")
    out = Path(out).expanduser().absolute()
    if os.path.lexists(out) and not (out.is_dir() and not _any(out)):
        raise UsageError(f"{out}: there is something already, and weights are written to a new directory; give another "
                         "or remove it")
    above, new = _missing(out.parent), None
    try:
        with _writing(out):
            out.parent.mkdir(parents=True, exist_ok=True)
            new = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
        yield new
        with _writing(out):
            _settle(new)
            _open_to_all(new, 0o777)
            os.rename(new, out)  # fails if something has come to be there
            _synced(out.parent)
    except BaseException:
        if new is not None:
            shutil.rmtree(new, ignore_errors=True)
        for folder in above:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise


def _any(folder):
    with _writing(folder), os.scandir(folder) as found:
        return next(found, None) is not None


def _missing(folder):
    """Those of a folder and the ones above it that are not there, the lowest first."""
    return [] if folder.exists() else [folder, *_missing(folder.parent)]


@contextlib.contextmanager
def _writing(path):
    try:
        yield
    except OSError as e:
        raise UsageError(f"{path}: cannot be written ({e.strerror or line(e)}); give a place that you may write to and "
                         "that has room") from None


def _open_to_all(path, mode):
    """Permissions as for any other new file; temporary ones are private."""
    mask = os.umask(0)
    os.umask(mask)
    os.chmod(path, mode & ~mask)


def _settle(folder):
    """Puts all that is below a folder onto the disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            _synced(path)
    for path in [*folder.rglob("*/"), folder]:
        _synced(path)


def _synced(path):
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
