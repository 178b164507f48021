"""Some examples of a source as a source of its own."""
import numpy as np

from simclr_jax.data.host_tf import tensorflow
from simclr_jax.data.memory import in_memory
from simclr_jax.data.source import Source


def subset(source: Source, indices) -> Source:
    """The examples of `source` at `indices` (integers [n], repeats allowed), in that order.

    "index" counts within the subset; it is -1 where another example stands in for an unreadable one.
    """
    table, source = np.asarray(indices, np.int64), in_memory(source)

    def read(position):
        tf = tensorflow()
        index = tf.gather(table, position)
        example = source.read(index)
        return {**example, "index": tf.where(example["index"] == index, position, -1)}
    return source._replace(size=len(table), read=read, memory=0, describe=f"{source.describe}, {len(table)} of them")
