"""Captions of images: one drawn for each row of a batch, and how they are read from the files that hold them."""
import concurrent.futures
import csv
import io
import json
import os
import posixpath
import re
from typing import NamedTuple

import numpy as np
from etils import epath

from simclr_jax import keys
from simclr_jax.data.source import Source, read_file
from simclr_jax.errors import UsageError

IMAGE = ("image", "file", "filename", "filepath", "file_name")  # names of the field that holds the image's path
_FILES = ("captions.csv", "captions.jsonl", "metadata.csv", "metadata.jsonl")
CAPTION = re.compile(r"(caption|text|title)s?[ _-]?\d*")  # names of fields with captions: caption, captions, caption_2
_KEY = 0x74657874  # folded into a row's key for the draw of its caption; far above the numbers of views


def check(source: Source, tokenizer) -> None:
    """Refuses a tokenizer for a source without captions."""
    if tokenizer is not None and source.captions is None:
        raise UsageError(f"{source.describe}: it has no captions, and there is a tokenizer for them; take a source "
                         "that has (folder: a captions.csv beside the images; webdataset, tfrecord, tfds: text_key; "
                         "digits: captions=true), or no tokenizer for images alone")


def drawn(source: Source, tokenizer, seed: int, ids: np.ndarray, found: np.ndarray) -> np.ndarray:
    """One caption for each row, as token ids i32[n,L]: each of an example's is as likely as another, by the row's key.

    Args:
      tokenizer: has `encode` (list of n str -> i32[n,L]).
      ids: u32[n,2], the rows' ids, whose keys draw; found: i64[n], the examples whose images they hold.

    Raises:
      UsageError: a caption that cannot be read.
    """
    def one(index, u):
        try:
            captions = source.captions(int(index))
        except UsageError:
            raise
        except (OSError, ValueError) as e:
            raise UsageError(f"{source.describe}: the captions of example {index} cannot be read: "
                             f"{' '.join(str(e).split())}; mend or remove them") from None
        return captions[int(u * len(captions))]

    u = keys.uniform(keys.fold_in(keys.row_keys(seed, ids), _KEY), 1)[:, 0].astype(np.float64)
    return tokenizer.encode([one(i, x) for i, x in zip(found, u)])


def texts(value) -> tuple[str, ...]:
    """Captions as found: a text (str or UTF-8) or a list of them -> at least one, stripped.

    Raises:
      ValueError: another type, not UTF-8, none, or an empty one; the message says which.
    """
    found = []
    for text in value if isinstance(value, (list, tuple)) else [value]:
        if isinstance(text, bytes):
            try:
                text = text.decode("utf-8-sig")
            except UnicodeDecodeError:
                raise ValueError("its caption is not UTF-8") from None
        if not isinstance(text, str):
            raise ValueError(f"its caption is {json.dumps(text)[:60]}, not a text")
        found.append(text.strip())
    if not all(found) or not found:
        raise ValueError("its caption is empty" if found else "it has no caption")
    return tuple(found)


class Listed(NamedTuple):
    """An image as a file of captions names it."""

    image: str  # its path, with no . or .. in the middle
    captions: tuple[str, ...]
    split: str | None  # lower case
    line: int  # where it is named first


def find(folder: epath.Path) -> epath.Path | None:
    """The file of captions in a folder, if there is one.

    A metadata file (the convention of Hugging Face's image folders) counts only if it names images and captions.
    """
    for name in _FILES:
        if (folder / name).is_file() and (name.startswith("captions") or _names_captions(folder / name)):
            return folder / name
    return None


def read(path: epath.Path) -> list[Listed]:
    """The images that a file of captions lists, in the order of their first lines; the captions of a path are joined.

    .csv: a header with a column of `IMAGE` (any case) and at least one of captions (caption, text, title, caption_2);
    comma or tab; several captions of an image in several columns or lines. .jsonl: an object a line with the same names
    for its fields; captions may be lists. Blank lines are passed over. A column or field `split` is kept.

    Raises:
      UsageError: a line that cannot be read, or a caption that is empty: file and line are named.
    """
    found, number = {}, 1
    try:
        for number, image, captions, split in (_csv if path.suffix == ".csv" else _jsonl)(_text(path)):
            if not isinstance(image, str) or not image.strip():
                raise ValueError(f"it names no image (a field {', '.join(IMAGE[:-1])} or {IMAGE[-1]})")
            if split is not None and (not isinstance(split, str) or not split.strip()):
                raise ValueError("its split is empty")
            image, split = image.strip(), split and split.strip().lower()
            image = image if "://" in image else posixpath.normpath(image)
            before = found.setdefault(image, Listed(image, (), split, number))
            if before.split != split:
                raise ValueError(f"{image} is in split {split!r} here and in {before.split!r} in line {before.line}")
            found[image] = before._replace(captions=before.captions + texts(captions))
    except _LineError as e:
        raise UsageError(f"{path}, line {e.args[0]}: {e.args[1]}; mend or remove that line") from None
    except ValueError as e:
        raise UsageError(f"{path}, line {number}: {e}; mend or remove that line") from None
    except OSError as e:
        raise UsageError(f"{path} cannot be read ({e.strerror or e}); make it readable") from None
    if not found:
        raise UsageError(f"{path} lists no images; wanted a line for each, with its path and its caption")
    return list(found.values())


def resolve(names, base: epath.Path, present: set[str]) -> dict[str, tuple[str, str, bool]]:
    """The images that a file of captions in `base` means: name -> (whole path, path below `base` or "", is it there).

    The sub-folder that an image lies in need not be named if there is no other of that name. `present`: what is below.
    """
    root = os.fspath(base)
    found = {name: (os.path.join(root, name), name, True) for name in names if name in present}
    rest, below = [name for name in names if name not in present], {}
    for path in present if rest else ():
        below.setdefault(os.path.basename(path), []).append(path)
    for name in rest:
        ends = [path for path in below.get(os.path.basename(name), ()) if path.endswith("/" + name)]
        if len(ends) == 1:
            found[name] = os.path.join(root, ends[0]), ends[0], True
    rest = [name for name in rest if name not in found]  # missing, hidden, or outside of the folder
    whole = [name if "://" in name else os.path.join(root, name) for name in rest]
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        there = pool.map(lambda path: epath.Path(path).exists(), whole)
    places = zip(rest, whole, there)
    return found | {name: (path, "" if is_there else name, is_there) for name, path, is_there in places}


class _LineError(Exception):
    """(line, what is wrong with it)."""


def _text(path):
    data = read_file(str(path))
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise _LineError(data.count(b"\n", 0, e.start) + 1, "it is not UTF-8") from None


def _columns(header):
    """(number of the image's, numbers of the captions', number of the split's or None) of a line of names."""
    names = [name.strip().lower() for name in header]
    images = [i for i, name in enumerate(names) if name in IMAGE]
    split = names.index("split") if "split" in names else None
    return images[0] if len(images) == 1 else None, [i for i, n in enumerate(names) if CAPTION.fullmatch(n)], split


def _rows(text):
    first = text.split("\n", 1)[0]
    tab = "\t" in first and "," not in first
    return csv.reader(io.StringIO(text, newline=""), delimiter="\t" if tab else ",", strict=True)


def _csv(text):
    rows, start = _rows(text), 1
    try:
        header = next(rows, [])
        image, captions, split = _columns(header)
        if image is None or not captions:
            raise _LineError(1, f"the header is {', '.join(header)[:80]!r}; wanted one column of {', '.join(IMAGE)}, "
                                "and one or more of caption, text or title")
        start = rows.line_num + 1  # a quoted field may hold the ends of lines
        for row in rows:
            if row and len(row) != len(header):
                raise _LineError(start, f"it has {len(row)} fields and the header {len(header)}; put captions with "
                                        "commas into double quotes")
            if row:
                given = [row[i] for i in captions if row[i].strip()] or ""  # not every image has as many as another
                yield start, row[image], given, None if split is None else row[split]
            start = rows.line_num + 1
    except csv.Error as e:
        raise _LineError(start, str(e)) from None


def _jsonl(text):
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError):
            fields = None
        if not isinstance(fields, dict):
            raise _LineError(number, "it is not a JSON object")
        names = list(fields)
        image, captions, split = _columns(names)
        values = [fields[names[i]] for i in captions]
        given = [c for v in values if v is not None for c in (v if isinstance(v, list) else [v])]
        yield (number, None if image is None else fields[names[image]], given,
               None if split is None else fields[names[split]])


def _names_captions(path):
    """Whether the first line of a metadata file names an image and a caption. It is no error of the user's if not."""
    with path.open("rb") as f:
        first = f.readline().decode("utf-8-sig", errors="replace")
    try:
        names = list(json.loads(first)) if path.suffix == ".jsonl" else next(_rows(first), [])
    except (ValueError, RecursionError, TypeError, csv.Error):
        return False
    image, captions, _ = _columns([str(n) for n in names])
    return image is not None and bool(captions)
