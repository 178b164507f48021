"""Part of a source, as a source."""
import numpy as np

from simclr_jax.data.memory import in_memory
from simclr_jax.data.source import Source


def subset(source: Source, indices) -> Source:
    """The examples of `source` at `indices` (integers [n], repeats allowed), in that order.

    "index" counts within the subset. Where another example of `source` stands in for an unreadable one it is n plus
    that one's index in `source`. Shards end here: the order is that of any source.
    """
    table, source = np.asarray(indices, np.int64), in_memory(source)
    size = len(table)

    def read(position, cut=None):
        index = int(table[position])
        example = source.read(index, cut)
        return example._replace(index=int(position) if example.index == index else size + example.index)

    def captions(index):
        return source.captions(int(table[index]) if index < size else index - size)
    return source._replace(size=size, read=read, memory=0, describe=f"{source.describe}, {size} of them", shards=(),
                           rows=source.rows and (lambda positions: source.rows(table[positions])),
                           sizes=None if source.sizes is None else source.sizes[table],
                           captions=source.captions and captions)
