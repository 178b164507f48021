"""A folder of image files, local or remote (gs://...), with class sub-folders or without."""
import hashlib
import os

import numpy as np
from etils import epath

from simclr_jax.data.decode import EXTENSIONS
from simclr_jax.data.host_tf import tensorflow
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

    Files are found by extension (jpg, jpeg, png, bmp, gif, webp, tif, tiff in any case) and decoded by content. Hidden
    files and folders are passed over; links are followed, but into no folder twice. The order is that of the sorted
    paths, and labels that of the sorted class names.

    Args:
      root: the folder.
      split: "train", "test" or "val".
      max_bad: the fraction of files that may be unreadable before the run stops; see `Problems`.
      memory: GiB for the decoded images, which are kept if all are of one size and fit; 0: decode in every epoch.

    Raises:
      UsageError: no such folder or split, no images, or a test class that train does not have.
    """
    if not root:
        raise UsageError("folder: no root given; name your folder of images, as in --config.data.root=DIR")
    top = epath.Path(root).expanduser()
    if split not in SPLITS:
        raise UsageError(f"folder: there is no split {split!r}; there are: {', '.join(SPLITS)}")
    if not top.is_dir():
        raise UsageError(f"folder: {root} is not a folder; give the path of a folder of images")
    folders = _folders(top)
    if "train" in folders and any(name in folders for name in SPLITS["test"]):
        held = next((name for name in SPLITS[split] if name in folders), None)
        if held is None:
            raise UsageError(f"folder: {root} has no split {split!r}; it has: {', '.join(folders)}")
        files, ignored = _images(top / held)
        classes = _classes(top / "train")
        labelled = not _flat(files)
        if labelled and held != "train":
            classes = classes or sorted({f.split("/")[0] for f in files})  # train is flat: test has its own
            strange = sorted({f.split("/")[0] for f in files} - set(classes))
            if strange:
                raise UsageError(f"folder: {top / held} has classes that {top / 'train'} has not: "
                                 f"{', '.join(strange[:5])}; both need the same class folders")
        top = top / held
    else:
        files, ignored = _images(top)
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
    return _source([os.path.join(os.fspath(top), f) for f in files], labels, classes, describe, max_bad, memory,
                   identity="\n".join(files))


def _source(paths, labels, classes, describe, max_bad, memory, identity):
    names, labels = np.array([os.fsencode(p) for p in paths], object), np.array(labels, np.int64)
    tensors = []

    def fetch(index):
        tf = tensorflow()
        with tf.init_scope():  # outside the graph, which would hold a copy for each function of the pipeline
            if not tensors:
                tensors.extend([tf.constant(names), tf.constant(labels)])
        return tf.gather(tensors[0], index), tf.gather(tensors[1], index)

    return of_encoded(len(paths), fetch, paths.__getitem__, Problems(len(paths), max_bad, describe),
                      load=lambda path: read_file(os.fsdecode(path)), classes=classes, describe=describe,
                      identity=identity, memory=memory)


def _folders(top):
    return sorted(p.name for p in top.iterdir() if not p.name.startswith(".") and p.is_dir())


def _flat(files):
    return any("/" not in f for f in files)


def _classes(top):
    """The class folders of a split of which the files are not wanted: those with an image. None if it is flat."""
    if any(p.name.lower().endswith(EXTENSIONS) and not p.name.startswith(".") for p in top.iterdir()):
        return []
    return [name for name in _folders(top) if any(f.lower().endswith(EXTENSIONS) for f in _walk(top / name))]


def _images(top):
    """The image files below a folder, sorted, as paths relative to it with "/"; and the number of other files."""
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
        members = sorted(members, key=lambda f: hashlib.sha256(os.fsencode(f)).digest())
        count = max(1, round(len(members) / 5)) if len(members) > 1 else 0
        chosen += members[:count] if test else members[count:]
    return sorted(chosen)
