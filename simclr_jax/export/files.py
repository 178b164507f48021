"""Weights in local files, whatever wrote them: {name: Tensor}, read one at a time; nothing that is in them is ever run.

| given | how it is read |
|---|---|
| .safetensors, or a directory with model.safetensors or model.safetensors.index.json | header, then single tensors |
| .npz | members of the archive, no pickled objects |
| .pt, .pth, .pth.tar, .bin | torch's weights-only loader, mapped into memory; needs torch |
| .pkl | `unpickle`: a machine that builds arrays and containers and nothing else; mapped into memory |
| PREFIX of PREFIX.index, or a directory with `checkpoint` | TensorFlow's checkpoint reader |

`PATH:KEY` is what lies below KEY, as in weights.pth:teacher and byol.pkl:experiment_state/online_params.
"""
import json
import mmap
import os
import re
from pathlib import Path

import numpy as np

from simclr_jax.errors import UsageError
from simclr_jax.export import _npz, _pickled, _safetensors, _tf, _torch, unpickle
from simclr_jax.export.refused import Refused, refusing, shown
from simclr_jax.export.tensors import Tensor

LEAVES, DEPTH = 200_000, 64  # a file that has more builds a tree out of references to itself
TORCH = ".pt", ".pth", ".bin", ".pt.tar", ".pth.tar"
SUFFIXES = ".safetensors", ".npz", ".pkl", *TORCH


def read(path) -> dict[str, Tensor]:
    """The arrays of a file, in its order, each read when asked for.

    Args:
      path: see above. Nested containers become names joined by "." in files of torch and by "/" in all others; what is
        no array (a step, an optimiser's settings) is passed over.

    Returns:
      {name: Tensor}; bfloat16 is that of ml_dtypes. `Tensor.read` raises UsageError if the file is damaged.

    Raises:
      UsageError: no such file, one that cannot be read, or is not what its name says, or holds more than weights, or
        nothing below KEY. Names the file, and says what is wrong and what to do.
    """
    path, key = parts(os.fspath(path))
    with refusing(path):
        tensors = _open(path)
        for name in tensors:
            _check_name(name)
        if key:
            tensors = _below(tensors, key)
        if not tensors:
            raise Refused("there are no arrays in it", "give a file of weights")
        return tensors


def metadata(path) -> dict[str, str]:
    """The texts beside the tensors of a .safetensors file. UsageError if it is broken."""
    with refusing(path):
        return _safetensors.metadata(Path(path))


def check_finite(tensors: dict[str, Tensor], where) -> dict[str, Tensor]:
    """The same tensors, except that reading one that is not finite is refused.

    Args:
      where: the file or model that they are of, for the message.

    Raises:
      UsageError: from `Tensor.read`: the name of the tensor and how many of its numbers are NaN or infinite.
    """
    def checked(name, tensor):
        def load():
            x = tensor.read()
            if x.dtype.kind not in "biu" and not (good := np.isfinite(x)).all():
                bad = x.size - int(good.sum())
                raise UsageError(f"{where}: {shown(name)} holds {bad} of {x.size} numbers that are NaN or infinite; "
                                 "take an earlier checkpoint, or get the file again")
            return x
        return tensor._replace(read=load)
    return {name: checked(name, tensor) for name, tensor in tensors.items()}


def config(path) -> dict:
    """What the JSON files say that weights came with: config.json, open_clip_config.json, and preprocessor_config.json
    under "preprocessor"; {} if there are none.

    Raises:
      UsageError: a file that is no JSON, or no object.
    """
    path, out = parts(os.fspath(path))[0], {}
    for name in ("config.json", "open_clip_config.json", "preprocessor_config.json"):
        file = (path if path.is_dir() else path.parent) / name
        if file.exists():
            with refusing(file):
                held = json.loads(file.read_text())
                if not isinstance(held, dict):
                    raise Refused("it is no JSON object")
            out |= {"preprocessor": held} if name.startswith("preprocessor") else held
    return out


def parts(text):
    """(path, key) of PATH or PATH:KEY."""
    if "\0" in text:
        raise UsageError(f"{shown(text)}: a path has no NUL in it; give the path of a file")
    if "://" in text:
        raise UsageError(f"{shown(text)}: weights are read from local files; download it first")
    if not _there(text) and ":" in text:
        path, _, key = text.rpartition(":")
        if key and _there(path):
            return Path(path).expanduser(), key
        text = path if key and _suffix(path) else text
    if not _there(text):
        raise UsageError(f"{shown(text)}: there is no such file; give one that ends in {', '.join(SUFFIXES)}, or a "
                         "TensorFlow checkpoint, or PATH:KEY for a part of one")
    return Path(text).expanduser(), ""


def _there(text):
    path = os.path.expanduser(text)
    return os.path.lexists(path) or os.path.lexists(path + ".index")


def _suffix(path):
    return next((suffix for suffix in sorted(SUFFIXES, key=len)[::-1] if str(path).lower().endswith(suffix)), None)


def _open(path):
    """What is in it, by its kind."""
    if path.is_dir() and ((path / _safetensors.INDEX).exists() or (path / "model.safetensors").exists()):
        return _safetensors.directory(path)
    prefix = None if _suffix(path) and path.is_file() else _tf.prefix(path)
    if prefix is not None:
        return _tf.read(prefix)
    if path.is_dir():
        raise Refused("a directory without model.safetensors, model.safetensors.index.json or `checkpoint`",
                      "give the file of the weights")
    suffix = _suffix(path)
    if suffix is None:
        raise Refused(f"it ends in none of {', '.join(SUFFIXES)}, and there is no {path.name}.index",
                      "rename it to what it is")
    if not path.is_file():
        raise Refused("it is no file", "give the file of the weights")
    if not path.stat().st_size:
        raise Refused("it is empty")
    if suffix in TORCH:
        return _flat(*_torch.read(path), ".")
    if suffix == ".pkl":
        return _flat(*_pickle(path), "/")
    return (_npz if suffix == ".npz" else _safetensors).read(path)


def _pickle(path):
    do = "nothing of it was run; have its arrays saved again as .npz or .safetensors"
    with open(path, "rb") as f:
        data = memoryview(mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ))
    if data[0] != 0x80:
        raise Refused("it is no pickle of protocol 2 or newer", do)
    try:
        return unpickle.load(data), lambda x: _array(path, x)
    except Refused as e:
        raise Refused(f"it holds {e}, and only arrays and containers are taken from a pickle", do) from None


def _array(path, x):
    if not isinstance(x, _pickled.Array) or x.shape is None:
        return None

    def load():
        with refusing(path):
            return x.read()
    return Tensor(x.shape, x.dtype.newbyteorder("="), load)


def _flat(tree, leaf, separator):
    """{name: Tensor} of nested containers; `leaf`: value -> Tensor | None."""
    flat, seen, stack = {}, 0, [("", tree, 0)]
    while stack:
        name, value, depth = stack.pop()
        seen += 1
        if seen > LEAVES or depth > DEPTH:
            raise Refused("it holds containers that hold each other without end")
        if isinstance(value, (dict, list, tuple)):
            items = value.items() if isinstance(value, dict) else enumerate(value)
            inside = [(f"{name}{separator}{_key(k)}" if name else _key(k), v, depth + 1) for k, v in items]
            stack += inside[::-1]
        elif (tensor := leaf(value)) is not None:
            if name in flat:
                raise Refused(f"it has two arrays named {shown(name)}")
            flat[name] = tensor
    return flat


def _key(key):
    return key.decode("utf-8") if isinstance(key, bytes) else str(key)


def _below(tensors, key):
    """Those whose names go on below KEY, whichever way the file joins them."""
    wholes = [key.strip("./") + separator for separator in "/."]
    found = {name[len(whole):]: tensor for name, tensor in tensors.items() for whole in wholes
             if name.startswith(whole)}
    if not found:
        heads = list(dict.fromkeys(re.split("[/.]", name)[0] for name in tensors))
        more = f" and {len(heads) - 8} more" if len(heads) > 8 else ""
        raise Refused(f"there are no arrays below '{shown(key)}'", f"it has {', '.join(map(shown, heads[:8]))}{more}")
    return found


def _check_name(name):
    """Refuses names that no library gives a tensor, and that mislead wherever one is printed or becomes a path."""
    parts = name.replace("\\", "/").split("/")
    if not name.isprintable() or ".." in parts or parts[0] == "" or len(name) > 1000:
        raise Refused(f"it has a tensor named '{shown(name)}', which no library writes", "do not use it")
