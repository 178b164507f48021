"""Shards: files of many examples, found by name, read in threads, and what was once found out about them kept."""
import concurrent.futures
import contextlib
import glob
import hashlib
import io
import itertools
import os
import re
import uuid
import zipfile

import numpy as np
from etils import epath

from simclr_jax.data.host_tf import tensorflow
from simclr_jax.errors import UsageError


def of_split(who: str, root: str, split: str, test_root: str, pattern: str):
    """The shards of a split, those of `root` or of `test_root`: (paths, bytes of each). UsageError: see `find`."""
    if split not in ("train", "test", "val"):
        raise UsageError(f"{who}: there is no split {split!r}; there are: train, test, val")
    if split != "train" and not test_root:
        raise UsageError(f"{who}: no shards are given for split {split!r}; name those held out, as in "
                         f"--config.data.test_root='DIR/{pattern}'")
    files = find(root if split == "train" else test_root, who, pattern)
    return files, sizes_of(files, who, "leave it out, or make it readable")


def find(root: str, who: str, pattern: str) -> list[str]:
    """The shards that a text names: paths or folders, separated by "::" or commas, with {000..012}, {a,b}, * and ?.

    Args:
      root: local or remote (gs://...).
      who: the source, for messages.
      pattern: of the shards in a folder, such as "*.tar".

    Returns:
      Paths in the order named, each once.

    Raises:
      UsageError: none, or one that is not there.
    """
    if root.startswith("pipe:"):
        raise UsageError(f"{who}: {root} is a command, which allows no random access; give paths of files")
    gfile, files = tensorflow().io.gfile, []
    for part in re.split(r"::|,(?![^{]*\})", root):
        for path in _braces(part.strip()):
            path = path if "://" in path else os.path.expanduser(path)
            path = f"{path.rstrip('/')}/{pattern}" if path and gfile.isdir(path) else path
            wild = re.search(r"[*?[]", path)
            named = (gfile.glob if "://" in path else glob.glob)(path) if wild else [path] if path else []
            found = sorted(named)
            if not found and path:
                raise UsageError(f"{who}: there are no files {path}; give the path of a shard, a pattern such as "
                                 f"DIR/{pattern} or DIR/{{00000..00012}}{pattern[1:]}, or a folder of them")
            files += found
    if not files:
        raise UsageError(f"{who}: no root given; name your shards, as in --config.data.root='DIR/{pattern}'")
    return list(dict.fromkeys(files))


def _braces(text):
    """A text with {a,b} or {08..12} in it -> the texts it stands for, numbers as wide as the first."""
    parts = re.split(r"\{([^{}]*)\}", text)
    choices = []
    for body in parts[1::2]:
        ends = re.fullmatch(r"(\d+)\.\.(\d+)", body)
        numbers = range(int(ends[1]), int(ends[2]) + 1) if ends else ()
        choices.append([f"{n:0{len(ends[1])}}" for n in numbers] if ends else body.split(","))
    return ["".join(itertools.chain(*zip(parts[::2], [*chosen, ""]))) for chosen in itertools.product(*choices)]


def sizes_of(files: list[str], who: str, remedy: str) -> list[int]:
    """Bytes of each file. Raises UsageError for one that cannot be read."""
    try:
        return in_threads(lambda file: epath.Path(file).stat().length, files)
    except OSError as e:
        raise UsageError(f"{who}: {e.filename or files[0]} cannot be read ({e.strerror or e}); {remedy}") from None


def in_threads(function, *columns) -> list:
    """`map` with several threads, for what waits for disks and networks."""
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        return list(pool.map(function, *columns))


def kept(folder: epath.Path, name: str, files: list[str], sizes: list[int], *, who: str, make, good, part: str = ""):
    """`make()`, an array or a dict of arrays, kept in a file for the next time.

    The file is in `folder`, or in the user's cache directory if that cannot be written to; its name holds the names and
    sizes of the files, so that files made anew get an index anew; and `part`, which says what of them is wanted.
    `good`: whether what was kept is of use.
    """
    text = "\n".join(f"{os.path.basename(f)} {size}" for f, size in zip(files, sizes)) + part
    stem, end = os.path.splitext(name)
    name = f"{stem}_{hashlib.sha256(os.fsencode(text)).hexdigest()[:16]}{end}"
    cache = epath.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "simclr_jax"
    for place in (folder, cache):
        try:
            found = np.load(io.BytesIO((place / name).read_bytes()), allow_pickle=False)
            found = found if isinstance(found, np.ndarray) else dict(found)
            if good(found):
                return found
        except (OSError, ValueError, EOFError, zipfile.BadZipFile):
            continue  # none yet, or one that is damaged
    try:
        made, data = make(), io.BytesIO()
    except OSError as e:
        raise UsageError(f"{who}: {e.filename or 'a shard'} cannot be read ({e.strerror or e})") from None
    np.savez(data, **made) if isinstance(made, dict) else np.save(data, made)
    for place in (folder, cache):
        try:
            place.mkdir(parents=True, exist_ok=True)
            part = place / f".{name}.{uuid.uuid4().hex}"  # other processes may be at it too
            part.write_bytes(data.getvalue())
            part.replace(place / name)
            break
        except OSError:
            continue  # read-only; without any index the files are scanned again next time
    return made


@contextlib.contextmanager
def open_file(file: str):
    """A file to read and seek in, local or remote. Whatever fails is an OSError."""
    if "://" not in file:
        with open(file, "rb", buffering=0) as f:
            yield f
        return
    tf = tensorflow()
    try:
        with tf.io.gfile.GFile(file, "rb") as f:
            yield f
    except tf.errors.OpError as e:
        raise OSError(f"{file}: {' '.join(str(e).split())[:200]}") from None
