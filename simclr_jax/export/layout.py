"""Which of our arrays are which of theirs: one table a layout, run both ways.

A row says where one of our leaves is in their file and how it lies there. `ours` reads a file by the table, `theirs`
writes one by the same table, so what goes out comes back bit for bit.
"""
import difflib
import math
import re
from typing import NamedTuple

import numpy as np

from simclr_jax.errors import UsageError
from simclr_jax.export import tensors
from simclr_jax.export.tensors import Tensor

# way: (theirs -> ours, ours -> theirs). Of several parts theirs are put side by side along their first axis.
WAYS = {
    "as is": (lambda a: a, lambda a: a),
    "linear": (lambda a: a.T, lambda a: a.T),  # PyTorch keeps [out, in]
    "conv": (lambda a: a.transpose(2, 3, 1, 0), lambda a: a.transpose(3, 2, 0, 1)),  # OIHW, ours HWIO
    "inner": (lambda a: a[0], lambda a: a[None]),  # theirs has a leading axis of 1
    "inner2": (lambda a: a[0, 0], lambda a: a[None, None]),
    "inner3": (lambda a: a[0, 0, 0], lambda a: a[None, None, None]),
    "row": (lambda a: a[None], lambda a: a[0]),  # ours has
    # The first part less the second: of a running mean the bias of the layer before it, which no norm lets through.
    "less": (lambda a: np.subtract(*np.split(a, 2)), lambda a: np.concatenate([a, np.zeros_like(a)])),
}


class Part(NamedTuple):
    """Rows first / of .. last / of of one of their arrays; by default all of it."""

    name: str
    first: int = 0
    last: int = 1
    of: int = 1


class Row(NamedTuple):
    """One of our leaves."""

    ours: str  # "ROLE/path/leaf", or "ROLE/stats/path/leaf"
    way: str  # a key of `WAYS`
    parts: tuple[Part, ...]  # of one size


class Layout(NamedTuple):
    """How a library names and stores the arrays of certain nets.

    Attributes:
      rows: all our leaves.
      beside: patterns of those of their names that a net of ours has no place for; they are kept as they are, and
        written again.
      filled: {name: array} that their files hold besides, written where nothing was kept.
      ignored: patterns of what is of no use outside their training, such as queues and optimisers; not kept.
    """

    rows: tuple[Row, ...]
    beside: tuple[str, ...] = ()
    filled: dict = {}
    ignored: tuple[str, ...] = ()


def row(ours: str, way: str, *theirs) -> Row:
    """A row; each of `theirs` is a name or a Part."""
    return Row(ours, way, tuple(Part(t) if isinstance(t, str) else t for t in theirs))


def ours(layout: Layout, theirs: dict[str, Tensor], where: str):
    """Their arrays as ours.

    Args:
      where: what to call the file in a message.

    Returns:
      ({our name: Tensor f32}, {their name: Tensor} of what is kept beside).

    Raises:
      UsageError: names that are missing or unknown, or shapes that do not fit together; all in one line.
    """
    used = {part.name for r in layout.rows for part in r.parts}
    beside = {n: t for n, t in theirs.items() if n not in used and any(re.fullmatch(p, n) for p in layout.beside)}
    missing = [n for n in used if n not in theirs]
    extra = [n for n in theirs if n not in used and n not in beside and n not in layout.filled
             and not any(re.fullmatch(p, n) for p in layout.ignored)]
    if missing or extra:
        said = [f"{len(names)} of its arrays {what} ({_some(names, near)})"
                for names, what, near in ((missing, "are missing", extra), (extra, "have no place", ())) if names]
        raise UsageError(f"{where}: {' and '.join(said)}; it is of another layout or another net")
    return {r.ours: _read(r, theirs, where) for r in layout.rows}, beside


def theirs(layout: Layout, ours: dict[str, Tensor], beside: dict[str, Tensor], where: str) -> dict[str, Tensor]:
    """Our arrays as theirs; the reverse of `ours`.

    Raises:
      UsageError: arrays that are missing, or that the layout has no name for.
    """
    wanted = {r.ours for r in layout.rows}
    missing, extra = [n for n in wanted if n not in ours], [n for n in ours if n not in wanted]
    if missing or extra:
        found = (missing, "the net has no"), (extra, "there is no name for")
        said = [f"{what} {_some(names)}" for names, what in found if names]
        raise UsageError(f"{where}: {' and '.join(said)}")
    pieces = {}
    for r in layout.rows:
        for i, part in enumerate(r.parts):
            pieces.setdefault(part.name, []).append((part, i, r))
    out = {name: _whole(sorted(found, key=lambda p: p[0].first), ours) for name, found in pieces.items()}
    filled = {name: tensors.of(a) for name, a in layout.filled.items() if name not in beside}
    kept = {n: t for n, t in beside.items() if any(re.fullmatch(p, n) for p in layout.beside)}
    return out | kept | filled


def _read(r: Row, theirs, where) -> Tensor:
    shapes = [_cut(part, theirs[part.name].shape, where) for part in r.parts]
    least = min(map(len, shapes))
    shapes = [s[len(s) - least:] if set(s[:len(s) - least]) <= {1} else s for s in shapes]  # without leading axes of 1
    if len(set(shapes)) > 1:
        raise UsageError(f"{where}: {', '.join(p.name for p in r.parts)} have shapes {shapes}, wanted one")
    joined = (len(shapes) * shapes[0][0], *shapes[0][1:]) if shapes[0] else ()
    into = WAYS[r.way][0]
    try:
        shape = into(np.broadcast_to(np.int8(0), joined)).shape
    except (ValueError, IndexError):
        raise UsageError(f"{where}: {r.parts[0].name} has shape {shapes[0]}, which {r.ours} cannot be") from None

    def read():
        parts = [_rows(part, theirs[part.name].read()).reshape(s) for part, s in zip(r.parts, shapes)]
        whole = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return np.asarray(into(whole), np.float32, order="C")
    return Tensor(shape, np.dtype(np.float32), read)


def _whole(found, ours) -> Tensor:
    """One of their arrays from the rows that hold its pieces, in order."""
    def piece(part, i, r, a):
        a = WAYS[r.way][1](a)
        return a if len(r.parts) == 1 else np.split(a, len(r.parts))[i]

    dummies = [piece(part, i, r, np.broadcast_to(np.int8(0), ours[r.ours].shape)).shape for part, i, r in found]
    shape = dummies[0] if len(found) == 1 else (sum(s[0] for s in dummies), *dummies[0][1:])

    def read():
        parts = [piece(part, i, r, ours[r.ours].read()) for part, i, r in found]
        return np.asarray(parts[0] if len(parts) == 1 else np.concatenate(parts), order="C")
    return Tensor(shape, ours[found[0][2].ours].dtype, read)


def _cut(part: Part, shape, where):
    if part.of == 1:
        return tuple(shape)
    if not shape or shape[0] % part.of:
        raise UsageError(f"{where}: {part.name} has shape {tuple(shape)}, whose first axis does not split in {part.of}")
    return (shape[0] // part.of * (part.last - part.first), *shape[1:])


def _rows(part: Part, a):
    size = 1 if part.of == 1 else len(a) // part.of
    return a if part.of == 1 else a[part.first * size:part.last * size]


def _some(names, near=()) -> str:
    """The first names, how many more, and what the first may have been meant to be."""
    names = sorted(names)
    close = difflib.get_close_matches(names[0], near, 1)
    shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    return shown + (f"; is {close[0]} {names[0]}?" if close else "")


def size(weights: dict[str, Tensor]) -> int:
    """Bytes of a set of weights."""
    return sum(math.prod(t.shape) * np.dtype(t.dtype).itemsize for t in weights.values())
