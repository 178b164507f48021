"""Compiled programs kept between starts, so that a run that goes on does not compile again."""
import contextlib

import jax
from jax.experimental.compilation_cache import compilation_cache


@contextlib.contextmanager
def of(directory):
    """In this context JAX keeps what takes over a second to compile in `directory` (`gs://` too); None: it does not.

    Process 0 alone writes, and all read. A cache that cannot be read or written costs a warning of JAX's and no run.
    """
    before = jax.config.jax_compilation_cache_dir
    if directory is None or before:  # one that the user has set, by JAX_COMPILATION_CACHE_DIR, is theirs
        yield
        return
    _set(str(directory))
    try:
        yield
    finally:
        _set(before)


def _set(directory):
    jax.config.update("jax_compilation_cache_dir", directory)
    compilation_cache.reset_cache()  # else the first directory of a process stays
