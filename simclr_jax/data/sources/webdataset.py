"""Shards in tar files (WebDataset, as img2dataset writes them), local or remote (gs://...), with random access.

Members of one folder and one name up to the first dot are a sample: 00012.jpg, 00012.txt and 00012.json; what follows
the dot says what each of them is.
"""
import json

import numpy as np
from etils import epath

from simclr_jax.data import captions
from simclr_jax.data.memory import Recent
from simclr_jax.data.source import Problems, Source, of_encoded
from simclr_jax.data.sources import _shards as shards
from simclr_jax.errors import UsageError

_BLOCK = 512
_EMPTY = (b"1", b"2", b"3", b"4", b"5", b"6")  # kinds of members without data, whatever their size says
_IMAGE, _TEXT, _LABEL = range(3)  # columns of an index


def make(*, root: str, split: str = "train", test_root: str = "", image_key: str = "jpg;jpeg;png;webp",
         text_key: str = "txt;caption;json", label_key: str = "cls", max_bad: float = 0.01,
         memory: float = 1.0) -> Source:
    """Tar shards of images, with captions and labels if there are any.

    The places of all members are found once and kept; see `_shards.kept`. So examples are read in any order, shuffled
    over all shards, and each comes once an epoch. Processes share out whole shards; see `order.make`. A sample without
    an image or a caption counts as unreadable. Of two members of one name the later counts, as in tar.

    Args:
      root: the shards: paths, patterns such as `DIR/{00000..00012}.tar` and `DIR/*.tar`, or folders, separated by "::"
        or commas.
      split: "train" is `root`; "test" or "val" is `test_root`.
      test_root: the shards held out, named like `root`; "": there are none.
      image_key: what stands after the dot for an image; of several the first that a sample has.
      text_key: likewise for its caption: UTF-8, or for json the field caption or text, a text or a list of them.
        "": no captions are wanted.
      label_key: likewise for its label, a number in digits; "": none are wanted. A sample without one has label -1.
      max_bad: the fraction of samples that may be unreadable before the run stops; see `Problems`.
      memory: GiB for the decoded images, which are kept if all are of one size and fit; 0: decode in every epoch.

    Raises:
      UsageError: no such split or shards, a shard that is damaged, cut off or compressed, a label that is no number, no
        samples, or too many without an image or a caption.
    """
    files, sizes = shards.of_split("webdataset", root, split, test_root, "*.tar")
    keys = [tuple(k for k in key.lower().split(";") if k) for key in (image_key, text_key, label_key)]
    # Sizes of tar files are round, so that a shard made anew may have the old one's.
    times = shards.in_threads(lambda file: epath.Path(file).stat().mtime, files)
    made = shards.kept(epath.Path(files[0]).parent, "tar_index.npz", files, sizes, who="webdataset",
                       part=repr((keys, times)), good=lambda found: isinstance(found, dict), make=lambda: _joined(
                           shards.in_threads(lambda file, size: _scan(file, size, keys), files, sizes)))
    places, names = made["places"], made["names"]
    total = len(places)
    if not total:
        raise UsageError(f"webdataset: {len(files)} shards from {root} have no samples in them")
    lacking = (places[:, _IMAGE, 0] < 0) | (bool(text_key) & (places[:, _TEXT, 0] < 0))
    rows, shard = np.flatnonzero(~lacking), np.repeat(np.arange(len(files)), made["counts"])
    counts = tuple(np.bincount(shard[rows], minlength=len(files)).tolist())
    labels = made["labels"][rows]
    classes = tuple(str(i) for i in range(labels.max(initial=-1) + 1))
    root = root if split == "train" else test_root
    describe = (f"webdataset {root} ({split}): {len(rows)} images in {len(files)} shards, "
                + ("captions" if text_key else "no captions"))
    problems, recent = Problems(total, max_bad, describe), Recent()

    def where(row):
        return f"{files[shard[row]]}: {bytes(names[row]).decode(errors='replace')}"

    for row in np.flatnonzero(lacking).tolist():
        missing = image_key if places[row, _IMAGE, 0] < 0 else text_key
        problems.add(row - total, f"{where(row)}: no member .{missing.replace(';', ', .')}")
        if problems.error:
            raise problems.error

    def member(f, row, column):
        offset, length = map(int, places[row, column])
        f.seek(offset)
        data = f.read(length)
        if len(data) != length:
            raise OSError(f"cut off at byte {offset + len(data)} of the shard")
        return data

    def texts(f, row):
        data = member(f, row, _TEXT)
        return of_json(data) if keys[_TEXT][made["kinds"][row]].split(".")[-1] == "json" else captions.texts(data)

    def load(index):
        with shards.open_file(files[shard[rows[index]]]) as f:
            if text_key:
                recent.put(int(index), texts(f, rows[index]))  # one without a caption has a stand-in too
            return member(f, rows[index], _IMAGE), labels[index]

    def read_texts(index):
        with shards.open_file(files[shard[rows[index]]]) as f:
            return texts(f, rows[index])

    identity = repr([[epath.Path(f).name for f in files], sizes, keys])
    return of_encoded(len(rows), load, lambda i: where(rows[i]), problems, classes=classes, describe=describe,
                      identity=identity, memory=memory, captions=(lambda index: recent.get(index, read_texts)) if text_key else None, shards=counts)


def of_json(data: bytes) -> tuple[str, ...]:
    """The captions in a JSON object, in its field caption or, without one, text. Raises ValueError."""
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError):
        raise ValueError("its caption is not JSON in UTF-8") from None
    named = [key for key in ("caption", "captions", "text") if isinstance(fields, dict) and fields.get(key) is not None]
    if not named:
        raise ValueError("its JSON has no field caption or text")
    return captions.texts(fields[named[0]])


def _scan(file, size, keys):
    """A shard's samples: (places i64[n,3,2], offset and length or -1; names; kinds i8[n], of text; labels i64[n])."""
    columns = {key: (column, rank) for column, ends in enumerate(keys) for rank, key in enumerate(ends)}
    samples = {}
    with shards.open_file(file) as f:
        for name, offset, length in _members(f, file, size):
            folder, slash, base = name.rpartition("/")
            key, _, end = base.partition(".")
            if not key:
                continue  # hidden, such as the ._files of macOS
            sample = samples.setdefault(folder + slash + key, [None] * 3)
            column, rank = columns.get(end.lower(), (None, 0))
            if column is not None and (sample[column] is None or rank <= sample[column][0]):
                sample[column] = rank, offset, length
        labels = [_label(f, file, name, sample[_LABEL]) for name, sample in samples.items()]
    places = np.array([[part[1:] if part else (-1, -1) for part in sample] for sample in samples.values()], np.int64)
    kinds = np.array([sample[_TEXT][0] if sample[_TEXT] else -1 for sample in samples.values()], np.int8)
    return (places.reshape(-1, 3, 2), np.array([name.encode(errors="replace") for name in samples], "S"), kinds,
            np.array(labels, np.int64))


def _label(f, file, name, part):
    if part is None:
        return -1
    f.seek(part[1])
    text = f.read(part[2]).strip()
    if not text.isdigit() or len(text) > 6:
        raise UsageError(f"webdataset: {file}: the label of {name} is {text[:40]!r}, not a number; "
                         "label_key='' for none")
    return int(text)


def _joined(scans):
    """One index of the indices of all shards."""
    places, names, kinds, labels = zip(*scans)
    width = max(n.dtype.itemsize for n in names)
    return {"counts": np.array([len(p) for p in places]), "places": np.concatenate(places),
            "names": np.concatenate([n.astype(f"S{max(1, width)}") for n in names]), "kinds": np.concatenate(kinds),
            "labels": np.concatenate(labels)}


def _members(f, file, size):
    """The regular files in a tar file: (name, offset, length). POSIX ustar and pax, and the GNU format."""
    def damaged(what):
        return UsageError(f"webdataset: {file} is {what} at byte {offset}; fetch it again or leave it out")

    offset, following = 0, {}  # what an extended header says of the next member
    while True:
        f.seek(offset)
        header = f.read(_BLOCK)
        if not offset and header[:2] == b"\x1f\x8b":
            raise UsageError(f"webdataset: {file} is compressed, which allows no random access; gunzip it")
        if len(header) < _BLOCK:
            raise damaged("cut off (it has no end mark)")
        if not any(header):
            return
        if header[148:156].strip(b" \0").lstrip(b"0") != b"%o" % (sum(header) - sum(header[148:156]) + 8 * ord(" ")):
            raise damaged("damaged, or no tar file,")
        kind, data = header[156:157], offset + _BLOCK
        try:
            length = 0 if kind in _EMPTY else int(following.get("size") or _number(header[124:136]))
            if data + length > size:
                raise damaged("cut off, in the member")
            if kind == b"L":
                following["path"] = f.read(length).split(b"\0")[0].decode(errors="replace")
            elif kind == b"x":
                following.update(_pax(f.read(length)))
            elif kind not in (b"g", b"K"):
                if kind in (b"0", b"\0", b"7"):
                    yield following.get("path") or _name(header), data, length
                following = {}
        except UsageError:
            raise
        except ValueError:
            raise damaged("damaged") from None
        offset = data + -(-length // _BLOCK) * _BLOCK


def _name(header):
    name, prefix = (part.split(b"\0")[0].decode(errors="replace") for part in (header[:100], header[345:500]))
    return f"{prefix}/{name}" if prefix and header[257:263] == b"ustar\0" else name


def _number(field):
    """An octal number, or one of base 256 where the first bit is set. Raises ValueError."""
    if field[0] & 0x80:
        return int.from_bytes(field[1:], "big")
    return int(field.split(b"\0")[0].strip() or b"0", 8)


def _pax(data):
    """The records "LENGTH KEY=VALUE\\n" of an extended header."""
    found = {}
    while data:
        length = int(data.partition(b" ")[0])
        if not 0 < length <= len(data):
            raise ValueError("a record of an impossible length")
        key, _, value = data[:length].partition(b" ")[2].rstrip(b"\n").partition(b"=")
        found[key.decode()] = value.decode(errors="replace")
        data = data[length:]
    return found
