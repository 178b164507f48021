"""Arrays and containers out of a pickle, and nothing else.

A pickle is a program. Python's own unpickler runs it by importing what it names and calling what it imported; an
allow-list in `find_class` still leaves it calling, setting attributes and looking them up. Here the program runs on a
machine that has no imports, no calls and no attributes: a global is a name until a row of `_pickled.CALLS` takes it,
and what comes of it is one of the values there. Whatever has no row is refused by name.
"""
import struct

from simclr_jax.export._pickled import CALLS, Array, DType, Global, Record, Text, printable
from simclr_jax.export.refused import Refused

INSTRUCTIONS = 5_000_000  # a ResNet-200 with optimiser and two targets has some 200,000
_LARGE = 1024  # bytes from which on a string stays in the file until it is wanted


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
        self.push(str(part, "utf-8", "surrogatepass") if n < _LARGE else Text(part))

    def tuple_of(self, n):
        self.push(tuple([self.pop() for _ in range(n)][::-1]))

    def name(self, module, name):
        if type(module) is not str or type(name) is not str:
            raise Refused("a global without a name")
        self.push(Global(f"{module} {name}"))

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
        if type(function) is Record:
            return self.push(function.made(args))
        if type(function) is not Global:
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
        if type(kind) is not Record or type(args) is not tuple:
            raise Refused(f"an object of the class {printable(kind)}")
        self.push(kind.made(args))

    def build(self):
        state = self.pop()
        target = self.stack[-1] if self.stack else None
        if type(target) is Array and target.shape is None and type(state) is tuple and len(state) == 5:
            target.fill(*state[1:])
        elif type(target) is DType and type(state) is tuple and len(state) >= 5:
            order = state[1].decode("latin1") if type(state[1]) is bytes else state[1]
            if any(part is not None for part in state[2:5]) or order not in ("<", ">", "|", "="):
                raise Refused("an array of records")
            if order == ">":
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
