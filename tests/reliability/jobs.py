"""Jobs of one or several real processes for the tests here: started, waited for, killed by their own ids, and read."""
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parents[2]
CHILD = pathlib.Path(__file__).with_name("child.py")
FLAGS = [f"--config={pathlib.Path(__file__).with_name('tiny.py')}"]


class Job:
    """Processes with an output file each."""

    def __init__(self, tmp_path, *more, processes=1, fault="none", workdir=None, **more_environment):
        self.workdir = workdir or tmp_path / "run"
        self.outputs = [tmp_path / f"out-{time.monotonic_ns()}-{i}" for i in range(processes)]
        port = free_port()
        together = [f"--coordinator=localhost:{port}", f"--processes={processes}"] if processes > 1 else []
        environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | {
            "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "3", **more_environment}
        self.processes = []
        for i in range(processes):
            number = [f"--process={i}"] if together else []
            with open(self.outputs[i], "w") as out:
                self.processes.append(subprocess.Popen(
                    [sys.executable, CHILD, fault, *FLAGS, f"--workdir={self.workdir}", *more, *together, *number],
                    env=environment, stdout=out, stderr=subprocess.STDOUT))

    def text(self, i=0):
        return self.outputs[i].read_text()

    def all(self):
        return "\n".join(f"--- process {i}, {p.poll()}\n{self.text(i)[-3000:]}" for i, p in enumerate(self.processes))

    def last(self, i=0):
        """The last line that process i wrote."""
        return self.text(i).rstrip().splitlines()[-1]

    def until(self, words, i=0, wait=60):
        """Returns when process i has written `words`. Waits are counted in naps: a pause of the machine is none."""
        for _ in range(20 * wait):
            ended = self.processes[i].poll() is not None
            if words in self.text(i):
                return
            if ended:
                break
            time.sleep(0.05)
        text = self.all()
        self.kill()
        pytest.fail(f"process {i} did not say {words!r}:\n{text}")

    def signal(self, number, i=0):
        self.processes[i].send_signal(number)

    def codes(self, wait=60):
        """The exit codes; a job that does not end is a failure."""
        for _ in range(20 * wait):
            if all(p.poll() is not None for p in self.processes):
                break
            time.sleep(0.05)
        if any(p.poll() is None for p in self.processes):
            text = self.all()
            self.kill()
            pytest.fail(f"the job did not end within {wait} s:\n{text}")
        return [p.returncode for p in self.processes]

    def kill(self):
        for p in self.processes:
            if p.poll() is None:
                p.send_signal(signal.SIGKILL)
            p.wait()


def free_port():
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]
