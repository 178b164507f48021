"""What a pickle may build besides numbers, texts and containers: arrays, and the few calls that make them.

The rows of `CALLS` are those of NumPy's own pickles (1 and 2), of `jax.Array` (a NumPy pickle within), of Haiku's and
Flax's immutable mappings, and of dill, which stores named tuples by their field names: together what the checkpoints of
DeepMind's BYOL consist of (deepmind-research, byol/utils/checkpointing.py: dill, protocol 2, of a dict with the named
tuple `_ByolExperimentState`). Named tuples become dicts of their fields. None of these libraries is called, nor need be
there.
"""
import math
import re

import ml_dtypes
import numpy as np

from simclr_jax.export.refused import Refused

DIMENSION = 2**48  # no side of an array is longer
_DTYPE = re.compile(r"[<>|=]?(b1|[iu][1248]|f[248]|c8|c16)")
_EXTENDED = ("bfloat16", "float8_e4m3fn", "float8_e5m2")  # of ml_dtypes


class Array:
    """An array of which the bytes lie in the file: bytes, a view, or text of one letter a byte (protocol 2)."""

    __slots__ = ("shape", "dtype", "fortran", "data")

    def __init__(self):
        self.shape = None

    def fill(self, shape, dtype, fortran, data):
        if type(shape) is int:
            shape = (shape,)
        whole = type(shape) is tuple and all(type(n) is int and 0 <= n < DIMENSION for n in shape)
        if not whole or len(shape) > 32:
            raise Refused("an array of no possible shape")
        if type(dtype) is not DType:
            raise Refused("an array of a type that holds objects")
        if type(data) not in (bytes, memoryview, Text):
            raise Refused("an array without its bytes")
        self.shape, self.dtype, self.fortran, self.data = shape, dtype.value, bool(fortran), data
        if type(data) is not Text and len(data) != self.nbytes:
            raise Refused(f"an array {self.dtype}{list(shape)} of {len(data)} bytes")
        if type(data) is Text and not self.nbytes <= len(data.utf8) <= 2 * self.nbytes:
            raise Refused(f"an array {self.dtype}{list(shape)} of {len(data.utf8)} bytes of text")
        return self

    @property
    def nbytes(self):
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self):
        """The array. Raises ValueError."""
        data = self.data
        if type(data) is Text:
            data = str(data.utf8, "utf-8").encode("latin1")
            if len(data) != self.nbytes:
                raise ValueError(f"an array {self.dtype}{list(self.shape)} of {len(data)} bytes")
        flat = np.frombuffer(data, self.dtype)
        made = flat.reshape(self.shape, order="F" if self.fortran else "C")
        return np.array(made.astype(made.dtype.newbyteorder("="), copy=False), order="C")  # not of the file any more


class Text:
    """A long text, or what protocol 2 makes of long bytes, as it lies in the file."""

    __slots__ = ("utf8",)

    def __init__(self, utf8):
        self.utf8 = utf8


class DType:
    """The type of an array, of which a state may yet turn the bytes."""

    __slots__ = ("value",)

    def __init__(self, value):
        self.value = value


class Global(str):
    """"module name", imported by no one."""

    __slots__ = ()


class Record:
    """The class of a named tuple."""

    __slots__ = ("fields",)

    def __init__(self, fields):
        self.fields = fields

    def made(self, args):
        """{field: value}."""
        if len(self.fields) != len(args):
            raise Refused("a named tuple with other fields than its class")
        return dict(zip(self.fields, args))


def printable(name) -> str:
    """A name out of a file, for a message: one line, and not a long one."""
    text = str(name) if isinstance(name, str) else type(name).__name__.strip("_")
    return ascii(text[:80]).strip("'\"").replace(" ", ".", 1)


def _reconstruct(kind, shape, code):
    if kind != "numpy ndarray":
        raise Refused(f"an array of the class {printable(kind)}")
    return Array()


def _filled(function, args, state, *_):
    """Of jax and dill, which pass on what NumPy's `__reduce__` gave."""
    if function not in _RECONSTRUCT or type(args) is not tuple or type(state) is not tuple or len(state) != 5:
        raise Refused("an array made by other than NumPy")
    return CALLS[function](*args).fill(*state[1:])


def _frombuffer(data, dtype, shape, order):
    return Array().fill(shape, dtype, order == "F", data)


def _scalar(dtype, data):
    return Array().fill((), dtype, False, data)


def _dtype(name, *_):
    if type(name) is Global:
        library, _, name = name.partition(" ")
        if library == "ml_dtypes" and name in _EXTENDED:
            return DType(np.dtype(getattr(ml_dtypes, name)))
    name = name.decode("latin1") if type(name) is bytes else name
    if type(name) is not str or not _DTYPE.fullmatch(name):
        raise Refused(f"an array of the type {printable(name)}, which is no number")
    return DType(np.dtype(name))


def _encode(text, coding):
    """bytes, which protocol 2 has no instruction for."""
    if coding != "latin1":
        raise Refused("text in a code that bytes are not stored in")
    return text if type(text) is Text else text.encode("latin1")


def _namedtuple(name, fields, *_):
    if type(fields) is not tuple or any(type(field) is not str for field in fields):
        raise Refused("a named tuple without names")
    return Record(fields)


def _dict(content=None):
    if content is None:
        return {}
    if type(content) is not dict:
        raise Refused("a mapping that is none")
    return content


_RECONSTRUCT = {f"{where} _reconstruct" for where in ("numpy.core.multiarray", "numpy._core.multiarray")}
CALLS = {
    **dict.fromkeys(_RECONSTRUCT, _reconstruct),
    **{f"numpy.{core}.multiarray scalar": _scalar for core in ("core", "_core")},
    **{f"numpy.{core}.numeric _frombuffer": _frombuffer for core in ("core", "_core")},
    "numpy dtype": _dtype,
    "_codecs encode": _encode,
    **dict.fromkeys(("__builtin__ bytes", "builtins bytes"), lambda: b""),  # without arguments: the empty ones
    "collections OrderedDict": _dict,
    "jax._src.array _reconstruct_array": _filled,
    "jax._src.device_array reconstruct_device_array": _filled,
    **{f"{dill} _create_array": _filled for dill in ("dill._dill", "dill.dill")},
    **{f"{dill} _create_namedtuple": _namedtuple for dill in ("dill._dill", "dill.dill")},
    **{f"haiku._src.data_structures {name}": _dict for name in ("FlatMapping", "FlatMap", "frozendict")},
    "flax.core.frozen_dict FrozenDict": _dict,
}
