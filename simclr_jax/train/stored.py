"""One step on disk, as we read it: a sealed JSON record, and every leaf with its checksum.

    <step>/meta/metadata   {"crc", "record": {"meta", "leaves": [[path, dtype, shape, crc], ...]}}
    <step>/state/          an OCDBT database of zarr arrays, one a leaf, named by its path

Orbax writes both. We read the arrays with TensorStore itself: leaf by leaf, so that a damaged one is named, and without
barriers or event loops, so that one process may fail alone and none leaves tracebacks behind.
"""
import json
import math
import re
import zlib

import jax
import numpy as np
import tensorstore

from simclr_jax.errors import UsageError
from simclr_jax.train import checksum


def named(tree) -> dict:
    """{path: leaf} in the tree's order, such as "params/backbone/kernel"; what is not an array becomes one."""
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    leaves = {jax.tree_util.keystr(path, simple=True, separator="/"): x if hasattr(x, "dtype") else np.asarray(x)
              for path, x in flat}
    if len(leaves) != len(flat):
        raise ValueError("two leaves of the state have the same path")
    return leaves


def seal(meta: dict, leaves: dict, crcs: list[int]) -> dict:
    """The record of a step as JSON gives it back, under the CRC-32 of its canonical text.

    Raises:
      UsageError: JSON cannot hold `meta`.
    """
    record = {"meta": meta, "leaves": [[name, str(x.dtype), list(x.shape), crc]
                                       for (name, x), crc in zip(leaves.items(), crcs)]}
    try:
        text = json.dumps(record, sort_keys=True)
    except (TypeError, ValueError) as e:
        raise UsageError(f"checkpoint: meta must be what JSON can hold: {e}") from None
    return {"crc": zlib.crc32(text.encode()), "record": json.loads(text)}


def record(step_directory) -> dict:
    """{"meta", "leaves"} of a step (epath.Path). Raises whatever a damaged file makes it raise."""
    sealed = json.loads((step_directory / "meta" / "metadata").read_text())
    if sealed["crc"] != zlib.crc32(json.dumps(sealed["record"], sort_keys=True).encode()):
        raise ValueError("the checksum of meta/metadata does not match")
    return sealed["record"]


def difference(leaves: list, wanted: dict) -> str:
    """The first leaf in which a record and {path: array} differ, in words; empty if none does."""
    saved = {name: (dtype, tuple(shape)) for name, dtype, shape, _ in leaves}
    wanted = {name: (str(x.dtype), tuple(x.shape)) for name, x in wanted.items()}
    differ = [name for name in {**saved, **wanted} if saved.get(name) != wanted.get(name)]
    if not differ:
        return ""
    there, here = (f"{of[differ[0]][0]}{list(of[differ[0]][1])}" if differ[0] in of else "missing"
                   for of in (saved, wanted))
    more = f" (and {len(differ) - 1} more leaves differ)" if len(differ) > 1 else ""
    return f"leaf {differ[0]} is {there} in the checkpoint and {here} in this config{more}"


def read(step_directory, wanted: dict, crcs: dict):
    """Reads every leaf of a step, checking those that a process has whole.

    Args:
      step_directory: epath.Path.
      wanted: {path: array or ShapeDtypeStruct}; a leaf with a sharding is placed by it, one without stays numpy.
      crcs: {path: u32} from the record.

    Returns:
      ({path: leaf}, [paths still to be checked: those spread over processes, see `checksum.of_leaves`]).

    Raises:
      ValueError: a checksum, shape or dtype is wrong, or TensorStore could not read; starts with the leaf's path.
    """
    context = tensorstore.Context({"cache_pool#index": {"total_bytes_limit": 10**8}})
    path = step_directory.as_posix() + "/state/"
    base = path if "://" in path else {"driver": "file", "path": path}

    def read_leaf(item):
        name, like = item
        try:
            return _read_leaf(context, base, name, like, crcs[name])
        except Exception as e:
            raise ValueError(f"{name}: {one_line(e)}") from None

    leaves = dict(zip(wanted, checksum.parallel(read_leaf, wanted.items())))
    return leaves, [name for name, x in leaves.items() if not checksum.whole_everywhere(x)]


def _read_leaf(context, base, name, like, crc):
    shape, dtype, sharding = tuple(like.shape), np.dtype(like.dtype), getattr(like, "sharding", None)
    if not math.prod(shape):
        part = np.zeros(shape, dtype).__getitem__  # of empty leaves nothing is stored
    else:
        store = tensorstore.open({
            "driver": "zarr", "fill_missing_data_reads": False,
            "kvstore": {"driver": "ocdbt", "base": base, "path": name + "/", "cache_pool": "cache_pool#index"},
        }, context=context, open=True, read=True).result()
        if (store.shape, store.dtype.numpy_dtype) != (shape, dtype):
            raise ValueError(f"is stored as {store.dtype.name}{list(store.shape)}, not {dtype}{list(shape)}")
        if sharding is None or checksum.held_whole(sharding, shape):
            value = store.read().result()
            if checksum.of_array(value) != crc:
                raise ValueError("its checksum does not match")
            part = value.__getitem__
        else:
            part = lambda index: store[index].read().result()  # noqa: E731
    if sharding is None:
        return part(...)
    return jax.make_array_from_callback(shape, sharding, part)


def one_line(e: BaseException) -> str:
    """An error's kind and text in some 300 characters: its start, and its end, where TensorStore has the cause."""
    text = " ".join(re.sub(r"\[(source locations|tensorstore_spec)=.*", "", str(e), flags=re.DOTALL).split())
    text = text if len(text) <= 300 else f"{text[:100]} … {text[-200:]}"
    return text if type(e) is ValueError else f"{type(e).__name__}: {text}"
