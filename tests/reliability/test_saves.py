"""Two processes that save together, killed at any time of it."""
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from reliability import jobs, saver
from simclr_jax.train.checkpoint import Checkpoints


@pytest.fixture
def savers(tmp_path):
    """`savers(directory, first)`: two processes that save steps after `first`, and where both write; killed with the test."""
    started = []

    def start(directory, first):
        environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | {
            "PYTHONPATH": str(jobs.ROOT), "JAX_PLATFORMS": "cpu"}
        port, output = jobs.free_port(), tmp_path / f"output-{first}"
        with open(output, "w") as out:
            two = [subprocess.Popen([sys.executable, saver.__file__, directory, str(first), str(i), str(port)],
                                    env=environment, stdout=out, stderr=subprocess.STDOUT) for i in range(2)]
        started.extend(two)
        return two, output
    yield start
    for process in started:
        process.kill()
        process.wait()


def temporaries(directory):
    return [p.name for p in directory.iterdir() if "tmp" in p.name] if directory.exists() else []


def within(seconds, condition):
    """Whether the condition came true in time; waits are counted in naps."""
    for _ in range(round(500 * seconds)):
        if condition():
            return True
        time.sleep(0.002)
    return False


# Ten kills in all, of which `make test` does two.
@pytest.mark.scorecard(20)
@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2, 3, 4))])
def test_after_kill_9_of_both_a_whole_step_loads_and_what_was_begun_is_cleaned(savers, tmp_path, seed):
    rng = np.random.default_rng(seed)
    directory, last = tmp_path / "c", 0
    for _ in range(2):
        two, output = savers(directory, last)
        assert within(60, lambda: f"saved {last + 3}" in output.read_text()), output.read_text()
        assert within(10, lambda: temporaries(directory)), output.read_text()
        time.sleep(rng.uniform(0, 0.05))  # some way into it
        for process in rng.permutation(2):
            two[process].send_signal(signal.SIGKILL)
        for process in two:
            assert process.wait() == -signal.SIGKILL, output.read_text()
        lines = []
        checkpoints = Checkpoints(directory, log=lines.append)
        step, state, meta = checkpoints.restore({name: np.zeros(saver.ROWS, np.float32) for name in ("whole", "halves")})
        checkpoints.close()
        assert meta["at"] == step > last and lines == []
        assert all((value == step).all() for value in state.values())
        assert within(5, lambda: not temporaries(directory))  # they go in the background
        last = step
