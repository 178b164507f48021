"""A signal asks the run to stop at a step that all processes agree on; a second one ends it at once."""
import os
import signal

import jax


class Stop:
    """Context in which SIGTERM and SIGINT set a flag instead of ending the process.

    With several processes, SIGTERM is left to JAX's preemption service, which makes every process see one common step,
    and SIGINT is passed on as one.
    """

    EXIT_CODE = 75  # "temporary failure": start the same command again

    def __init__(self):
        self.asked = False
        self._many = jax.process_count() > 1
        self._signals = (signal.SIGINT,) if self._many else (signal.SIGINT, signal.SIGTERM)

    def __enter__(self):
        self._before = {s: signal.signal(s, self._ask) for s in self._signals}
        return self

    def __exit__(self, *_):
        for s, handler in self._before.items():
            signal.signal(s, handler)

    def _ask(self, number, _):
        if self.asked:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.asked = True
        if self._many:
            os.kill(os.getpid(), signal.SIGTERM)

    def reached(self, step: int) -> bool:
        """Whether to save and leave after this step; the same answer on every process."""
        if self._many:
            from jax.experimental import multihost_utils
            return bool(multihost_utils.reached_preemption_sync_point(step))
        return self.asked
