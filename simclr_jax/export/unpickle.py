"""Arrays and containers out of a pickle, and nothing else.

A pickle is a program. Python's own unpickler runs it by importing what it names and calling what it imported; an
allow-list in `find_class` still leaves it calling, setting attributes and looking them up. Here the program runs on a
machine that has no imports, no calls and no attributes: a global is a name until a row of `CALLS` takes it, and what
comes of it is one of the values below. Whatever has no row is refused by name.

The rows are those of NumPy's own pickles (1 and 2), of `jax.Array` (a NumPy pickle within), of Haiku's and Flax's
immutable mappings, and of dill, which stores named tuples by their field names: together what the checkpoints of
DeepMind's BYOL consist of (deepmind-research, byol/utils/checkpointing.py: dill, protocol 2, of a dict with the named
tuple `_ByolExperimentState`). Named tuples become dicts of their fields.
"""
import math
import re
import struct

import ml_dtypes
import numpy as np

from simclr_jax.export.refused import Refused

INSTRUCTIONS = 5_000_000  # a ResNet-200 with optimiser and two targets has some 200,000
DIMENSION = 2**48  # no side of an array is longer
_DTYPE = re.compile(r"[<>|=]?(b1|[iu][1248]|f[248]|c8|c16)")
_EXTENDED = ("bfloat16", "float8_e4m3fn", "float8_e5m2")  # of ml_dtypes
_LARGE = 1024  # bytes from which on a string stays in the file until it is wanted


class Array:
    """An array of which the bytes lie in the file: bytes, a view, or text of one letter a byte (protocol 2)."""

    __slots__ = ("shape", "dtype", "fortran", "data")

    def __init__(self):
        self.shape = None

    def fill(self, shape, dtype, fortran, data):
        if type(shape) is int:
            shape = (shape,)
        if type(shape) is not tuple or any(type(n) is not int or not 0 <= n < DIMENSION for n in shape) or len(shape) > 32:
            raise Refused("an array of no possible shape")
        if type(dtype) is not _DType:
            raise Refused("an array of a type that holds objects")
        if type(data) not in (bytes, memoryview, _Text):
            raise Refused("an array without its bytes")
        self.shape, self.dtype, self.fortran, self.data = shape, dtype.value, bool(fortran), data
        if type(data) is not _Text and len(data) != self.nbytes:
            raise Refused(f"an array {self.dtype}{list(shape)} of {len(data)} bytes")
        if type(data) is _Text and not self.nbytes <= len(data.utf8) <= 2 * self.nbytes:
            raise Refused(f"an array {self.dtype}{list(shape)} of {len(data.utf8)} bytes of text")
        return self

    @property
    def nbytes(self):
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self):
        """The array. Raises ValueError."""
        data = self.data
        if type(data) is _Text:
            data = str(data.utf8, "utf-8").encode("latin1")
            if len(data) != self.nbytes:
                raise ValueError(f"an array {self.dtype}{list(self.shape)} of {len(data)} bytes")
        flat = np.frombuffer(data, self.dtype)
        made = flat.reshape(self.shape, order="F" if self.fortran else "C")
        return np.array(made.astype(made.dtype.newbyteorder("="), copy=False), order="C")  # not of the file any more


class _Text:
    __slots__ = ("utf8",)

    def __init__(self, utf8):
        self.utf8 = utf8


class _DType:
    __slots__ = ("value",)

    def __init__(self, value):
        self.value = value


class _Global(str):
    """"module name", imported by no one."""

    __slots__ = ()


class _Record:
    __slots__ = ("fields",)

    def __init__(self, fields):
        self.fields = fields


class _Mark:
    __slots__ = ()


def load(data: memoryview):
    """What a pickle builds: dicts, lists, tuples, numbers, strings and `Array`s, whose bytes stay where they are.

    Args:
      data: the whole file. Memory grows with the number of its instructions, not with what they claim.

    Raises:
      Refused: at the first instruction that weights have no use for. ValueError, IndexError, struct.error: damage.
    """
    return _Machine(data).run()


class _Machine:
    def __init__(self, data):
        self.data, self.at, self.stack, self.memo = data, 0, [], {}

    def run(self):
        for _ in range(INSTRUCTIONS):
            code = self.take(1)[0]
            if code == 0x2E:  # STOP
                value = self.pop()
                if self.stack:
                    raise Refused("more than one object")
                return value
            step = _STEPS.get(code)
            if step is None:
                raise Refused(f"instruction {code:#04x}, which builds no arrays")
            step(self)
        raise Refused(f"more than {INSTRUCTIONS} instructions")

    def take(self, n):
        if n < 0 or self.at + n > len(self.data):
            raise ValueError("it ends too early")
        self.at += n
        return self.data[self.at - n:self.at]

    def number(self, form):
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def line(self):
        window = bytes(self.data[self.at:self.at + 256])
        end = window.find(b"\n")
        if end < 0:
            raise Refused("a name that does not end")
        self.at += end + 1
        return window[:end].decode("utf-8")

    def push(self, value):
        self.stack.append(value)

    def pop(self):
        if not self.stack or type(self.stack[-1]) is _Mark:
            raise ValueError("it takes what is not there")
        return self.stack.pop()

    def marked(self):
        items = []
        while True:
            item = self.stack.pop()
            if type(item) is _Mark:
                return items[::-1]
            items.append(item)

    def top(self, kind):
        if not self.stack or type(self.stack[-1]) is not kind:
            raise Refused(f"items for what is no {kind.__name__}")
        return self.stack[-1]

    def string(self, form):
        n = self.number(form)
        part = self.take(n)
        self.push(bytes(part) if n < _LARGE else part)

    def text(self, form):
        n = self.number(form)
        part = self.take(n)
        self.push(str(part, "utf-8", "surrogatepass") if n < _LARGE else _Text(part))

    def tuple_of(self, n):
        self.push(tuple([self.pop() for _ in range(n)][::-1]))

    def name(self, module, name):
        if type(module) is not str or type(name) is not str:
            raise Refused("a global without a name")
        self.push(_Global(f"{module} {name}"))

    def set(self, pairs):
        target = self.top(dict)
        if len(pairs) % 2:
            raise ValueError("a key without a value")
        for key, value in zip(pairs[::2], pairs[1::2]):
            if not (type(key) in (str, bytes, bool) or type(key) is int and abs(key) < 2**60):
                raise Refused("a key that is neither a name nor a number")
            target[key] = value

    def set_one(self):
        value, key = self.pop(), self.pop()
        self.set([key, value])

    def append(self, items):
        self.top(list).extend(items)

    def global_(self):
        module = self.line()
        self.name(module, self.line())

    def stack_global(self):
        name = self.pop()
        self.name(self.pop(), name)

    def call(self):
        args, function = self.pop(), self.pop()
        if type(args) is not tuple:
            raise ValueError("a call without arguments")
        if type(function) is _Record:
            return self.push(_record(function, args))
        if type(function) is not _Global:
            raise Refused("a call of what is no function")
        rule = CALLS.get(function)
        if rule is None:
            raise Refused(f"the function {printable(function)}")
        try:
            self.push(rule(*args))
        except TypeError:
            raise Refused(f"{printable(function)} with other arguments than an array has") from None

    def new(self):
        args, kind = self.pop(), self.pop()
        if type(kind) is not _Record or type(args) is not tuple:
            raise Refused(f"an object of the class {printable(kind)}" if type(kind) is _Global else "an object of no class")
        self.push(_record(kind, args))

    def build(self):
        state = self.pop()
        target = self.stack[-1] if self.stack else None
        if type(target) is Array and target.shape is None and type(state) is tuple and len(state) == 5:
            target.fill(*state[1:])
        elif type(target) is _DType and type(state) is tuple and len(state) >= 5:
            if any(part is not None for part in state[2:5]) or state[1] not in ("<", ">", "|", "=", b"<", b">", b"|", b"="):
                raise Refused("an array of records")
            if state[1] in (">", b">"):
                target.value = target.value.newbyteorder(">")
        else:
            raise Refused("a state for what is no array")

    def put(self, index):
        if not self.stack or type(self.stack[-1]) is _Mark:
            raise ValueError("it remembers what is not there")
        self.memo[index] = self.stack[-1]

    def get(self, index):
        if index not in self.memo:
            raise ValueError("it recalls what it never had")
        self.push(self.memo[index])

    def long(self, n):
        if not 0 <= n <= 32:
            raise Refused("a number of more than 32 bytes")
        self.push(int.from_bytes(self.take(n), "little", signed=True))


def _record(record, args):
    """{field: value} of a named tuple."""
    if len(record.fields) != len(args):
        raise Refused("a named tuple with other fields than its class")
    return dict(zip(record.fields, args))


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
    if type(name) is _Global:
        library, _, name = name.partition(" ")
        if library == "ml_dtypes" and name in _EXTENDED:
            return _DType(np.dtype(getattr(ml_dtypes, name)))
    name = name.decode("latin1") if type(name) is bytes else name
    if type(name) is not str or not _DTYPE.fullmatch(name):
        raise Refused(f"an array of the type {printable(name)}, which is no number")
    return _DType(np.dtype(name))


def _encode(text, coding):
    """bytes, which protocol 2 has no instruction for."""
    if coding != "latin1":
        raise Refused("text in a code that bytes are not stored in")
    return text if type(text) is _Text else text.encode("latin1")


def _namedtuple(name, fields, *_):
    if type(fields) is not tuple or any(type(field) is not str for field in fields):
        raise Refused("a named tuple without names")
    return _Record(fields)


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


def printable(name) -> str:
    """A name out of a file, for a message: one line, and not a long one."""
    text = str(name) if isinstance(name, str) else type(name).__name__.strip("_")
    return ascii(text[:80]).strip("'\"").replace(" ", ".", 1)


_STEPS = {ord(code): step for code, step in {
    "\x80": lambda m: m.take(1), "\x95": lambda m: m.take(8), "(": lambda m: m.push(_Mark()),
    "0": lambda m: m.pop(), "1": lambda m: m.marked(),
    "N": lambda m: m.push(None), "\x88": lambda m: m.push(True), "\x89": lambda m: m.push(False),
    "J": lambda m: m.push(m.number("<i")), "K": lambda m: m.push(m.number("<B")), "M": lambda m: m.push(m.number("<H")),
    "\x8a": lambda m: m.long(m.number("<B")), "\x8b": lambda m: m.long(m.number("<i")),
    "G": lambda m: m.push(m.number(">d")),
    "U": lambda m: m.string("<B"), "T": lambda m: m.string("<i"),
    "C": lambda m: m.string("<B"), "B": lambda m: m.string("<I"), "\x8e": lambda m: m.string("<Q"),
    "\x96": lambda m: m.string("<Q"),
    "\x8c": lambda m: m.text("<B"), "X": lambda m: m.text("<I"), "\x8d": lambda m: m.text("<Q"),
    "]": lambda m: m.push([]), "}": lambda m: m.push({}), ")": lambda m: m.push(()),
    "l": lambda m: m.push(m.marked()), "t": lambda m: m.push(tuple(m.marked())),
    "\x85": lambda m: m.tuple_of(1), "\x86": lambda m: m.tuple_of(2), "\x87": lambda m: m.tuple_of(3),
    "a": lambda m: m.append([m.pop()]), "e": lambda m: m.append(m.marked()),
    "s": lambda m: m.set_one(), "u": lambda m: m.set(m.marked()),
    "c": lambda m: m.global_(), "\x93": lambda m: m.stack_global(),
    "R": lambda m: m.call(), "b": lambda m: m.build(), "\x81": lambda m: m.new(),
    "q": lambda m: m.put(m.number("<B")), "r": lambda m: m.put(m.number("<I")), "\x94": lambda m: m.put(len(m.memo)),
    "h": lambda m: m.get(m.number("<B")), "j": lambda m: m.get(m.number("<I")),
}.items()}
