"""Processes, signals, hangs: real processes of the real command, and what happens to them."""
import json
import signal
import socket
import time

import pytest

from reliability.jobs import free_port
from simclr_jax.train.log import read_rows

SLOW = "slow_step"  # so that signals come within the run
END = 60  # seconds, on a machine that does other things too; times that matter are measured from the fault on


def saved(job):
    """The steps in the workdir's checkpoints."""
    return sorted(int(p.name) for p in (job.workdir / "checkpoints").iterdir() if p.name.isdigit())


def goes_on(job, start, step):
    """The same command, which must go on from `step`."""
    again = start(f"--config.steps={step + 2}", "--allow_config_change", workdir=job.workdir)
    assert again.codes(END) == [0], again.all()
    assert f"going on from step {step} of {step + 2}" in again.text()


@pytest.mark.scorecard(26)
def test_sigterm_to_one_of_two_saves_a_common_step_within_15_seconds(job):
    two = job(processes=2, fault=SLOW)
    two.until("/900  loss")
    two.signal(signal.SIGTERM, 1)
    asked = time.monotonic()
    assert two.codes(END) == [75, 75], two.all()
    assert time.monotonic() - asked < 15
    (step,) = saved(two)
    assert f"stopped at step {step}, saved" in two.text(0) and "asked to stop (SIGTERM)" in two.text(1)
    assert read_rows(two.workdir / "metrics.jsonl")[-1]["step"] == step


@pytest.mark.slow
@pytest.mark.scorecard(26)
def test_after_sigterm_to_one_of_two_one_alone_goes_on_there(job):
    two = job(processes=2, fault=SLOW)
    two.until("/900  loss")
    two.signal(signal.SIGTERM, 0)
    assert two.codes(END) == [75, 75], two.all()
    (step,) = saved(two)
    goes_on(two, job, step)


@pytest.mark.slow
@pytest.mark.scorecard(27)
@pytest.mark.parametrize("processes", [1, 2])
def test_sigterm_while_waiting_for_data_saves(job, processes):
    one = job(processes=processes, fault="sleeping_loader")
    one.until("step   5/900")
    one.signal(signal.SIGTERM, processes - 1)
    asked = time.monotonic()
    assert one.codes(END) == [75] * processes, one.all()
    assert time.monotonic() - asked < 20 and saved(one) == [5]


@pytest.mark.slow
@pytest.mark.scorecard(27)
@pytest.mark.parametrize("processes", [1, 2])
def test_sigterm_while_compiling_ends_within_the_grace(job, processes):
    one = job("--config.life.grace=3", processes=processes, fault="slow_compile")
    one.until("\ncompiling\n")
    one.signal(signal.SIGTERM, processes - 1)
    asked = time.monotonic()
    assert one.codes(END) == [75] * processes, one.all()
    assert time.monotonic() - asked < 20 and "stopped unsaved: at step 1 (compile)" in one.all()


@pytest.mark.slow
@pytest.mark.scorecard(27)
@pytest.mark.parametrize("processes", [1, 2])
def test_sigterm_in_an_evaluation_ends_it_with_the_step_saved(job, processes):
    one = job("--config.evals.every=4", processes=processes, fault="slow_eval")
    one.until("evaluating")
    one.signal(signal.SIGTERM, processes - 1)
    asked = time.monotonic()
    assert one.codes(END) == [75] * processes, one.all()
    assert time.monotonic() - asked < 20 and saved(one) == [4]
    assert "stopped in the evaluation at step 4, which is saved" in one.all()


@pytest.mark.slow
@pytest.mark.scorecard(28)
@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_second_signal_leaves_at_once(job, number, code):
    one = job("--config.life.grace=60", fault="slow_compile")
    one.until("\ncompiling\n")
    one.signal(number)
    one.until("asked to stop")
    asked = time.monotonic()
    one.signal(number)
    assert one.codes(END) == [code], one.all()
    assert time.monotonic() - asked < 3 and "again: left at once" in one.last()


@pytest.mark.slow
@pytest.mark.scorecard(28)
def test_ctrl_c_passed_on_as_sigterm_is_one_request(job):
    one = job(fault=SLOW)
    one.until("/900  loss")
    one.signal(signal.SIGINT)
    one.signal(signal.SIGTERM)
    assert one.codes(END) == [75], one.all()
    assert len(saved(one)) == 1


@pytest.mark.slow
@pytest.mark.scorecard(29)
@pytest.mark.parametrize("victim", [1, 0])
def test_when_a_process_is_killed_the_others_name_it_and_leave(job, victim):
    two = job(processes=2, fault=SLOW)
    two.until("/900  loss")
    two.signal(signal.SIGKILL, victim)
    killed = time.monotonic()
    codes = two.codes(END)
    assert codes[1 - victim] == 75 and codes[victim] == -signal.SIGKILL, two.all()
    assert time.monotonic() - killed < 5 + 10  # config.life.heartbeat is 5 here
    assert f"process {victim} on " in two.last(1 - victim) and "lost" in two.last(1 - victim)


@pytest.mark.scorecard(30)
def test_a_process_stuck_in_its_loader_is_named_and_all_end_with_their_stacks(job):
    two = job("--config.life.warn=3", "--config.life.abort=6", processes=2, fault="sleeping_loader:1")
    codes = two.codes(END)
    assert codes == [75, 75], two.all()
    for i in range(2):
        lines = two.text(i).splitlines()
        warned = [line for line in lines if line.startswith("warning: process 1 on ")]
        assert warned and "is in 'data' at step" in warned[0], two.all()
        assert "process 1 on " in lines[-1] and "is in 'data'" in lines[-1]
        assert "(most recent call first)" in two.text(i)
    assert "in slow" in two.text(1)  # the stack shows where it sleeps


@pytest.mark.slow
@pytest.mark.scorecard(31)
def test_a_process_with_fewer_rows_is_refused_before_the_first_step(job):
    two = job(processes=2, fault="short_batch:1")
    assert two.codes(END) == [70, 70], two.all()
    for i in range(2):
        assert "the shape of a process's batch differs between processes: 1 not as in process 0" in two.text(i)
        assert "Traceback" not in two.text(i)


@pytest.mark.slow
@pytest.mark.scorecard(31)
def test_when_the_data_of_one_ends_all_end(job):
    two = job(processes=2, fault="ending_loader:1")
    assert two.codes(END) == [70, 70], two.all()
    assert "the batches came to an end" in two.last(1)
    assert "process 1 ended: the batches came to an end" in two.last(0)


@pytest.mark.slow
def test_a_disk_that_fails_one_process_ends_all_with_the_reason(job):
    two = job(processes=2, fault="failing_loader:1")
    assert two.codes(END) == [70, 70], two.all()
    assert all("Input/output error" in two.last(i) for i in range(2)), two.all()


@pytest.mark.slow
@pytest.mark.scorecard(32)
def test_a_port_in_use_an_absent_coordinator_and_a_wrong_count_are_one_line(job):
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        busy = job(f"--coordinator=localhost:{port}", "--processes=2", "--process=0")
        absent = job(f"--coordinator=localhost:{free_port()}", "--processes=2", "--process=1", "--config.life.join=4")
        alone = job(f"--coordinator=localhost:{free_port()}", "--processes=2", "--process=0", "--config.life.join=4")
        odd = job("--coordinator=localhost:1234", "--processes=2", "--process=2")
        for one, words in ((busy, f"cannot listen on port {port} (Address already in use); take a free one"),
                           (absent, "process 1 of 2 could not join localhost:"), (alone, "could not join localhost:"),
                           (odd, "--process=2 --processes=2: wanted 0 to 1")):
            assert one.codes(END) == [2], one.all()
            assert words in one.last() and one.last().startswith("error: "), one.all()
        assert "within 4 s" in absent.last() and "within 4 s" in alone.last()


@pytest.mark.slow
@pytest.mark.scorecard(25)
def test_a_save_that_only_process_0_calls_is_found(job):
    """The watchdog's own proof: the harness's usual run does not hang, this one does, and is ended by name."""
    two = job("--config.checkpoint.every=3", "--config.life.warn=2", "--config.life.abort=5", processes=2,
              fault="only_one_saves:1")
    started = time.monotonic()
    codes = two.codes(END)
    assert codes == [75, 75], two.all()
    assert "'save'" in two.all() and time.monotonic() - started < END
    assert json.loads((two.workdir / "metrics.jsonl").read_text().splitlines()[-1])["step"] < 10
