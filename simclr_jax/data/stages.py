"""How many images a second each stage of the host's part gives, alone and on all cores. Knows no JAX."""
import concurrent.futures
import contextlib
import itertools
import time

import numpy as np

from simclr_jax.data import source as sources
from simclr_jax.data.decode import decode
from simclr_jax.data.memory import cores
from simclr_jax.data.source import Source, failed

_SAMPLE = 128  # files decoded over and over


def rate(work, seconds: float, threads: int = 0, each: int = 1) -> float:
    """`each` times the calls of work(0), work(1), ... that `threads` threads (0: one a core) finish in a second."""
    work(0)  # what is made once is made here
    numbers, stop = itertools.count(1), time.perf_counter() + seconds

    def run(_):
        done = 0
        while not done or time.perf_counter() < stop:
            work(next(numbers))
            done += 1
        return done

    threads = threads or cores()
    start = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        done = sum(pool.map(run, range(threads)))
    return each * done / (time.perf_counter() - start)


def measure(source: Source, recipe, *, rows: int, seed: int, seconds: float):
    """Yields (stage, images/s, what it is) in the order in which they are measured.

    Args:
      source: as the pipeline reads it, `in_memory` if it fits.
      recipe: `simclr_jax.augment.Recipe`; rows: of a gathered batch, where images are of one size.

    The first of the stages called "decode" or "gather" is what the machine can do at best with this source.

    Raises:
      UsageError: more examples are unreadable than the source allows.
    """
    order = np.random.default_rng(seed).permutation(source.size)
    if source.rows is not None:
        def gather(i):
            return source.rows(np.take(order, np.arange(i * rows, (i + 1) * rows), mode="wrap"))
        yield "gather", rate(gather, seconds, each=rows), "rows of images of one size, from memory or a memory map"
        return
    yield "read", _read(source, order, seconds), "files from disk, or from the system's memory where they lie there"
    files = _files(source, order[:_SAMPLE])
    yield "decode", rate(lambda i: decode(files[i % len(files)]), seconds), "whole images"
    cuts = _cuts(recipe, len(files), seed)
    yield ("decode + crop", rate(lambda i: decode(files[i % len(files)], cuts[i % len(files)][0]), seconds),
           f"only what the crops of {len(recipe.views)} views touch")
    yield "resize", _resize(recipe, files, cuts, seconds), f"{len(recipe.views)} crops to their sizes"


@contextlib.contextmanager
def _decoder(function):
    """`function` in place of the decoder of image files, for sources that read them."""
    real, sources.decode = sources.decode, function
    try:
        yield
    finally:
        sources.decode = real


def _read(source, order, seconds):
    """Reading without decoding."""
    def nothing(data, cut=None):
        return np.zeros([1, 1, 3], np.uint8), cut and cut(1, 1)
    with _decoder(nothing):
        made = rate(lambda i: source.read(int(order[i % len(order)])), seconds)
    if failed(source) is not None:
        raise failed(source)
    return made


def _files(source, indices):
    """The image files of some examples that can be decoded."""
    files = []

    def noted(data, cut=None):
        image = decode(data, cut)
        files.append(data)
        return image
    with _decoder(noted):
        for i in indices.tolist():
            source.read(i)
    if failed(source) is not None:
        raise failed(source)
    return files


def _cuts(recipe, count, seed):
    """For each of `count` rows (the cut that `decode` is given, the places that it found last, the row's numbers)."""
    from simclr_jax.data import resize
    numbers = recipe.numbers(seed, np.stack([np.arange(count), np.zeros(count, np.int64)], axis=1))

    def of_row(own):
        places = []

        def cut(height, width):
            places[:] = [np.stack([resize.places(view.chain[0], own[v, 0], height, width)
                                   for v, view in enumerate(recipe.views)])]
            return resize.windows(places[0])
        return cut, places, own
    return [of_row(own) for own in numbers]


def _resize(recipe, files, cuts, seconds):
    """Resizing of crops that are decoded already, as the pipeline's graph does it."""
    from simclr_jax.data import resize
    from simclr_jax.data.host_tf import tensorflow
    tf, made = tensorflow(), []
    for data, (cut, places, own) in zip(files, cuts):
        image, windows = decode(data, cut)
        made.append((image, resize.moved(places[0], windows), own))

    def crop(i):
        image, places, numbers = tf.numpy_function(lambda i: made[i], [i], [tf.uint8, tf.int32, tf.float32])
        image, places = tf.ensure_shape(image, [None, None, 3]), tf.ensure_shape(places, [len(recipe.views), 8])
        numbers = tf.ensure_shape(numbers, cuts[0][2].shape)
        return [resize.chain(view.chain, image, places[v], numbers[v])[0, 0, 0] for v, view in enumerate(recipe.views)]

    options = tf.data.Options()
    options.threading.private_threadpool_size = cores()
    options.threading.max_intra_op_parallelism = 1
    data = tf.data.Dataset.range(len(made)).repeat().map(tf.autograph.experimental.do_not_convert(crop), cores())
    with contextlib.closing(_iterator(data.batch(8).prefetch(2).with_options(options))) as batches:
        return rate(lambda i: next(batches), seconds, threads=1, each=8)


def _iterator(data):
    yield from data.as_numpy_iterator()
