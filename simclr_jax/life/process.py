"""One process of a run: where it is, whether it shall stop, and whether all the others are still with it.

Two threads look after the main one, which may be inside XLA for minutes. `_mind` hears signals (the kernel's handler
writes to a pipe), counts the seconds a request to stop or a step takes, and ends the process where the main thread does
not. `_meet`, with several processes, exchanges with the others where each is, see `peers`.

To stop at one step, every process reports the step that it is certain to reach; they stop at the largest. As none goes
on while a request is open, all can.
"""
import ctypes
import os
import select
import signal
import sys
import threading
import time

import jax

from simclr_jax.life.ends import leave
from simclr_jax.life.peers import Peers

COMPILING = 10  # times as long as any other step may take the first, which compiles


class Life(Peers):
    """The life of this process in a run; a context.

    Args:
      heartbeat: seconds after which a process that is not heard of counts as lost.
      warn, abort: seconds that a step, a wait for data, an evaluation or a save may take before the process that holds
        up the others is named, and before all end with the stacks of their threads.
      grace: seconds between a request to stop and the end of the process, come what may; but a save is let finish.
      say: called with a line of text.
    """

    def __init__(self, *, heartbeat: float = 100.0, warn: float = 120.0, abort: float = 1800.0, grace: float = 15.0,
                 say=None):
        self._heartbeat, self._warn, self._abort, self._grace = heartbeat, warn, abort, grace
        self._say = say or (lambda text: print(text, file=sys.stderr, flush=True))
        self._many, self._me = jax.process_count() > 1, jax.process_index()
        self._change = threading.Condition()
        self._clock = 0.0  # seconds lived; a pause of the whole machine does not count
        self._place, self._step, self._since = "start", 0, 0.0
        self._asked_at = self._stop_at = None
        self._sure = None  # the step that is certain to be reached; None: not in the loop yet
        self._peers: dict[int, dict] = {}
        self._over = threading.Event()
        self._calling = None  # since when process 0 has not answered

    # What the loop says and asks.

    def at(self, place: str, step: int) -> None:
        """Notes where the main thread is: "step", "data", "eval", "save", ...; the clock of `abort` starts anew."""
        with self._change:
            self._place, self._step, self._since = place, step, self._clock

    def begin(self, step: int) -> None:
        """The loop starts with `step` steps done: from here on, a request to stop saves."""
        with self._change:
            self._sure = step

    def stops(self, step: int) -> bool:
        """Whether to stop with `step` steps done; the same answer on every process."""
        with self._change:
            while self._asked_at is not None and self._stop_at is None and not self._over.is_set():
                self._change.wait(0.2)
            return self._stop_at is not None and step >= self._stop_at

    def goes(self, step: int) -> bool:
        """Commits to the step after `step`, unless it is time to stop. After it, the others may count on this step."""
        if self.stops(step):
            return False
        with self._change:
            if self._asked_at is None or self._stop_at is not None:
                self._sure = step + 1
                return True
        return self.goes(step)  # asked in between

    # Its own beginning and end.

    def __enter__(self):
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._handlers = {}
        if threading.current_thread() is threading.main_thread():
            self._before_fd = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
            for number in (signal.SIGTERM, signal.SIGINT):
                if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
                    self._handlers[number] = signal.signal(number, lambda *_: None)
        if self._many:
            self._abort_before = _on_abort(ctypes.cast(ctypes.CDLL(None).sleep, ctypes.c_void_p))
        self._first = None
        self._threads = [threading.Thread(target=self._mind, daemon=True, name="life: mind")]
        if self._many:
            self._threads.append(threading.Thread(target=self._meet, daemon=True, name="life: meet"))
        for t in self._threads:
            t.start()
        return self

    def __exit__(self, kind, error, _):
        if self._many and kind is not None and not issubclass(kind, SystemExit):
            self._part(error)
        self._over.set()
        os.write(self._write, b"\0")
        for t in self._threads:
            t.join(timeout=5)
        if threading.current_thread() is threading.main_thread():
            for number, handler in self._handlers.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(self._before_fd)
        if self._many:
            _on_abort(self._abort_before)
        os.close(self._read)
        os.close(self._write)

    # The thread that hears signals and counts seconds.

    def _mind(self):
        last, warned = time.monotonic(), None
        while not self._over.is_set():
            ready, _, _ = select.select([self._read], [], [], 0.2)
            now = time.monotonic()
            self._clock, last = self._clock + min(now - last, 1.0), now
            for number in os.read(self._read, 64) if ready else b"":
                if number in self._handlers:
                    self._signal(number)
            with self._change:
                place, step, since, asked = self._place, self._step, self._since, self._asked_at
                begun = self._sure is not None
            held = self._clock - since
            if asked is not None and (words := self._overdue(place, step, self._clock - asked, begun)):
                self._end(75, words)
            if self._many and self._me and self._calling is not None and self._clock - self._calling > min(
                    1.5, self._heartbeat):
                self._seek()
            slow = COMPILING if place == "compile" else 1
            if begun and held > self._abort * slow:
                self._end(75, f"stuck: {self._blame(place, step, held)}; ended after {self._abort * slow:g} s "
                          "(config.life.abort), the same command goes on from the last checkpoint", stacks=True)
            if begun and held > self._warn * slow and warned != (place, step):
                warned = place, step
                self._say(f"warning: {self._blame(place, step, held)}")

    def _overdue(self, place, step, asked, begun):
        """Why a process that was asked to stop, seconds ago, need not or cannot do it by itself; "" if it can."""
        if not begun:
            return "stopped before the first step; nothing is lost, the same command starts again"
        if place == "eval":
            return f"stopped in the evaluation at step {step}, which is saved; the same command goes on from there"
        if asked < self._grace or place == "save":
            return ""
        if place == "end":
            return f"stopped after step {step}, which is saved"
        return (f"stopped unsaved: at step {step} ({place}) for more than {self._grace:g} s after the request "
                "(config.life.grace); the same command goes on from the last checkpoint")

    def _signal(self, number):
        name = signal.Signals(number).name
        if self._asked_at is None:
            self._first = number, self._clock
            self._ask(f"asked to stop ({name}); a second {name} ends it at once")
        elif self._first and number != self._first[0] and self._clock - self._first[1] < 2:
            pass  # a launcher passes Ctrl-C on as SIGTERM: one request
        elif self._place == "end":
            pass  # all is saved, and the process is leaving; launchers end the others when the first has left
        else:
            self._say(f"{name} again: left at once")
            leave(128 + number)

    def _ask(self, text):
        with self._change:
            if self._asked_at is not None:
                return
            self._asked_at = self._clock
            if not self._many:
                self._stop_at = self._sure
            self._change.notify_all()
        self._say(text)


def _on_abort(handler):
    """Installs a C function of the signal's number on SIGABRT, and returns the one before.

    When process 0 dies, a thread of JAX aborts every other process at once, and its C++ stack is all that they leave.
    With C's own `sleep` as the handler that thread sleeps for 6 seconds (SIGABRT is 6) before it goes on to abort, in
    which `_seek` finds process 0 lost, says so and ends the process with a code of ours. No Python runs in the handler.
    """
    libc = ctypes.CDLL(None)
    libc.signal.restype, libc.signal.argtypes = ctypes.c_void_p, (ctypes.c_int, ctypes.c_void_p)
    return libc.signal(signal.SIGABRT, handler)
