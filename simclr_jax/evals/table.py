"""Records as a plain-text table, and as the file `evals.json` of a working directory."""
import json
import os
from typing import Any, Sequence

import numpy as np
from etils import epath

from simclr_jax.errors import UsageError

TITLES = {"knn": "weighted kNN", "linear": "linear probe", "finetune": "fine-tuned"}


def text(records: Sequence[dict[str, Any]]) -> str:
    """A block for each eval: rows are kinds of features, columns labels per class, cells test accuracy in percent.

    A cell is the mean, then the standard deviation over draws where there is more than one. A star marks a mean within
    two standard errors (of one test set) of always naming the commonest test class. Of several steps each kind keeps
    its own rows. Zero-shot and retrieval need no labels: their columns are their numbers, and they have a block for
    each test set, with chance in its last rows.
    """
    lines, starred = [], False
    for name in dict.fromkeys(r["eval"] for r in records):
        mine = [r for r in records if r["eval"] == name]
        if name in BLOCKS:
            title, key, grid_of = BLOCKS[name]
            for same in _groups(mine, key):
                steps = sorted({r["step"] for r in same})
                lines += [title(same[0]) + (f", step {steps[0]}" if len(steps) == 1 else ""),
                          *_aligned(grid_of(same, lambda r: _row(r, steps))), ""]
            continue
        steps = sorted({r["step"] for r in mine})
        columns = sorted({r["labels_per_class"] for r in mine}, key=_amount)
        shares = any(str(c).endswith("%") for c in columns)
        grid = [["labels" if shares else "labels per class"]
                + [f"{c} a class" if shares and isinstance(c, int) else str(c) for c in columns]]
        for kind, step in dict.fromkeys((r["features"], r["step"]) for r in mine):
            cells = {r["labels_per_class"]: r for r in mine if (r["features"], r["step"]) == (kind, step)}
            grid.append([_row(dict(features=kind, step=step), steps)]
                        + [_cell(cells[c]) if c in cells else "-" for c in columns])
        starred |= any("*" in cell for row in grid for cell in row[1:])
        lines += [f"{_title(name, mine)}" + (f", step {steps[0]}" if len(steps) == 1 else ""), *_aligned(grid), ""]
    if starred:
        lines.append("* no better than always naming the commonest class "
                     f"({100 * max(r['chance'] for r in records if r['eval'] not in BLOCKS):.1f})")
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


def _amount(labels):
    """By which columns are sorted: labels a class, then shares, then all."""
    if isinstance(labels, int):
        return 0, labels
    return (2, 0) if labels == "all" else (1, float(labels.removesuffix("%")))


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


def _row(record, steps):
    return record["features"] if len(steps) == 1 else f"{record['features']}, step {record['step']}"


def _groups(records, key):
    """Records of one test set together, in order of first appearance."""
    found = {}
    for r in records:
        found.setdefault(json.dumps([r[k] for k in key]), []).append(r)
    return found.values()


def _zero_shot(records, name):
    cells = [("top 1", "accuracy"), ("top 5", "top5"), ("mean per class", "mean_per_class")]
    cells = [c for c in cells if records[0][c[1]] is not None]
    return [["", *(title for title, _ in cells)],
            *([name(r), *(_percent(r[k]) for _, k in cells)] for r in records),
            ["always the commonest class", _percent(records[0]["chance"]), *[""] * (len(cells) - 1)]]


def _retrieval(records, name):
    columns = list(records[0]["image_to_text"])
    ways = [("image_to_text", "image to text"), ("text_to_image", "text to image")]
    titles = [f"R@{c[1:]}" if c != "median_rank" else "median rank" for c in columns]
    return [["", *titles],
            *([f"{name(r)}, {title}", *(f"{v:g}" if c == "median_rank" else _percent(v) for c, v in r[way].items())]
              for r in records for way, title in ways),
            *([f"random order, {title}", *(_percent(records[0]["chance"][way].get(c)) for c in columns)]
              for way, title in ways)]


def _percent(share):
    return "" if share is None else f"{100 * share:.1f}"


# Of the evals that need no labels: (title of a block, what its records share, the block's cells).
BLOCKS = {
    "zero_shot": (lambda r: f"zero-shot: test accuracy in %, {r['n_test']} images, {r['classes']} classes, "
                            f"{r['templates']} template{'s' * (r['templates'] != 1)}",
                  ("n_test", "classes", "templates", "chance"), _zero_shot),
    "retrieval": (lambda r: f"retrieval: recall in %, {r['n_images']} images, {r['n_texts']} captions",
                  ("n_images", "n_texts", "chance"), _retrieval)}


def _aligned(grid):
    widths = [max(map(len, column)) for column in zip(*grid)]
    lines = ["  " + row[0].ljust(widths[0]) + "".join("  " + c.rjust(w) for c, w in zip(row[1:], widths[1:])).rstrip()
             for row in grid]
    return [lines[0], "  " + "-" * (sum(widths) + 2 * len(widths) - 2), *lines[1:]]
