"""Some examples of a source as a source of its own."""
import numpy as np

from simclr_jax.data.host_tf import tensorflow
from simclr_jax.data.memory import in_memory
from simclr_jax.data.source import Source


def subset(source: Source, indices) -> Source:
    """The examples of `source` at `indices` (integers [n], repeats allowed), in that order.

    "index" counts within the subset. Where another example of `source` stands in for an unreadable one it is n plus
    that one's index in `source`. Shards end here: the order is that of any source.
    """
    table, source = np.asarray(indices, np.int64), in_memory(source)
    size = len(table)

    def read(position):
        tf = tensorflow()
        index = tf.gather(table, position)
        example = source.read(index)
        return {**example, "index": tf.where(example["index"] == index, position, size + example["index"])}

    def captions(index):
        return source.captions(int(table[index]) if index < size else index - size)
    return source._replace(size=size, read=read, memory=0, describe=f"{source.describe}, {size} of them", shards=(),
                           captions=source.captions and captions)
