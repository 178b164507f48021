"""Two real processes on one machine against one: the same examples, the same losses, one workdir."""
import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest

from runs import ROOT, SMALL, launch, numbers, train

CONFIG = f"--config={ROOT}/configs/simclr_digits.py"

def test_two_processes_train_as_one(tmp_path):
    train(tmp_path / "one")
    job, output = launch(tmp_path / "two", "--config.nets.backbone.bn=global")
    assert job.returncode == 0, output
    assert "mesh data 2, 2 process(es)" in output
    for got, want in zip(numbers(tmp_path / "two"), numbers(tmp_path / "one"), strict=True):
        np.testing.assert_allclose(got["train/loss"], want["train/loss"], rtol=1e-4)
        np.testing.assert_allclose(got["train/update_norm"], want["train/update_norm"], rtol=1e-3)
    # What two processes wrote, one goes on with.
    train(tmp_path / "two")
    assert json.loads((tmp_path / "two" / "config.json").read_text())["batch"] == 64


@pytest.mark.slow
def test_processes_with_a_directory_each_are_refused(tmp_path):
    """A relative workdir in two working directories stands for two machines without a shared disk."""
    port = subprocess.run([sys.executable, "-c", "import socket; s = socket.socket(); s.bind(('localhost', 0)); "
                           "print(s.getsockname()[1])"], capture_output=True, text=True).stdout.strip()
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | {"PYTHONPATH": str(ROOT)}
    jobs = []
    for i in range(2):
        (tmp_path / str(i)).mkdir()
        jobs.append(subprocess.Popen(
            [sys.executable, "-m", "simclr_jax.train", CONFIG, "--workdir=run", *SMALL, f"--coordinator=localhost:{port}",
             "--processes=2", f"--process={i}"], cwd=tmp_path / str(i), env=environment, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True))
    outputs = []
    for job in jobs:
        try:
            outputs.append(job.communicate(timeout=60))
        except subprocess.TimeoutExpired:
            [j.kill() for j in jobs]
            pytest.fail("the processes hang")
    for i, (job, (out, err)) in enumerate(zip(jobs, outputs)):
        assert job.returncode == 2, err
        assert "not one place for all processes: process 1 on" in err
    assert not (tmp_path / "0" / "run" / "checkpoints" / "0").exists()


@pytest.mark.slow
def test_one_process_that_fails_takes_the_others_with_it(tmp_path):
    """Process 1 meets an unreadable picture in its share of a batch, beyond the limit; process 0 must not wait for it."""
    from PIL import Image
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for i in range(64):
        (pictures / f"{i:02}.png").write_bytes(b"broken") if i % 2 else Image.new("RGB", (9, 9)).save(
            pictures / f"{i:02}.png")
    start_time = time.time()
    job, output = launch(tmp_path / "run", "--config.data.name=folder", f"--config.data.root={pictures}",
                         "--config.data.memory=0.0", "--config.batch=8", "--config.steps=100000")
    assert job.returncode == 70 and time.time() - start_time < 50, output
    assert "images cannot be read, and max_bad=0.01" in output and "Traceback" not in output


def test_dry_run_prints_what_would_run():
    ran = subprocess.run([ROOT / "launch/local.sh", "2", "--dry-run", CONFIG, "--workdir=x y"], capture_output=True,
                         text=True, env=os.environ | {"PYTHON": "py", "PORT": "1234"})
    lines = ran.stdout.splitlines()
    assert ran.returncode == 0 and len(lines) == 2
    assert lines[1].split() == ["py", "-m", "simclr_jax.train", CONFIG, "--workdir=x\\", "y", "--coordinator=localhost:1234",
                                "--processes=2", "--process=1"]
    ran = subprocess.run([ROOT / "launch/local.sh", "two"], capture_output=True, text=True)
    assert ran.returncode == 2 and ran.stderr.startswith("error: got 'two' for the number of processes")
