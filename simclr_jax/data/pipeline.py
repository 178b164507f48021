"""From a source and a recipe to NumPy batches, on the host's cores.

Nothing here holds a position: a batch is a function of (seed, step, process) alone, so a run resumes at any step, on
any number of processes, by starting there.
"""
import atexit
import os
import weakref
from typing import Iterator

import numpy as np

from simclr_jax.data import captions, order
from simclr_jax.data.host_tf import tensorflow
from simclr_jax.data.memory import in_memory
from simclr_jax.data.source import Source, failed
from simclr_jax.errors import UsageError

_AHEAD = 2  # batches made before they are asked for
_live = weakref.WeakSet()  # the iterators handed out


def batches(source: Source, views, *, batch: int, seed: int, start_step: int = 0, process: tuple[int, int] = (0, 1),
            workers: int | None = None, tokenizer=None) -> Iterator[dict[str, np.ndarray]]:
    """The training batches of one process, from a step on, without end.

    Args:
      source: the examples.
      views: a recipe; see `recipe.build_views`.
      batch: rows of the global batch, over all processes.
      seed: 0 <= seed < 2**32; of the order of examples and of the augmentations.
      start_step: the first step wanted, at the cost of none before it.
      process: (index, count) of this process.
      workers: threads that decode and augment; None: all cores but one, which is left to whoever feeds the device.
        The pixels do not depend on it.
      tokenizer: for texts beside the images, something with `encode` (list of n str -> i32[n,L]) and `length` (L).

    Returns:
      An iterator of {"views": f32[b,V,S,S,3], "label": i32[b], "id": u32[b,2]} with b = batch / count; id is the
      example's index in the source and its epoch. With a tokenizer also "text" i32[b,L], one of each example's
      captions, drawn by the row's key. An unreadable example is replaced (see `source.of_encoded`), and so is its
      caption; its id stays.

    Raises:
      UsageError: at once, for what cannot be dealt out, a recipe that cannot be, or a tokenizer for a source without
        captions; or from the iterator, when more examples are unreadable than the source's `max_bad` allows.
    """
    tf = tensorflow()
    from simclr_jax.data import random, recipe

    if start_step < 0:
        raise UsageError(f"start_step={start_step}; wanted a step, 0 or later")
    positions = order.make(seed, source.size, batch, process, source.shards)
    captions.check(source, tokenizer)
    rows = batch // process[1]
    made = recipe.build_views(views)
    if not source.shards or process[1] == 1:  # else the other processes' shards would be read too
        source = in_memory(source)
    text, errors = captions.drawn(source, tokenizer)
    run_key = random.seed_key(seed)
    calls, chunk = _calls(workers), _chunk(made.size, rows)
    plain = tf.autograph.experimental.do_not_convert  # our functions are graph code already; rewriting costs seconds

    def local_rows(step):
        index, epoch = tf.numpy_function(positions, [step], [tf.int64, tf.int64])
        index.set_shape([rows])
        epoch.set_shape([rows])
        return {"index": index, "epoch": epoch, "key": random.fold_in(random.fold_in(run_key, epoch), index)}

    def read(row):
        return {**row, **source.read(row["index"])}

    def finish(row):
        identity = tf.stack([row["asked"], row["epoch"]], axis=-1)
        return {"views": made.pixel(row["views"], row["key"]), "label": tf.cast(row["label"], tf.int32),
                "id": tf.cast(identity, tf.uint32), **text(row["index"], row["key"])}

    def crop_many(row):
        asked = row["index"]
        row = read(row)
        return finish({**row, "asked": asked, "views": made.spatial_batch(row["image"], row["key"])})

    def crop_one(row):
        asked, numbers = row["index"], row.pop("numbers")
        row = read(row)
        return {"views": made.spatial_from(row.pop("image"), numbers), "asked": asked, **row}

    steps = tf.data.Dataset.counter(start_step).map(plain(local_rows))
    if source.shape is not None:
        data = steps.unbatch().batch(chunk).map(plain(crop_many), calls)
    else:
        # Drawing for a row costs as much as for a thousand, so it is done by the batch.
        data = steps.map(plain(lambda row: {**row, "numbers": made.numbers(row["key"])})).unbatch()
        data = data.map(plain(crop_one), calls).batch(chunk).map(plain(finish), calls)
    return _iterate(data.rebatch(rows), source, workers, errors)


def examples(source: Source, ops, *, batch: int, process: tuple[int, int] = (0, 1),
             workers: int | None = None) -> Iterator[dict[str, np.ndarray]]:
    """Every example of a source once, in order, for evaluation.

    Args:
      ops: one view of deterministic ops; see `recipe.build_eval`.
      batch: rows a batch of this process; the last one has what is left.
      process: (index, count); each process has a run of neighbouring examples, shares differing by at most one.

    Returns:
      An iterator of {"image": f32[n,S,S,3], "label": i32[n], "id": u32[n,2]}, n <= batch, of epoch 0. Unreadable
      examples are left out here, since a stand-in would count twice.

    Raises:
      UsageError: as `batches`, but that the source may be smaller than the batch.
    """
    tf = tensorflow()
    from simclr_jax.data import recipe

    number, count = process
    if batch < 1 or not 0 <= number < count:
        raise UsageError(f"batch={batch}, process={process}: wanted batch >= 1 and (index, count), 0 <= index < count")
    fn = recipe.build_eval(ops)
    source = in_memory(source)
    calls = _calls(workers)
    plain = tf.autograph.experimental.do_not_convert

    def one(index):
        example = source.read(index)
        return {"image": fn(example["image"]), "label": tf.cast(example["label"], tf.int32),
                "id": tf.cast(tf.stack([index, tf.zeros_like(index)]), tf.uint32)}, example["index"] == index

    data = tf.data.Dataset.range(source.size * number // count, source.size * (number + 1) // count)
    data = data.map(plain(one), calls).filter(plain(lambda _, own: own)).map(plain(lambda example, _: example))
    return _iterate(data.batch(batch), source, workers)


def check(source: Source, views, ops, *, batch: int, process: tuple[int, int] = (0, 1),
          tokenizer=None) -> tuple[int, int]:
    """Refuses what `batches` (with `views` and `tokenizer`) and `examples` (with `ops`) would, and reads nothing.

    Returns:
      (V, S): how many views an example has, and their side.
    """
    from simclr_jax.data import recipe

    order.check(source.size, batch, process, source.shards)
    captions.check(source, tokenizer)
    made = recipe.build_views(views)
    recipe.build_eval(ops)
    return made.count, made.size


def _chunk(size, rows):
    """Rows that the batched ops work on at once: enough to spread their cost, few enough to stay in the cache.

    Never one alone, and always full: a matrix product of one row may round otherwise than one of many.
    """
    return max(2, min(max(16, 2**18 // size**2), 256, rows))


def _calls(workers):
    """How many rows or chunks a map works on at once; the thread pool bounds it too."""
    if workers is not None and workers < 1:
        raise UsageError(f"workers={workers}; wanted at least 1, or None to choose by the machine's cores")
    return workers or tensorflow().data.AUTOTUNE


def _iterate(data, source, workers, errors=()):
    tf = tensorflow()
    options = tf.data.Options()
    options.deterministic = True
    # A pool of our own: TensorFlow's default takes every core, several times over, and XLA waits for one.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    options.threading.private_threadpool_size = workers or max(1, cores - 1)
    options.threading.max_intra_op_parallelism = 1
    iterator = data.prefetch(_AHEAD).with_options(options).as_numpy_iterator()

    def generate():
        nonlocal iterator
        try:
            while True:
                try:
                    row = next(iterator, None)
                except tf.errors.OpError:
                    if failed(source) is None:
                        raise
                if failed(source) is not None:
                    raise failed(source) from None
                if errors:
                    raise errors[0]
                if row is None:
                    return
                yield row
        finally:
            iterator = None  # an error's traceback would keep it, and its threads, alive into Python's exit

    made = generate()
    _live.add(made)
    return made


@atexit.register
def _close():
    """Ends what still runs ahead. Reader threads that want Python's lock while Python is leaving hang it for good."""
    for iterator in list(_live):
        try:
            iterator.close()
        except ValueError:
            pass  # another thread is inside it
