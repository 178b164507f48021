"""Which example comes when: index arithmetic, so that stopping, resuming and resizing need no replay.

Row i of the global batch of a step stands at g = step * batch + i. Its epoch is g // size and its example
permutation(seed, epoch)[g % size]: batches straddle the border of epochs, and every example comes once an epoch.
Process p of n takes rows [p * batch / n, (p + 1) * batch / n).
"""
import functools

import numpy as np

from simclr_jax.errors import UsageError


def permutation(seed: int, epoch: int, size: int) -> np.ndarray:
    """The order of an epoch: a permutation of range(size), i64[size], read-only.

    A stable argsort of raw 64-bit words of Philox4x64-10 (Salmon et al. 2011) under the key (seed, epoch). Generator
    methods such as `permutation` may change with NumPy's version; the raw stream of a bit generator may not
    (NumPy's compatibility policy, NEP 19).
    """
    words = np.random.Philox(key=np.array([seed, epoch], np.uint64)).random_raw(size)
    order = np.argsort(words, kind="stable").astype(np.int64)
    order.flags.writeable = False
    return order


def check(size: int, batch: int, process: tuple[int, int]) -> None:
    """Refuses what cannot be dealt out.

    Raises:
      UsageError: no rows, fewer examples than a batch, or a batch that the processes cannot share equally.
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


def make(seed: int, size: int, batch: int, process: tuple[int, int] = (0, 1)):
    """The order of a run, as seen by one process.

    Args:
      seed: 0 <= seed < 2**64.
      size: examples in the source.
      batch: rows of a global batch.
      process: (index, count).

    Returns:
      positions(step) -> (index i64[batch / count], epoch i64[batch / count]), the examples of the step's local rows.
      The permutations of the two latest epochs are kept: no batch touches more, since size >= batch.

    Raises:
      UsageError: see `check`.
    """
    check(size, batch, process)
    rows = batch // process[1]
    epoch_order = functools.lru_cache(maxsize=2)(lambda epoch: permutation(seed, epoch, size))

    def positions(step: int):
        first = int(step) * batch + process[0] * rows
        epoch, place = np.divmod(np.arange(first, first + rows, dtype=np.int64), size)
        index = np.empty(rows, np.int64)
        for e in np.unique(epoch):
            index[epoch == e] = epoch_order(int(e))[place[epoch == e]]
        return index, epoch

    return positions
