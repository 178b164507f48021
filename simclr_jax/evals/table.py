"""Records as a plain-text table, and as the file `evals.json` of a working directory."""
import json
import os
from typing import Any, Sequence

import numpy as np
from etils import epath

from simclr_jax.errors import UsageError

TITLES = {"knn": "weighted kNN", "linear": "linear probe"}


def text(records: Sequence[dict[str, Any]]) -> str:
    """A block for each eval: rows are kinds of features, columns labels per class, cells test accuracy in percent.

    A cell is the mean, then the standard deviation over draws where there is more than one. A star marks a mean within
    two standard errors (of one test set) of always naming the commonest test class. Of several steps each kind keeps
    its own rows.
    """
    lines, starred = [], False
    for name in dict.fromkeys(r["eval"] for r in records):
        mine = [r for r in records if r["eval"] == name]
        steps = sorted({r["step"] for r in mine})
        columns = sorted({r["labels_per_class"] for r in mine}, key=lambda n: np.inf if n == "all" else n)
        grid = [["labels per class"] + [str(c) for c in columns]]
        for kind, step in dict.fromkeys((r["features"], r["step"]) for r in mine):
            cells = {r["labels_per_class"]: r for r in mine if (r["features"], r["step"]) == (kind, step)}
            grid.append([kind if len(steps) == 1 else f"{kind}, step {step}"]
                        + [_cell(cells[c]) if c in cells else "-" for c in columns])
        starred |= any("*" in cell for row in grid for cell in row[1:])
        lines += [f"{_title(name, mine)}" + (f", step {steps[0]}" if len(steps) == 1 else ""), *_aligned(grid), ""]
    if starred:
        lines.append("* no better than always naming the commonest class "
                     f"({100 * max(r['chance'] for r in records):.1f})")
    return "\n".join(lines).rstrip() + "\n"


def merge(records: Sequence[dict[str, Any]], path: str | os.PathLike) -> list[dict[str, Any]]:
    """Writes `records` into the JSON list at `path` (local or gs://), and returns all that the file now holds.

    A record replaces the one of the same eval, features, labels_per_class and step; others stay. The file is written
    beside its place and moved there, so that a reader never sees half of it.

    Raises:
      UsageError: the file is there but is no JSON list of records.
    """
    path = epath.Path(path)
    old = []
    if path.exists():
        try:
            old = json.loads(path.read_text())
            merged = {_key(r): r for r in old}
        except (ValueError, KeyError, TypeError):
            raise UsageError(f"{path}: not a list of eval records; move it away and run again") from None
    else:
        merged = {}
    merged |= {_key(r): r for r in records}
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.parent / f"{path.name}.{os.getpid()}.tmp"
    beside.write_text(json.dumps(list(merged.values()), indent=1) + "\n")
    beside.replace(path)
    return list(merged.values())


def _key(record):
    return tuple(record[k] for k in ("eval", "features", "labels_per_class", "step"))


def _title(name, records):
    parts = [f"{TITLES.get(name, name)}: test accuracy in %"]
    if len({(r.get("k_asked"), r.get("temperature")) for r in records}) == 1 and "k_asked" in records[0]:
        parts.append(f"k={records[0]['k_asked']} T={records[0]['temperature']:g}")
    if len({r.get("protocol") for r in records}) == 1 and "protocol" in records[0]:
        parts.append({"lbfgs": "logistic regression", "sgd": "SGD"}[records[0]["protocol"]])
    if max(r["draws"] for r in records) > 1:
        parts.append(f"mean ± std of {max(r['draws'] for r in records)} draws")
    return ", ".join(parts)


def _cell(record):
    mean, chance = record["accuracy"], record["chance"]
    star = "*" if mean <= chance + 2 * np.sqrt(chance * (1 - chance) / record["n_test"]) else " "
    spread = f" ±{100 * record['std']:4.1f}" if record["draws"] > 1 else ""
    return f"{100 * mean:.1f}{spread}{star}"


def _aligned(grid):
    widths = [max(map(len, column)) for column in zip(*grid)]
    lines = ["  " + row[0].ljust(widths[0]) + "".join("  " + c.rjust(w) for c, w in zip(row[1:], widths[1:])).rstrip()
             for row in grid]
    return [lines[0], "  " + "-" * (sum(widths) + 2 * len(widths) - 2), *lines[1:]]
