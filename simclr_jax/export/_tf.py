"""TensorFlow's checkpoints, by its own reader, one variable at a time."""
import glob
import os
from pathlib import Path

import numpy as np

from simclr_jax.export.refused import Refused, line, refusing, shown
from simclr_jax.export.tensors import Tensor


def _tensorflow():
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # errors only
    import tensorflow as tf
    return tf


def prefix(path: Path) -> Path | None:
    """The prefix of a checkpoint, meant by PREFIX, PREFIX.index, or a directory whose `checkpoint` names it."""
    if path.is_dir():
        if not (path / "checkpoint").is_file():
            return None
        tf = _tensorflow()
        state = tf.train.get_checkpoint_state(str(path))
        if state is None or not state.model_checkpoint_path:
            raise Refused("its file `checkpoint` names none")
        # By its last part: directories get moved, and nothing outside is wanted.
        path = path / os.path.basename(state.model_checkpoint_path)
    path = path.with_name(path.name.removesuffix(".index"))
    return path if path.with_name(path.name + ".index").is_file() else None


def read(path: Path) -> dict[str, Tensor]:
    """The variables of a checkpoint by their names, sorted; those that are texts are left out."""
    tf = _tensorflow()
    try:
        reader = tf.train.load_checkpoint(str(path))
        shapes, kinds = reader.get_variable_to_shape_map(), reader.get_variable_to_dtype_map()
    except (tf.errors.OpError, ValueError, RuntimeError) as e:
        raise Refused(f"TensorFlow cannot read it ({line(e)})") from None
    names = sorted(name for name in shapes if kinds[name] not in (tf.string, tf.resource, tf.variant))
    most = sum(file.stat().st_size for file in path.parent.glob(f"{glob.escape(path.name)}.data-*"))
    tensors = {}
    for name in names:
        kind = np.dtype(kinds[name].as_numpy_dtype)
        size = int(np.prod(shapes[name], dtype=object)) * kind.itemsize
        if size > most:
            raise Refused(f"{shown(name)} is {kind}{shapes[name]} by its index, and its data files have {most} bytes")
        tensors[name] = Tensor(tuple(shapes[name]), kind, _reader(tf, path, reader, name))
    return tensors


def _reader(tf, path, reader, name):
    def load():
        with refusing(path):
            try:
                return np.asarray(reader.get_tensor(name))
            except (tf.errors.OpError, ValueError, RuntimeError) as e:
                raise Refused(f"TensorFlow cannot read {shown(name)} ({line(e)})") from None
    return load
