"""Batches on the devices before the step asks for them, and the time it had to wait all the same."""
import queue
import threading
import time


class Feed:
    """Runs an iterator of host batches and their transfer in a thread, `ahead` batches in front.

    `next` gives placed batches. `waited` is the number of seconds that the consumer has spent waiting.
    An exception of the iterator is raised in the consumer.
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
        except BaseException as e:  # whatever it is, the consumer must hear of it instead of waiting for ever
            self._put((None, e))

    def _put(self, item):
        while not self._stop.is_set():
            try:
                return self._queue.put(item, timeout=0.1)
            except queue.Full:
                pass

    def __next__(self):
        start = time.perf_counter()
        placed, error = self._queue.get()
        self.waited += time.perf_counter() - start
        if error is not None:
            raise error
        return placed

    def close(self):
        self._stop.set()
        self._thread.join(timeout=10)
