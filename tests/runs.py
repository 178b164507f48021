"""Short real runs of the training command, for the tests that need one."""
import os
import pathlib
import signal
import subprocess
import sys

import pytest

from simclr_jax.train.__main__ import main
from simclr_jax.train.log import read_rows

ROOT = pathlib.Path(__file__).parents[1]
SMALL = ["--config.batch=64", "--config.steps=6", "--config.nets.backbone.channels=(4,8)", "--config.optim.name=sgd",
         "--config.optim.lr=0.1", "--config.optim.warmup_epochs=0.1", "--config.log_every=1",
         "--config.checkpoint.every=2", "--config.evals.every=0", "--config.pictures=false"]


def train(workdir, *more, small=SMALL):
    main(["train", f"--config={ROOT}/configs/simclr_digits.py", f"--workdir={workdir}", *small, *more])


def numbers(workdir):
    """metrics.jsonl without what depends on the clock."""
    return [{k: v for k, v in row.items() if k not in ("images_per_s", "data_wait")}
            for row in read_rows(workdir / "metrics.jsonl")]


def launch(workdir, *more, wait=60, **options):
    """launch/local.sh with two processes; returns (exit code, output). Killed after `wait` seconds."""
    return finish(start(workdir, *more, **options), wait)


def start(workdir, *more, config=f"{ROOT}/configs/simclr_digits.py", small=SMALL):
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | {"PYTHON": sys.executable}
    return subprocess.Popen([ROOT / "launch/local.sh", "2", f"--config={config}", f"--workdir={workdir}", *small, *more],
                            env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                            start_new_session=True)


def finish(job, wait):
    try:
        return job, job.communicate(timeout=wait)[0]
    except subprocess.TimeoutExpired:
        os.killpg(job.pid, signal.SIGKILL)
        pytest.fail(f"two processes did not end within {wait} s:\n{job.communicate()[0]}")
