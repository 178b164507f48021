"""One process of a run: where it is, whether it shall stop, and whether all the others are still with it.

Two threads look after the main one, which may be inside XLA for minutes. `_mind` hears signals (the kernel's handler
writes to a pipe), counts the seconds a request to stop or a step takes, and ends the process where the main thread does
not. `_meet`, with several processes, exchanges three things through the job's key-value store, about once a second:
where each process is, who was asked to stop, and who has left and why.

To stop at one step, every process reports the step that it is certain to reach; they stop at the largest. As none goes
on while a request is open, all can.
"""
import ctypes
import faulthandler
import json
import os
import select
import signal
import socket
import sys
import threading
import time

import jax

from simclr_jax.life import job
from simclr_jax.life.ends import leave

KEY = "simclr_jax/life"
WAITING = ("step", "together")  # places where a process waits for others: it is not the one that is stuck
COMPILING = 10  # times as long as any other step may take the first, which compiles
TICK = 1.0  # seconds between looks at the others


class Life:
    """The life of this process in a run; a context.

    Args:
      heartbeat: seconds after which a process that is not heard of counts as lost.
      warn, abort: seconds that a step, a wait for data, an evaluation or a save may take before the process that holds up
        the others is named, and before all end with the stacks of their threads.
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

    def _part(self, error):
        """Tells the others why this process ends, or hears from them why it must."""
        code = getattr(error, "code", None)
        if code is None and any(sign in str(error) for sign in LOST):
            self.at("together", self._step)
            self._over.wait(self._heartbeat + 5)  # `_meet` finds out who it is, and ends this process
            return
        self._tell(code or 1, f"{type(error).__name__}: {error}" if code is None else str(error))
        if self._me == 0:
            time.sleep(2.5 * TICK)  # the store goes with process 0: let the others read it

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
            if asked is not None:
                if not begun:
                    self._end(75, "stopped before the first step; nothing is lost, the same command starts again")
                if place == "eval":
                    self._end(75, f"stopped in the evaluation at step {step}, which is saved; the same command goes on "
                              "from there")
                if self._clock - asked > self._grace and place != "save":
                    self._end(75, f"stopped unsaved: at step {step} ({place}) for more than {self._grace:g} s after the "
                              "request (config.life.grace); the same command goes on from the last checkpoint")
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

    def _seek(self):
        """Ends this process if process 0 is gone. Its store does not say so: JAX's client then blocks for ever."""
        host, port = job.address()
        gone = self._clock - self._calling > self._heartbeat
        try:
            socket.create_connection((host, port), timeout=1).close()
        except ConnectionRefusedError:
            gone = True  # the machine is there, and the process is not
        except OSError:
            pass
        if gone and not self._over.is_set():
            self._last_words(75, f"process 0 on {host}, by which the job is run, is lost; the same command goes on from the "
                             "last checkpoint", False)

    def _signal(self, number):
        name = signal.Signals(number).name
        if self._asked_at is None:
            self._first = number, self._clock
            self._ask(f"asked to stop ({name}); a second {name} ends it at once")
        elif self._first and number != self._first[0] and self._clock - self._first[1] < 2:
            pass  # a launcher passes Ctrl-C on as SIGTERM: one request
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

    def _blame(self, place, step, held):
        """Who holds up the run."""
        everyone = {**self._peers, self._me: {"place": place, "step": step, "held": held, "host": socket.gethostname()}}
        busy = {i: p for i, p in everyone.items() if p["place"] not in WAITING}
        if not busy:
            return f"step {step} does not end on any process after {held:.0f} s: the devices, or the network between them"
        least = min(p["step"] for p in busy.values())
        return "; ".join(f"process {i} on {p['host']} is in {p['place']!r} at step {p['step']} for {p['held']:.0f} s"
                         for i, p in sorted(busy.items()) if p["step"] == least) + (
            "; the others wait for it" if self._many else "")

    def _end(self, code, text, stacks=False):
        """Ends this process from a thread, with the reason as its last line."""
        if self._many:
            teller = threading.Thread(target=self._tell, args=(code, text, stacks), daemon=True)
            teller.start()
            teller.join(timeout=2)
        self._last_words(code, text, stacks)

    def _last_words(self, code, text, stacks):
        if stacks:
            faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
        if self._many and self._me == 0:
            time.sleep(2.5 * TICK)  # the store goes with process 0: let the others read it
        self._say(text if code == 75 else f"error: {text}")
        leave(code)

    # The thread that meets the others.

    def _meet(self):
        client, beat, heard = job.client(), 0, {}
        reported = posted = False
        while not self._over.wait(TICK if self._asked_at is None else 0.1):
            beat += 1
            with self._change:
                held = self._clock - self._since
                mine = {"place": self._place, "step": self._step, "held": held, "beat": beat,
                        "host": socket.gethostname()}
                asked, sure = self._asked_at is not None, self._sure
            self._calling = self._clock if self._calling is None else self._calling
            try:
                client.key_value_set(f"{KEY}/at/{self._me}", json.dumps(mine), allow_overwrite=True)
                if asked and not posted:
                    client.key_value_set(f"{KEY}/news/asked/{self._me}", "1", allow_overwrite=True)
                    posted = True
                self._hear(dict(client.key_value_dir_get(f"{KEY}/news/")))
                if asked and not reported:
                    client.key_value_set(f"{KEY}/stop/{self._me}", json.dumps(sure))
                    reported = True
                if reported and self._stop_at is None:
                    self._settle(client.key_value_dir_get(f"{KEY}/stop/"))
                if self._me == 0 or held > min(self._warn, self._abort) / 2:
                    self._look(dict(client.key_value_dir_get(f"{KEY}/at/")), heard)
                self._calling = None
            except Exception:  # gRPC's, of which JAX makes several kinds; `_seek` finds out what it means
                pass

    def _hear(self, news):
        for key, value in sorted(news.items()):
            number, kind = int(key.rsplit("/", 1)[1]), key.split("/")[-2]
            if number != self._me and kind == "gone":
                told = json.loads(value)
                self._last_words(told["code"], f"process {number} ended: {told['text']}", told["stacks"])
            if number != self._me and kind == "asked":
                self._ask(f"process {number} was asked to stop")

    def _settle(self, reports):
        values = [json.loads(value) for _, value in reports]
        if len(values) < jax.process_count():
            return
        with self._change:
            self._stop_at = -1 if None in values else max(values)
            self._change.notify_all()
        if None in values:
            self._last_words(75, "stopped before the first step; nothing is lost, the same command starts again", False)

    def _look(self, table, heard):
        """Reads where the others are; on process 0, whether they are."""
        for key, value in table.items():
            number, record = int(key.rsplit("/", 1)[1]), json.loads(value)
            if number == self._me:
                continue
            if record["beat"] != heard.get(number, (None,))[0]:
                heard[number] = record["beat"], self._clock
            self._peers[number] = record
            if self._me == 0 and self._clock - heard[number][1] > self._heartbeat:
                self._end(75, f"process {number} on {record['host']} is lost: not heard of for {self._heartbeat:g} s "
                          "(config.life.heartbeat); the same command goes on from the last checkpoint")

    def _tell(self, code, text, stacks=False):
        try:
            job.client().key_value_set(f"{KEY}/news/gone/{self._me}",
                                         json.dumps({"code": code, "text": text[:2000], "stacks": stacks}))
        except Exception:  # process 0 is gone, or it was told before
            pass


def _on_abort(handler):
    """Installs a C function of the signal's number on SIGABRT, and returns the one before.

    When process 0 dies, a thread of JAX aborts every other process at once, and its C++ stack is all that they leave. With
    C's own `sleep` as the handler that thread sleeps for 6 seconds (SIGABRT is 6) before it goes on to abort, in which
    `_meet` finds process 0 lost, says so and ends the process with a code of ours. No Python runs in the handler.
    """
    libc = ctypes.CDLL(None)
    libc.signal.restype, libc.signal.argtypes = ctypes.c_void_p, (ctypes.c_int, ctypes.c_void_p)
    return libc.signal(signal.SIGABRT, handler)


# What a collective raises when the process at its other end is gone.
LOST = "Connection closed by peer", "Connection reset by peer", "Broken pipe", "Socket closed"
