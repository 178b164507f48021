"""The doctor finds what would stop a run, says what to do, and leaves nothing behind."""
import os
import subprocess
import sys
import types

import pytest

from runs import ROOT
from simclr_jax import config as configs
from simclr_jax.plan import doctor
from simclr_jax.train import workdir as workdirs

DIGITS = f"--config={ROOT}/configs/simclr_digits.py"


def findings(*more, workdir=None, seconds=0):
    config, _ = configs.parse(["plan", DIGITS, "--config.devices=4", *more])
    return {f.what: f for f in doctor.doctor(config, workdir, seconds=seconds)}


def test_a_run_that_can_start(tmp_path):
    found = findings(workdir=tmp_path / "a" / "b", seconds=0.1)
    assert not [f for f in found.values() if f.level == doctor.BAD]
    assert "mesh data 4" in found["run"].text and "1297 images" in found["run"].text
    assert float(found["loader"].text.split(" images/s")[0].replace(",", "")) > 0
    assert "can be written" in found["workdir"].text and "4 at once" in found["checkpoints"].text
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("flag, what, text", [
    ("--config.data.name=folder", "run", "root"), ("--config.batch=6", "run", "does not divide over 4 devices"),
    ("--config.mesh.model=3", "run", "does not fit 4 devices"), ("--config.batch=4096", "run", "1297")])
def test_what_would_refuse_a_run_is_found(flag, what, text):
    found = findings(flag)[what]
    assert found.level == doctor.BAD and text in found.text and "\n" not in found.text


def test_a_workdir_that_cannot_be_written_or_is_full(tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.touch()
    assert findings(workdir=workdirs.resolve(str(file / "run")))["workdir"].level == doctor.BAD
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: types.SimpleNamespace(free=1000))
    found = findings(workdir=tmp_path)["checkpoints"]
    assert found.level == doctor.BAD and "lower --config.checkpoint.keep" in found.fix


def test_jobs_are_told_by_their_environment(monkeypatch):
    assert doctor._processes().text.startswith("one; no SLURM")
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    found = doctor._processes()
    assert found.level == doctor.NOTE and "start it by srun" in found.fix
    for name in ("SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID"):
        monkeypatch.setenv(name, "1")
    assert doctor._processes().text == "SLURM job 77: 1 processes, this is number 0"
    monkeypatch.delenv("SLURM_JOB_ID")
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "a,b")
    assert doctor._processes().text.startswith("GKE TPU slice")


def test_a_machine_without_tensorflow_and_with_an_unused_gpu(monkeypatch):
    def version(name, given=doctor.importlib.metadata.version):
        if name.startswith("tensorflow"):
            raise doctor.importlib.metadata.PackageNotFoundError(name)
        return given(name)
    monkeypatch.setattr(doctor.importlib.metadata, "version", version)
    assert doctor._versions().level == doctor.NOTE and "tensorflow-cpu" in doctor._versions().fix
    monkeypatch.delenv("JAX_PLATFORMS")
    monkeypatch.setattr(doctor.pathlib.Path, "exists", lambda self: str(self) == "/proc/driver/nvidia/version")
    assert [f.fix for f in doctor._devices()] == ["", "pip install -e '.[gpu]'"]


@pytest.mark.slow
@pytest.mark.parametrize("more, code, last", [
    ([DIGITS, "--workdir=run", "--seconds=0"], 0, "ready"), ([], 0, "ready as far as looked at; --config=FILE and --workdir=DIR "
                                                                 "look further"),
    ([DIGITS, "--config.batch=5000", "--workdir=run"], 2, "not ready: run"), (["--seconds=long"], 2, "")])
def test_the_command(more, code, last, tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | {"PYTHONPATH": str(ROOT)}
    ran = subprocess.run([sys.executable, "-m", "simclr_jax.plan", "--doctor", *more], capture_output=True, text=True, cwd=tmp_path,
                         env=environment, timeout=200)
    assert ran.returncode == code and "Traceback" not in ran.stderr, ran.stderr
    assert ran.stdout.splitlines()[-1:] == ([last] if last else [])
    assert not (tmp_path / "run").exists()
