"""A folder of image files, local or remote (gs://...), with class sub-folders or a file of captions or without."""
import hashlib
import os
from typing import NamedTuple

import numpy as np
from etils import epath

from simclr_jax.data import captions
from simclr_jax.data.decode import EXTENSIONS
from simclr_jax.data.source import Problems, Source, of_encoded, read_file
from simclr_jax.errors import UsageError

SPLITS = {"train": ("train",), "test": ("test", "val", "validation"), "val": ("val", "validation")}  # their folders


def make(*, root: str, split: str = "train", max_bad: float = 0.01, memory: float = 1.0) -> Source:
    """A folder of images.

    The layouts, as found:

    - `root/train` beside `root/test` or `root/val` (or `validation`): those are the splits, each laid out as below.
      "test" falls back to val where there is no test, as for ImageNet.
    - images directly in `root`: an unlabelled set, with what lies in sub-folders; all of it is "train".
    - only sub-folders: each is a class, with images at any depth. Of each class a fifth, those whose paths hash lowest,
      is "test" and the rest "train": the same files on every machine.

    A folder with a file of captions (`captions.csv`, `captions.jsonl`, `metadata.csv`, `metadata.jsonl`; see
    `captions.read`) holds the images that it lists and no others, wherever below they lie; paths are relative to it.
    It lies in `root` or in each of the split folders. A column or field `split` (train, test, val or validation) says
    which split an image is in; else the split folders do; else a tenth of the images, those whose paths hash lowest,
    is "test". Class sub-folders, two or more, are labels all the same. Images that are listed but not there count as
    unreadable.

    Files are found by extension (jpg, jpeg, png, bmp, gif, webp, tif, tiff in any case) and decoded by content. Hidden
    files and folders are passed over; links are followed, but into no folder twice. The order is that of the sorted
    paths, and labels that of the sorted class names.

    Args:
      root: the folder.
      split: "train", "test" or "val".
      max_bad: the fraction of files that may be unreadable or missing before the run stops; see `Problems`.
      memory: GiB for the decoded images, which are kept if all are of one size and fit; 0: decode in every epoch.

    Raises:
      UsageError: no such folder or split, no images, a test class that train does not have, or a file of captions that
        cannot be read.
    """
    if not root:
        raise UsageError("folder: no root given; name your folder of images, as in --config.data.root=DIR")
    top = epath.Path(root).expanduser()
    if split not in SPLITS:
        raise UsageError(f"folder: there is no split {split!r}; there are: {', '.join(SPLITS)}")
    if not top.is_dir():
        raise UsageError(f"folder: {root} is not a folder; give the path of a folder of images")
    folders = _folders(top)
    parted = "train" in folders and any(name in folders for name in SPLITS["test"])
    listed = _listed(top, folders, parted, split)
    if listed:
        return _captioned(root, listed, split, max_bad, memory)
    if parted:
        held = next((name for name in SPLITS[split] if name in folders), None)
        if held is None:
            raise UsageError(f"folder: {root} has no split {split!r}; it has: {', '.join(folders)}")
        files, ignored = images(top / held)
        classes = _classes(top / "train") if captions.find(top / "train") is None else []
        labelled = not _flat(files)
        if labelled and held != "train":
            classes = classes or sorted({f.split("/")[0] for f in files})  # train is flat: test has its own
            strange = sorted({f.split("/")[0] for f in files} - set(classes))
            if strange:
                raise UsageError(f"folder: {top / held} has classes that {top / 'train'} has not: "
                                 f"{', '.join(strange[:5])}; both need the same class folders")
        top = top / held
    else:
        files, ignored = images(top)
        labelled = not _flat(files)
        classes = sorted({f.split("/")[0] for f in files}) if labelled else []
        if files and not labelled and split != "train":
            raise UsageError(f"folder: {root} holds images without class folders, so all of it is split 'train' and "
                             f"there is no {split!r}; lay it out as train/ and {split}/ to have one")
        if labelled and split == "val":
            raise UsageError(f"folder: {root} has no val folder; there are 'train' and 'test', a fifth held out")
        if labelled:
            files = _held_out(files, split == "test")
    if not files:
        raise UsageError(f"folder: no images for split {split!r} in {top} ({ignored} other files); wanted files that "
                         f"end in {', '.join(EXTENSIONS)}")
    classes = classes if labelled else []
    number = {name: i for i, name in enumerate(classes)}
    labels = [number[f.split("/")[0]] if labelled else -1 for f in files]
    what = f"{len(classes)} classes" if labelled else "no labels"
    describe = f"folder {top} ({split}): {len(files)} images, {what}"
    return _source([os.path.join(os.fspath(top), f) for f in files], labels, classes, describe,
                   Problems(len(files), max_bad, describe), memory, identity="\n".join(files))


class _Item(NamedTuple):
    """An image that a file of captions lists."""

    name: str  # its path as listed
    path: str  # whole
    inside: str  # relative to the folder of its split; "" if it is not below that
    split: str | None
    texts: tuple[str, ...]
    line: str  # where it is listed
    there: bool


def _listed(top, folders, parted, split):
    """What the files of captions list: the root's, or else those of its split folders; [] if the split has none."""
    file = captions.find(top)
    known = [name for name in SPLITS["train"] + SPLITS["test"] if name in folders and (parted or name == "train")]
    if file:
        return _items(file, None, known if parted else [])
    files = {name: file for name in known if (file := captions.find(top / name))}
    held = next((name for name in SPLITS[split] if name in known), None)
    if held and held not in files:
        return []
    return [item for name, file in files.items() for item in _items(file, name if parted else None, [])]


def _items(file, split, folders):
    """The items of a file of captions. `split`: of all of them; else `folders`, which are splits, may say so."""
    listed = captions.read(file)
    paths = captions.resolve([item.image for item in listed], file.parent, set(_walk(file.parent)))
    items = []
    for item in listed:
        path, inside, there = paths[item.image]
        of, line = item.split or split, f"{file}, line {item.line}"
        first, _, rest = inside.partition("/")
        if first in folders:
            of, inside = item.split or first, rest
        if of is not None and of not in SPLITS["train"] + SPLITS["test"]:
            raise UsageError(f"folder: {line}: {item.image} is in split {of!r}; wanted train, test, val or validation")
        items.append(_Item(item.image, path, inside, of, item.captions, line, there))
    without = next((i for i in items if i.split is None), None)
    if without and any(i.split is not None for i in items):
        raise UsageError(f"folder: {without.line}: {without.name} is in no split, and others are; name one for each")
    return items


def _captioned(root, items, split, max_bad, memory):
    """The source of one split of what files of captions list."""
    splits = sorted({item.split for item in items if item.split})
    if splits:
        held = next((name for name in SPLITS[split] if name in splits), None)
        if held is None:
            raise UsageError(f"folder: {root} has captions for no split {split!r}; it has: {', '.join(splits)}")
        chosen = [item for item in items if item.split == held]
    elif split == "val":
        raise UsageError(f"folder: {root} has no val split; there are 'train' and 'test', a tenth held out")
    else:
        wanted = set(_lowest([item.name for item in items], 10, split == "test"))
        chosen = [item for item in items if item.name in wanted]
        if not chosen:
            raise UsageError(f"folder: {root} has one image, too few to hold out any for 'test'")
    chosen = sorted(chosen, key=lambda item: item.name)
    classes = sorted({item.inside.split("/")[0] for item in items if item.there})
    if len(classes) < 2 or any("/" not in item.inside for item in items if item.there):
        classes = []
    there, number = [item for item in chosen if item.there], {name: i for i, name in enumerate(classes)}
    texts = [item.texts for item in there]
    labels = [number[item.inside.split("/")[0]] if classes else -1 for item in there]
    what = f"{len(classes)} classes" if classes else "no labels"
    describe = f"folder {root} ({split}): {len(there)} images, {sum(map(len, texts))} captions, {what}"
    problems = Problems(len(chosen), max_bad, describe)
    for i, item in enumerate(item for item in chosen if not item.there):
        problems.add(i - len(chosen), f"{item.path}: not there ({item.line})")
    if problems.error:
        raise problems.error
    return _source([item.path for item in there], labels, classes, describe, problems, memory, texts=texts,
                   identity=repr([(item.name, item.texts) for item in there]))


def _source(paths, labels, classes, describe, problems, memory, identity, texts=None):
    return of_encoded(len(paths), lambda index: (read_file(paths[index]), labels[index]), paths.__getitem__, problems,
                      classes=classes, describe=describe, identity=identity, memory=memory,
                      captions=texts and texts.__getitem__)


def _folders(top):
    return sorted(p.name for p in top.iterdir() if not p.name.startswith(".") and p.is_dir())


def _flat(files):
    return any("/" not in f for f in files)


def _classes(top):
    """The class folders of a split of which the files are not wanted: those with an image. None if it is flat."""
    if any(p.name.lower().endswith(EXTENSIONS) and not p.name.startswith(".") for p in top.iterdir()):
        return []
    return [name for name in _folders(top) if any(f.lower().endswith(EXTENSIONS) for f in _walk(top / name))]


def images(top) -> tuple[list[str], int]:
    """The image files below a folder, sorted, as paths relative to it with "/"; and the number of other files.

    By extension; hidden ones are passed over, links followed, into no folder twice. UsageError if one cannot be listed.
    """
    files = list(_walk(top))
    images = sorted(f for f in files if f.lower().endswith(EXTENSIONS))
    return images, len(files) - len(images)


def _walk(top):
    """All files below a folder that are not hidden, relative to it. A folder reached by links is entered once."""
    remote, top = "://" in os.fspath(top), os.fspath(top)
    entered = set()

    def refuse(e):
        raise UsageError(f"folder: {e.filename or top} cannot be listed ({e.strerror or e}); make it readable")

    walk = epath.Path(top).walk(on_error=refuse) if remote else os.walk(top, followlinks=True, onerror=refuse)
    for folder, folders, files in walk:
        if not remote:
            real = os.path.realpath(folder)
            if real in entered:
                folders[:] = []
                continue
            entered.add(real)
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        below = os.path.relpath(os.fspath(folder), top).replace(os.sep, "/") if os.fspath(folder) != top else "."
        for name in files:
            if not name.startswith("."):
                yield name if below == "." else f"{below}/{name}"


def _held_out(files, test):
    """The fifth of each class whose paths hash lowest, or the rest."""
    by_class = {}
    for f in files:
        by_class.setdefault(f.split("/")[0], []).append(f)
    chosen = []
    for members in by_class.values():
        chosen += _lowest(members, 5, test)
    return sorted(chosen)


def _lowest(names, share, test):
    """One in `share` of the names, those that hash lowest, or the rest."""
    names = sorted(names, key=lambda name: hashlib.sha256(os.fsencode(name)).digest())
    count = max(1, round(len(names) / share)) if len(names) > 1 else 0
    return names[:count] if test else names[count:]
