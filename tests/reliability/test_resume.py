"""Determinism, resume, resize: what an interrupted run comes to, bit for bit, and on other devices and processes."""
import collections
import shutil
import signal

import numpy as np
import pytest

from reliability.jobs import FLAGS
from runs import numbers
from simclr_jax.errors import UsageError
from simclr_jax.life import Life
from simclr_jax.train import stored
from simclr_jax.train.__main__ import main
from simclr_jax.train.checkpoint import Checkpoints
from simclr_jax.train.log import read_rows

END = 60
TWENTY = ["--config.steps=20", "--config.checkpoint.every=4"]


def leaves(workdir, step):
    """Every leaf of a checkpoint: path, dtype, shape, checksum of its bytes."""
    return stored.record(Checkpoints(workdir / "checkpoints", writable=False).directory / str(step))["leaves"]


def ids(workdir, process=0):
    """{step: examples}, as the process read them; a step that is read again must be read alike."""
    seen = {}
    for line in (workdir.parent / f"{workdir.name}.ids-{process}").read_text().splitlines():
        step, *examples = map(int, line.split())
        assert seen.setdefault(step, examples) == examples
    return {k: v for k, v in seen.items() if k < 20}


def same(got, want):
    assert leaves(got, 20) == leaves(want, 20)
    assert numbers(got) == numbers(want) and len(numbers(got)) == 20
    assert ids(got) == ids(want) and len(ids(got)) == len({tuple(v) for v in ids(got).values()}) == 20


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    from reliability.jobs import Job
    folder = tmp_path_factory.mktemp("unbroken")
    job = Job(folder, *TWENTY, fault="notes_ids")
    try:
        assert job.codes(END) == [0], job.all()
    finally:
        job.kill()
    return job.workdir


@pytest.mark.scorecard(11)
@pytest.mark.scorecard(12)
def test_a_run_killed_after_ten_steps_and_taken_up_by_a_new_process_is_the_unbroken_one(unbroken, job):
    """SIGKILL in step 11, two steps after a save began: the newest whole checkpoint counts, what follows is replayed."""
    one = job(*TWENTY, fault="notes_ids,kills_itself", KILL_AT="10")
    assert one.codes(END) == [-signal.SIGKILL], one.all()
    two = job(*TWENTY, fault="notes_ids", workdir=one.workdir)
    assert two.codes(END) == [0], two.all()
    assert "going on from step 8 of 20" in two.text() or "going on from step 4 of 20" in two.text()
    same(two.workdir, unbroken)


@pytest.mark.slow
@pytest.mark.scorecard(12)
@pytest.mark.parametrize("at", [8, 12])
def test_a_kill_while_a_save_is_written_costs_the_steps_since_the_one_before(unbroken, job, at):
    """The step after a save begins at once, so that the save is still being written when the process dies in it."""
    one = job(*TWENTY, fault="notes_ids,kills_itself", KILL_AT=str(at))
    assert one.codes(END) == [-signal.SIGKILL], one.all()
    two = job(*TWENTY, fault="notes_ids", workdir=one.workdir)
    assert two.codes(END) == [0], two.all()
    assert "going on from step" in two.text()
    same(two.workdir, unbroken)
    assert not [p for p in (two.workdir / "checkpoints").iterdir() if "tmp" in p.name]


def here(workdir, *more):
    """The run in this process, which has 8 devices."""
    main(["train", *FLAGS, "--config.steps=6", f"--workdir={workdir}", *more])


def stopped(monkeypatch, step, workdir, *more):
    with monkeypatch.context() as m:
        m.setattr(Life, "stops", lambda self, at: at == step)
        with pytest.raises(SystemExit) as e:
            here(workdir, *more)
    assert e.value.code == 75


@pytest.mark.slow
@pytest.mark.scorecard(13)
def test_resumed_on_4_and_on_2_of_8_devices(tmp_path, monkeypatch):
    from simclr_jax import build
    seen, feed = [], build.feed

    def noted(*args, **kwargs):
        for rows in feed(*args, **kwargs):
            seen[-1].append(rows["id"][:, 0].tolist())
            yield rows
    monkeypatch.setattr(build, "feed", noted)
    seen.append([])
    here(tmp_path / "one", "--config.devices=8")
    for step, devices in ((2, 8), (4, 4)):
        seen.append([])
        stopped(monkeypatch, step, tmp_path / "three", f"--config.devices={devices}")
    seen.append([])
    here(tmp_path / "three", "--config.devices=2")
    assert seen[1][:2] + seen[2][:2] + seen[3][:2] == seen[0][:6]
    for got, want in zip(numbers(tmp_path / "three"), numbers(tmp_path / "one"), strict=True):
        np.testing.assert_allclose(got["train/loss"], want["train/loss"], rtol=1e-4)


@pytest.mark.slow
@pytest.mark.scorecard(14)
def test_two_processes_then_one_see_every_example_of_the_epoch_once(job):
    """1,297 examples in batches of 128: ten steps and a bit are an epoch."""
    flags = ["--config.batch=128", "--config.steps=11", "--config.checkpoint.every=5"]
    two = job(*flags, processes=2, fault="notes_ids,stops_at_5")
    assert two.codes(END) == [75, 75], two.all()
    first = [ids(two.workdir, p) for p in range(2)]
    one = job(*flags, workdir=two.workdir, fault="notes_ids")
    (two.workdir.parent / f"{two.workdir.name}.ids-0").unlink()
    assert one.codes(END) == [0], one.all()
    later = ids(one.workdir)
    seen = [i for half in first for step, rows in half.items() if step < 5 for i in rows]
    seen += [i for step, rows in later.items() if step < 11 for i in rows]
    assert len(seen) == 11 * 128
    times = collections.Counter(seen)
    assert set(times) == set(range(1297)) and max(times.values()) == 2  # the last step's rest is of the next epoch
    assert sum(times.values()) == 11 * 128


@pytest.mark.slow
@pytest.mark.scorecard(15)
def test_the_rate_is_a_function_of_the_step_and_a_changed_length_is_said(tmp_path, monkeypatch, capsys):
    here(tmp_path / "one")
    stopped(monkeypatch, 3, tmp_path / "two")
    here(tmp_path / "two")
    rates = [[row["train/lr"] for row in numbers(tmp_path / d)] for d in ("one", "two")]
    assert rates[0] == rates[1] and len(set(rates[0])) == 6
    capsys.readouterr()
    with pytest.raises(UsageError, match="steps: 6 -> 9"):
        here(tmp_path / "two", "--config.steps=9")
    here(tmp_path / "two", "--config.steps=9", "--allow_config_change")
    assert "changed on resume, as allowed: steps: 6 -> 9" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.scorecard(16)
def test_a_changed_run_is_refused_with_the_field_and_both_values_or_listed(tmp_path, capsys):
    here(tmp_path / "run")
    for flag, said in (("--config.nets.projector.out=16", "nets.projector.out: 8 -> 16"),
                       ("--config.data.split=fit", 'data.split: "train" -> "fit"'),
                       ("--config.batch=32", "batch: 16 -> 32"), ("--config.seed=1", "seed: 0 -> 1")):
        with pytest.raises(UsageError, match="another config") as e:
            here(tmp_path / "run", flag)
        assert said in str(e.value) and "\n" not in str(e.value)
    capsys.readouterr()
    here(shutil.copytree(tmp_path / "run", tmp_path / "copy"), "--config.batch=32", "--allow_config_change")
    assert "changed on resume, as allowed: batch: 16 -> 32" in capsys.readouterr().out
    with pytest.raises(UsageError, match="nets.backbone.channels"):
        here(tmp_path / "run", "--config.nets.backbone.channels=(8,)")


@pytest.mark.slow
@pytest.mark.scorecard(17)
def test_parameters_drawn_from_another_seed_are_found_before_the_first_step(job):
    two = job(processes=2, fault="other_seed:1")
    assert two.codes(END) == [2, 2], two.all()
    assert all("before the first step: parameters differ between devices: device" in two.text(i)
               and "of process 1 not as the first" in two.text(i) for i in range(2)), two.all()
    assert read_rows(two.workdir / "metrics.jsonl") == []


@pytest.mark.slow
@pytest.mark.scorecard(17)
def test_parameters_that_drift_apart_are_found_by_the_check_of_every_so_many_steps(job):
    two = job("--config.life.check=4", processes=2, fault="drifting:1")
    assert two.codes(END) == [71, 71], two.all()
    assert all("step 4: parameters differ between devices" in two.text(i) for i in range(2)), two.all()
    assert not list((two.workdir / "checkpoints").glob("[0-9]*"))
