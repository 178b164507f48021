"""Which example comes when: index arithmetic, so that stopping, resuming and resizing need no replay.

Row i of the global batch of a step stands at g = step * batch + i. Its epoch is g // size and its example
permutation(seed, epoch)[g % size]: batches straddle the border of epochs, and every example comes once an epoch.
Process p of n takes rows [p * batch / n, (p + 1) * batch / n).

A source in shards is shared out by whole shards instead, as soon as there are several processes: process p reads the
shards p, p + n, p + 2n, ... and no other, and has epochs of its own over their examples, in an order of its own. Which
examples meet in a batch then depends on the number of processes.
"""
import functools

import numpy as np

from simclr_jax.errors import UsageError


def permutation(seed: int, epoch: int, size: int, stream: int = 0) -> np.ndarray:
    """The order of an epoch: a permutation of range(size), i64[size], read-only. Streams have unrelated ones.

    A stable argsort of raw 64-bit words of Philox4x64-10 (Salmon et al. 2011) under the key (seed, epoch). Generator
    methods such as `permutation` may change with NumPy's version; the raw stream of a bit generator may not
    (NumPy's compatibility policy, NEP 19).
    """
    counter = np.array([0, 0, 0, stream], np.uint64)
    words = np.random.Philox(key=np.array([seed, epoch], np.uint64), counter=counter).random_raw(size)
    order = np.argsort(words, kind="stable").astype(np.int64)
    order.flags.writeable = False
    return order


def check(size: int, batch: int, process: tuple[int, int], shards: tuple[int, ...] = ()) -> None:
    """Refuses what cannot be dealt out, in every process alike.

    Raises:
      UsageError: no rows, fewer examples than a batch, or a batch that the processes cannot share equally; fewer shards
        than processes, or a process whose shards hold fewer examples than its rows.
    """
    index, count = process
    if not 0 <= index < count:
        raise UsageError(f"process={process}: wanted (index, count) with 0 <= index < count")
    if batch < 1 or batch % count:
        raise UsageError(f"a global batch of {batch} rows cannot be shared equally by {count} processes; "
                         f"choose a multiple of {count}")
    if size < batch:
        raise UsageError(f"the source has {size} examples, fewer than a global batch of {batch}; "
                         f"choose a batch of at most {size}")
    if not shards or count == 1:
        return
    if len(shards) < count:
        raise UsageError(f"the source has {len(shards)} shards, fewer than {count} processes, which share it out by "
                         f"whole shards; write it as {count} shards or more, or start at most {len(shards)} processes")
    own = [sum(shards[p::count]) for p in range(count)]
    least = int(np.argmin(own))
    if own[least] < batch // count:
        raise UsageError(f"the shards of process {least} of {count} hold {own[least]} examples, fewer than its "
                         f"{batch // count} rows of a global batch of {batch}; choose a smaller batch, or make the "
                         "shards of one size")


def make(seed: int, size: int, batch: int, process: tuple[int, int] = (0, 1), shards: tuple[int, ...] = ()):
    """The order of a run, as seen by one process.

    Args:
      seed: 0 <= seed < 2**64.
      size: examples in the source.
      batch: rows of a global batch.
      process: (index, count).
      shards: the number of examples in each shard, which are runs of indices in turn; (): the source has none.

    Returns:
      positions(step) -> (index i64[batch / count], epoch i64[batch / count]), the examples of the step's local rows.
      The permutations of the two latest epochs are kept: no batch touches more, since size >= batch. With shards and
      several processes, the epoch is the process's own.

    Raises:
      UsageError: see `check`.
    """
    check(size, batch, process, shards)
    rows = batch // process[1]
    if shards and process[1] > 1:
        ends = np.cumsum(shards)
        own = np.concatenate([np.arange(end - n, end) for n, end in zip(shards, ends)][process[0]::process[1]])
        return _positions(lambda epoch: own[permutation(seed, epoch, len(own), process[0])], len(own), rows, 0, rows)
    return _positions(lambda epoch: permutation(seed, epoch, size), size, batch, process[0] * rows, rows)


def _positions(order, size, stride, first_row, rows):
    epoch_order = functools.lru_cache(maxsize=2)(order)

    def positions(step: int):
        first = int(step) * stride + first_row
        epoch, place = np.divmod(np.arange(first, first + rows, dtype=np.int64), size)
        index = np.empty(rows, np.int64)
        for e in np.unique(epoch):
            index[epoch == e] = epoch_order(int(e))[place[epoch == e]]
        return index, epoch

    return positions
