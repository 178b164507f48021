"""What a process knows of the others of its job, and they of it, through the job's key-value store.

About once a second each process writes where it is, and reads who was asked to stop and who has left and why. Process 0
reads where all are, and so finds who is silent; the others find out about process 0 by asking its port.
"""
import faulthandler
import json
import socket
import sys
import threading
import time

import jax

from simclr_jax.life import job
from simclr_jax.life.ends import leave

KEY = "simclr_jax/life"
WAITING = ("step", "together")  # places where a process waits for others: it is not the one that is stuck
TICK = 1.0  # seconds between looks at the others

# What a collective raises when the process at its other end is gone.
LOST = "Connection closed by peer", "Connection reset by peer", "Broken pipe", "Socket closed"


class Peers:
    """The part of a `Life` that has to do with the others; what it reads and sets is made there."""

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

    def _blame(self, place, step, held):
        """Who holds up the run."""
        everyone = {**self._peers, self._me: {"place": place, "step": step, "held": held, "host": socket.gethostname()}}
        busy = {i: p for i, p in everyone.items() if p["place"] not in WAITING}
        if not busy:
            return f"step {step} ends on no process after {held:.0f} s: the devices, or the network between them"
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
            self._last_words(75, f"process 0 on {host}, by which the job is run, is lost; the same command goes on from "
                             "the last checkpoint", False)

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
