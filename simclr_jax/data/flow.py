"""tf.data graphs as iterators that end: with an error that names its cause, when closed, and before Python leaves."""
import atexit
import contextlib
import weakref

from simclr_jax.data.host_tf import tensorflow
from simclr_jax.data.memory import cores
from simclr_jax.data.source import failed

_AHEAD = 2  # batches made before they are asked for
_live = weakref.WeakSet()  # the iterators handed out


def calls(workers):
    """How many images a map works on at once; the thread pool bounds it too."""
    return workers or tensorflow().data.AUTOTUNE


@contextlib.contextmanager
def closing(iterator):
    """Closes what can be closed at the end of a with block."""
    try:
        yield iterator
    finally:
        if hasattr(iterator, "close"):
            iterator.close()


def iterate(data, source, workers):
    """The elements of a tf.data.Dataset as NumPy, made ahead by `workers` threads.

    Raises:
      UsageError: from the iterator, in place of TensorFlow's error, when the source has failed.
    """
    tf = tensorflow()
    options = tf.data.Options()
    options.deterministic = True
    # A pool of our own: TensorFlow's default takes every core, several times over, and XLA waits for one.
    options.threading.private_threadpool_size = workers or max(1, cores() - 1)
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
                if row is None:
                    return
                yield row
        finally:
            iterator = None  # an error's traceback would keep it, and its threads, alive into Python's exit

    return kept(generate())


def kept(iterator):
    """The iterator, closed when Python leaves."""
    _live.add(iterator)
    return iterator


@atexit.register
def _close():
    """Ends what still runs ahead. Reader threads that want Python's lock while Python is leaving hang it for good."""
    for iterator in list(_live):
        try:
            iterator.close()
        except ValueError:
            pass  # another thread is inside it
