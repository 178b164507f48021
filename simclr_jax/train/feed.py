"""Batches on the devices before the step asks for them, and the time it had to wait all the same."""
import queue
import threading
import time
from typing import Callable

from simclr_jax.errors import DataError, UsageError


class Feed:
    """Runs an iterator of host batches and their transfer in a thread, `ahead` batches in front.

    `waited` is the number of seconds that the consumer has spent waiting.
    """

    def __init__(self, batches, place, ahead: int = 2):
        self.waited = 0.0
        self._queue = queue.Queue(ahead)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._fill, args=(batches, place), daemon=True, name="feed")
        self._thread.start()

    def _fill(self, batches, place):
        try:
            for batch in batches:
                self._put((place(batch), None))
                if self._stop.is_set():
                    return
            raise DataError("the batches came to an end before the run; wanted one for every step")
        except BaseException as e:  # whatever it is, the consumer must hear of it instead of waiting for ever
            self._put((None, e))

    def _put(self, item):
        while not self._stop.is_set():
            try:
                return self._queue.put(item, timeout=0.1)
            except queue.Full:
                pass

    def next(self, stops: Callable[[], bool] = lambda: False):
        """The next batch, placed; None if `stops()` becomes true while there is none yet.

        Raises:
          DataError: the iterator could not make it, for a reason that a user can put right; else whatever it raised.
        """
        start = time.perf_counter()
        while True:
            try:
                placed, error = self._queue.get(timeout=0.2)
                break
            except queue.Empty:
                if stops():
                    return None
        self.waited += time.perf_counter() - start
        if isinstance(error, OSError) or type(error) is UsageError:
            text = str(error) if isinstance(error, UsageError) else f"{type(error).__name__}: {error}"
            raise DataError(" ".join(text.split())) from error
        if error is not None:
            raise error
        return placed

    def close(self):
        self._stop.set()
        self._thread.join(timeout=10)
