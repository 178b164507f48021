"""Embeddings of all images below a folder, in parts that survive a kill and one file at the end.

    F.npz          paths str[n], relative to the folder, sorted; embeddings f32[n,D]; unreadable str[m]
    F.npz.parts/   run.json, what the parts are of; 00000.npz, ... a run of files each; gone when F.npz is there
"""
import hashlib
import json
import os
import shutil
import zipfile
import zlib
from pathlib import Path
from typing import Callable

import numpy as np

from simclr_jax.errors import UsageError
from simclr_jax.export.refused import shown
from simclr_jax.export.write import replaced

PART = 4096  # files; what a kill costs at most
SAID = {"model": "another model", "files": "another folder, or files in it have changed"}


def identity(model, root, files) -> dict:
    """What parts must agree in to be of one run: the files of a model's directory, and those of a folder of images.

    Of images their names, sizes and times of change count.
    """
    made = hashlib.sha256()
    for path in sorted(p for p in Path(model).expanduser().iterdir() if p.is_file() and not p.name.startswith(".")):
        with open(path, "rb") as f:
            made.update(f"{path.name}\0{hashlib.file_digest(f, 'sha256').hexdigest()}\n".encode())
    listed = hashlib.sha256()
    for file in files:
        try:
            stat = os.stat(os.path.join(root, file))
            listed.update(os.fsencode(f"{file}\0{stat.st_size} {stat.st_mtime_ns}\n"))
        except OSError:  # a broken link: unreadable, and said to be so in the end
            listed.update(os.fsencode(f"{file}\0\n"))
    return {"model": made.hexdigest(), "files": listed.hexdigest()}


def write(out, files: list[str], embed: Callable, of: dict, *, part: int = PART, say: Callable = print) -> None:
    """Embeds files and writes them to `out`; called again after a kill, goes on with the next part.

    Args:
      out: the .npz to write; not there yet.
      files: names, sorted.
      embed: n names -> (f32[m,D], i64[m]): the features of those that can be read and their places among the n, in
        order.
      of: what `identity` gave.
      part: names embedded and stored at once; say: takes lines for the user.

    Raises:
      UsageError: no files, none that can be read, features that are not finite; `out` is there; parts of another run; a
        place that cannot be written.
    """
    out = Path(os.fspath(out)).expanduser()
    if out.suffix != ".npz":
        raise UsageError(f"--out={out}: wanted a name that ends in .npz, as in --out=features.npz")
    if not files:
        raise UsageError(f"--out={out}: there are no images to embed; give a folder with some")
    folder, of = out.with_name(out.name + ".parts"), of | {"part": part, "count": len(files)}
    if _begun(out, folder, of):
        shutil.rmtree(folder)  # killed after the last part had become part of the whole
        return
    places = [folder / f"{k:05d}.npz" for k in range(-(-len(files) // part))]
    for k, place in enumerate(places):
        if _load(place) is None:
            _embed(place, files[k * part:(k + 1) * part], embed)
            say(f"{min((k + 1) * part, len(files))} of {len(files)} images")
    unreadable = _join(folder / "whole.npz", places)
    os.replace(folder / "whole.npz", out)
    shutil.rmtree(folder)
    rest = f"; {unreadable} cannot be read and are listed in it under 'unreadable'" if unreadable else ""
    say(f"{out}: embeddings of {len(files) - unreadable} images{rest}")


def _begun(out, folder, of):
    """Whether the parts have become `out` already. Makes their directory; refuses those of another run."""
    record = folder / "run.json"
    try:
        found = json.loads(record.read_text()) if record.exists() else None
    except ValueError:
        found = {}
    if found is None and os.path.lexists(folder) and not (folder.is_dir() and not os.listdir(folder)):
        raise UsageError(f"{folder}: is in the way and holds no parts of a run; remove it, or give another --out")
    differ = [] if found is None else [key for key in of if found.get(key) != of[key]]
    if differ:
        raise UsageError(f"{folder}: holds parts of {SAID.get(differ[0], 'another run')}; remove it to start anew, or "
                         "give another --out")
    if os.path.lexists(out):
        if found is None:
            raise UsageError(f"{out}: is there already; remove it, or give another --out")
        return True
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UsageError(f"{folder}: cannot be made ({e.strerror}); give an --out where you may write") from None
    if found is None:
        with replaced(record) as f:
            f.write(json.dumps(of).encode())
    return False


def _embed(place, files, embed):
    x, found = embed(files)
    bad = np.flatnonzero(~np.isfinite(x).all(axis=1)) if len(x) else []
    if len(bad):
        raise UsageError(f"the embedding of {shown(files[found[bad[0]]])} (and {len(bad) - 1} more) is not finite; the "
                         "weights are broken, or overflow in their precision")
    there = set(found.tolist())
    with replaced(place) as f:
        np.savez(f, paths=_texts([files[i] for i in found]), embeddings=np.asarray(x, np.float32),
                 unreadable=_texts([file for i, file in enumerate(files) if i not in there]))


def _texts(texts):
    return np.array(texts, "U" if texts else "U1")


def _load(place):
    """The arrays of a part; None if it is not there or not whole."""
    try:
        with open(place, "rb") as f, np.load(f, allow_pickle=False) as z:  # which leaves open what it was given by name
            return {name: z[name] for name in ("paths", "embeddings", "unreadable")}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        return None


def _join(whole, places):
    """Writes the parts as one archive, a part in memory at a time, and returns how many files could not be read."""
    paths, unreadable, shapes = [], [], []
    for place in places:
        found = _load(place)
        paths += found["paths"].tolist()
        unreadable += found["unreadable"].tolist()
        shapes.append(found["embeddings"].shape)
    width = {d for n, d in shapes if n}
    if not paths:
        raise UsageError(f"none of the {len(unreadable)} images can be read, the first being {shown(unreadable[0])}; "
                         f"give a folder of pictures, and remove {whole.parent}")
    if len(width) > 1:
        raise UsageError(f"{whole.parent}: holds embeddings of widths {sorted(width)}; remove it to start anew")
    with replaced(whole) as f, zipfile.ZipFile(f, "w", zipfile.ZIP_STORED) as archive:
        for name, texts in (("paths", paths), ("unreadable", unreadable)):
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, _texts(texts), allow_pickle=False)
        with archive.open("embeddings.npy", "w", force_zip64=True) as member:
            header = {"descr": "<f4", "fortran_order": False, "shape": (len(paths), *width)}
            np.lib.format.write_array_header_1_0(member, header)
            for place in places:
                member.write(np.ascontiguousarray(_load(place)["embeddings"], "<f4").data)
    return len(unreadable)
