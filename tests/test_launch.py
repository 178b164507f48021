"""The launchers: what --dry-run prints is what is run, with stand-ins for the clouds' commands."""
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tarfile

import pytest
import yaml

ROOT = pathlib.Path(__file__).parents[1]
SCRIPTS = sorted(p for p in (ROOT / "launch").iterdir() if p.suffix in (".sh", ".sbatch"))
ODD = ["--config=configs/simclr_digits.py:a=1,b=2", "--workdir=gs://bucket/a run",
       "--config.note=$HOME $(id) `id` \"x\" it's \\ *",
       "--config.lines=one\ntwo", "--config.empty="]
POD = ["--name=s1", "--zone=us-central1-a", "--topology=v5e:8x8"]
GKE = ["--name=s1", "--topology=v5e:8x8", "--image=us-docker.pkg.dev/p/r/simclr:1"]

# Answers with the first of the script's [word, output, exit code] that has a word of the command, and strikes it out.
STAND_IN = """#!{python} -IS
import json, os, sys
words = [os.path.basename(sys.argv[0]), *sys.argv[1:]]
given = sys.stdin.read() if "--filename=-" in words else ""
with open({log!r}, "a") as f:
    f.write(json.dumps([words, given]) + "\\n")
answers = json.load(open({answers!r}))
for i, (word, output, code) in enumerate(answers):
    if word in words or word in words[0]:
        del answers[i]
        json.dump(answers, open({answers!r}, "w"))
        print(output)
        sys.exit(code)
"""


class Cloud:
    """A PATH with stand-ins before everything else."""

    def __init__(self, path):
        self.path, self.log, self.answers = path, path / "log", path / "answers"
        (path / "bin").mkdir()
        for name in ("gcloud", "kubectl", "docker", "tar", "scontrol"):
            file = path / "bin" / name
            file.write_text(STAND_IN.format(python=sys.executable, log=str(self.log), answers=str(self.answers)))
            file.chmod(0o755)
        self.environment = os.environ | {"PATH": f"{path / 'bin'}:{os.environ['PATH']}", "TMPDIR": str(path), "WAIT": "0"}

    def run(self, script, *words, answers=(), **more):
        self.answers.write_text(json.dumps(list(answers)))
        self.log.write_text("")
        ran = subprocess.run([ROOT / "launch" / script, *words], capture_output=True, text=True, timeout=200,
                             env=self.environment | more)
        calls = [json.loads(line) for line in self.log.read_text().splitlines()]
        return ran, [words for words, _ in calls], [given for _, given in calls if given]


@pytest.fixture
def cloud(tmp_path):
    return Cloud(tmp_path)


def words(line):
    """What a shell makes of a line."""
    out = subprocess.run(["bash", "-c", f"words=({line}); printf '%s\\0' \"${{words[@]}}\""], capture_output=True,
                         text=True)
    return out.stdout.split("\0")[:-1]


def printed(ran):
    """The commands of a dry run, as words, and the manifests given to them."""
    assert ran.returncode == 0, ran.stderr
    text, manifests = ran.stdout, []
    while found := re.search(r" <<'END'\n(.*?\n)END\n", text, re.DOTALL):
        manifests.append(found[1])
        text = text.replace(found[0], "\n")
    return [words(line) for line in text.splitlines()], manifests


def test_every_script_is_clean():
    assert len(SCRIPTS) == 6
    for script in SCRIPTS:
        subprocess.run(["bash", "-n", script], check=True)
    beside = pathlib.Path(sys.executable).with_name("shellcheck")
    if checker := shutil.which("shellcheck") or (beside.exists() and beside):
        ran = subprocess.run([checker, "-x", *SCRIPTS], cwd=ROOT, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stdout


@pytest.mark.parametrize("flags", [[], ["--queued", "--spot", "--delete", "--project=p1", "--runtime=my-image"]])
def test_a_pod_is_made_filled_and_run_as_the_dry_run_says(cloud, flags):
    said, _ = printed(cloud.run("tpu_pod.sh", "--dry-run", *POD, *flags, "--", *ODD)[0])
    assert not cloud.log.read_text()
    ready = "ACTIVE" if "--queued" in flags else "READY"
    ran, done, _ = cloud.run("tpu_pod.sh", *POD, *flags, "--", *ODD, answers=[("list", "", 0), ("list", ready, 0)])
    assert ran.returncode == 0 and done == said, ran.stderr
    verbs = [next(w for w in call if w in ("list", "create", "scp", "ssh", "delete", "tar")) for call in said]
    assert verbs == ["list", "create", "list", "tar", "scp", "ssh", "ssh"] + ["delete"] * ("--delete" in flags)
    create = said[1]
    assert "--zone=us-central1-a" in create and "--accelerator-type=v5litepod-64" in create
    if flags:
        assert create[:5] == ["gcloud", "compute", "tpus", "queued-resources", "create"] and "--node-id=s1" in create
        assert "--runtime-version=my-image" in create and all("--project=p1" in c for c in said if c[0] == "gcloud")
        assert "--spot" in create
    else:
        assert create[3:6] == ["tpu-vm", "create", "s1"] and "--version=v2-alpha-tpuv5-lite" in create
        assert "costs; to delete it: gcloud compute tpus tpu-vm delete s1" in ran.stderr
    assert all("--worker=all" in call for call in said if "ssh" in call or "scp" in call)


def test_odd_arguments_reach_the_worker_as_they_were(cloud, tmp_path):
    said, _ = printed(cloud.run("tpu_pod.sh", "--dry-run", *POD, "--", *ODD)[0])
    worker = tmp_path / "simclr_jax" / "launch" / "worker.sh"
    worker.parent.mkdir(parents=True)
    worker.write_text("#!/bin/bash\nprintf '%s\\0' \"$@\"\n")
    worker.chmod(0o755)
    command = next(w for w in said[-1] if w.startswith("--command=")).removeprefix("--command=")
    got = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True).stdout.split("\0")[:-1]
    assert got == ["../.venv/bin/python", "-m", "simclr_jax.train", *ODD]


def test_a_preempted_pod_is_made_again_and_goes_on(cloud):
    ran, done, _ = cloud.run("tpu_pod.sh", *POD, "--spot", "--", *ODD, answers=[
        ("list", "READY", 0), ("ssh", "", 0), ("ssh", "step 9", 255), ("list", "PREEMPTED", 0),  # taken away while it ran
        ("list", "PREEMPTED", 0), ("list", "CREATING", 0), ("list", "READY", 0), ("ssh", "", 0), ("ssh", "saved", 75),
        ("list", "READY", 0), ("ssh", "", 0), ("ssh", "done", 0)])
    assert ran.returncode == 0, ran.stderr
    verbs = [call[4] for call in done if call[0] == "gcloud"]
    assert verbs == ["list", "scp", "ssh", "ssh", "list", "list", "delete", "create", "list", "list", "scp", "ssh", "ssh",
                     "list", "scp", "ssh", "ssh"]
    assert "exit code 255: going on (1 of 100)" in ran.stderr and "exit code 75: going on (2 of 100)" in ran.stderr


@pytest.mark.parametrize("code, turns", [(2, 1), (70, 1), (71, 1), (72, 1), (1, 1), (75, 3), (255, 3)])
def test_only_what_another_try_may_mend_is_tried_again(cloud, code, turns):
    answers = [("list", "READY", 0)] + [("ssh", "", 0), ("ssh", "", code), ("list", "READY", 0), ("list", "READY", 0)] * 3
    ran, done, _ = cloud.run("tpu_pod.sh", *POD, "--restarts=2", "--", *ODD, answers=answers)
    assert ran.returncode == code and sum("scp" in call for call in done) == turns


def test_without_access_or_capacity_nothing_is_tried_twice(cloud):
    ran, done, _ = cloud.run("tpu_pod.sh", *POD, "--", *ODD, answers=[("list", "", 1)])
    assert ran.returncode == 1 and len(done) == 1
    ran, done, _ = cloud.run("tpu_pod.sh", *POD, "--", *ODD, answers=[("list", "", 0), ("create", "", 1)])
    assert ran.returncode == 255 and len(done) == 2


def test_what_is_copied_installs(cloud, tmp_path):
    said, _ = printed(cloud.run("tpu_pod.sh", "--dry-run", *POD, "--", *ODD)[0])
    subprocess.run(said[3], check=True)
    with tarfile.open(said[3][2]) as archive:
        names = set(archive.getnames())
    assert {"simclr_jax/train/__main__.py", "configs/simclr_digits.py", "launch/worker.sh", "pyproject.toml", "README.md",
            "LICENSE", "requirements.txt"} <= names and not any("__pycache__" in n or n.startswith("tests") for n in names)
    dockerfile = (ROOT / "launch/Dockerfile").read_text()
    for name in ("simclr_jax", "configs", "pyproject.toml", "README.md", "LICENSE", "requirements.txt"):
        assert name in dockerfile


def worker(state, *command, **options):
    return subprocess.Popen([ROOT / "launch/worker.sh", *command], env=os.environ | {"STATE": str(state)}, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


def test_a_worker_outlives_its_connection(tmp_path):
    slow = ["bash", "-c", "echo 'one  $x'; until [ -e go ]; do sleep 0.1; done; echo two; exit 75"]
    first = worker(tmp_path / "state", *slow, cwd=tmp_path, start_new_session=True)
    assert first.stdout.readline() == "one  $x\n"
    os.killpg(first.pid, signal.SIGKILL)  # the connection breaks
    first.communicate()
    out, err = worker(tmp_path / "state", "true").communicate(timeout=100)
    assert err.startswith("error: another run goes on here")
    again = worker(tmp_path / "state", *slow, cwd=tmp_path)
    assert again.stdout.readline() == "one  $x\n"  # attached, from the start
    (tmp_path / "go").touch()
    assert again.communicate(timeout=100)[0] == "two\n" and again.returncode == 75
    ended = worker(tmp_path / "state", "bash", "-c", "exit 3")
    assert ended.communicate(timeout=100) == ("", "") and ended.returncode == 3


def test_a_worker_is_stopped_by_a_signal_to_its_command(tmp_path):
    job = worker(tmp_path, sys.executable, "-c", "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(75)); "
                 "print('up', flush=True); time.sleep(60)")
    assert job.stdout.readline() == "up\n"
    worker(tmp_path, "--stop").communicate(timeout=100)
    job.communicate(timeout=100)
    assert job.returncode == 75
    assert worker(tmp_path, "--stop").communicate(timeout=100)[0] == "nothing runs here\n"


def test_stopping_a_pod_is_one_command_to_all_workers(cloud):
    said, _ = printed(cloud.run("tpu_pod.sh", "--dry-run", "--stop", *POD[:2])[0])
    ran, done, _ = cloud.run("tpu_pod.sh", "--stop", *POD[:2])
    assert ran.returncode == 0 and done == said and len(done) == 1
    assert {"ssh", "--worker=all", "--command=simclr_jax/launch/worker.sh --stop"} <= set(done[0])


def kubernetes(word):
    """What Kubernetes makes of a word of a command: $(NAME) is replaced, $$ is a dollar."""
    return re.sub(r"\$\$|\$\((\w+)\)", lambda found: "$" if found[0] == "$$" else f"<{found[1]}>", word)


@pytest.mark.parametrize("flags", [[], ["--build", "--spot", "--delete", "--namespace=ml", "--service-account=trainer"]])
def test_a_jobset_is_applied_and_followed_as_the_dry_run_says(cloud, flags):
    said, manifests = printed(cloud.run("gke.sh", "--dry-run", *GKE, *flags, "--", *ODD)[0])
    assert not cloud.log.read_text()
    ran, done, given = cloud.run("gke.sh", *GKE, *flags, "--", *ODD, answers=[("get", "", 0), ("get", "Completed", 0)])
    assert ran.returncode == 0 and done == said, ran.stderr
    assert given == manifests and len(given) == 1
    verbs = [next(w for w in call[1:] if not w.startswith("--")) for call in said]
    assert verbs == ["build", "push"] * bool(flags) + ["apply", "get", "wait", "logs", "get"] + ["delete"] * bool(flags)
    jobset = yaml.safe_load(given[0])
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    pod = job["template"]["spec"]
    container = pod["containers"][0]
    assert [kubernetes(w) for w in container["command"]] == ["python", "-m", "simclr_jax.train", *ODD]
    assert job["parallelism"] == job["completions"] == 16 and container["resources"]["limits"]["google.com/tpu"] == 4
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "8x8" and container["image"] == GKE[2].split("=")[1]
    assert pod["restartPolicy"] == "Never" and job["backoffLimit"] == 0
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] == 100
    rule, = job["podFailurePolicy"]["rules"]
    assert rule == {"action": "FailJob", "onExitCodes": {"containerName": container["name"], "operator": "In",
                                                         "values": [2, 70, 71, 72]}}
    if flags:
        assert pod["serviceAccountName"] == "trainer" and pod["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
        assert jobset["metadata"]["namespace"] == "ml" and all("--namespace=ml" in c for c in said if c[0] == "kubectl")


@pytest.mark.parametrize("topology, accelerator, hosts, chips", [
    ("v3:2x2", "tpu-v3-device", 1, 4), ("v3:8x8", "tpu-v3-slice", 16, 4), ("v4:4x4x4", "tpu-v4-podslice", 16, 4),
    ("v5e:2x4", "tpu-v5-lite-podslice", 1, 8), ("v5e:16x16", "tpu-v5-lite-podslice", 64, 4),
    ("v6e:1x1", "tpu-v6e-slice", 1, 1),
    ("v5p:4x8x12", "tpu-v5p-slice", 96, 4)])
def test_topologies_of_gke(cloud, topology, accelerator, hosts, chips):
    _, (manifest,) = printed(cloud.run("gke.sh", "--dry-run", GKE[0], GKE[2], f"--topology={topology}", "--", *ODD)[0])
    job = yaml.safe_load(manifest)["spec"]["replicatedJobs"][0]["template"]["spec"]
    pod = job["template"]["spec"]
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-accelerator"] == accelerator
    assert (job["parallelism"], pod["containers"][0]["resources"]["limits"]["google.com/tpu"]) == (hosts, chips)


@pytest.mark.parametrize("topology, accelerator", [
    ("v2:2x2", "v2-8"), ("v3:8x8", "v3-128"), ("v4:2x4x4", "v4-64"), ("v5e:16x16", "v5litepod-256"), ("v6e:4x4", "v6e-16"),
    ("v5p:2x2x1", "v5p-8")])
def test_topologies_of_pods(cloud, topology, accelerator):
    said, _ = printed(cloud.run("tpu_pod.sh", "--dry-run", *POD[:2], f"--topology={topology}", "--", *ODD)[0])
    assert f"--accelerator-type={accelerator}" in said[1]


def test_a_jobset_that_failed_ends_with_its_code(cloud):
    answers = [("get", "", 0), ("wait", "", 1), ("logs", "", 1), ("get", "Failed", 0), ("pods", "0 70 143", 0)]
    ran, done, _ = cloud.run("gke.sh", *GKE, "--", *ODD, answers=answers)
    assert ran.returncode == 70 and "pods" in done[-1]
    ran, done, _ = cloud.run("gke.sh", *GKE, "--detach", "--", *ODD)
    assert ran.returncode == 0 and [call[2] for call in done] == ["apply"]


def slurm(cloud, code, **environment):
    """One task of a job, whose training ends with `code`."""
    srun = cloud.path / "bin" / "srun"
    srun.write_text(f"#!/bin/bash\nprintf '%s\\0' \"$@\" > {cloud.path}/srun\n"
                    "while [[ $1 == --* ]]; do shift; done\nSLURM_PROCID=0 \"$@\"\nexit 143\n")  # the others were ended
    python = cloud.path / "bin" / "training"
    python.write_text(f"#!/bin/bash\nprintf '%s\\0' \"$@\" > {cloud.path}/training\n"
                      "kill -TERM $PPID; sleep 0.2\n"  # SLURM signals the shell around it as well
                      f"exit {code}\n")
    for file in (srun, python):
        file.chmod(0o755)
    ran, done, _ = cloud.run("slurm.sbatch", *ODD, SLURM_JOB_ID="77", SLURM_SUBMIT_DIR=str(ROOT),
                             PYTHON=str(python), **environment)
    return ran, done, [(cloud.path / name).read_text().split("\0")[:-1] for name in ("srun", "training")]


def test_a_saved_slurm_job_is_queued_again_as_the_dry_run_says(cloud):
    ran, done, (step, training) = slurm(cloud, 75)
    python = str(cloud.path / "bin" / "training")
    said, _ = printed(cloud.run("slurm.sbatch", "--dry-run", *ODD, SLURM_JOB_ID="77", PYTHON=python)[0])
    assert ran.returncode == 75, ran.stderr
    assert said == [["srun", *step], *done] and done == [["scontrol", "requeue", "77"]]
    assert training == ["-m", "simclr_jax.train", *ODD] and step[0] == "--kill-on-bad-exit=1"


@pytest.mark.parametrize("code, environment, left", [
    (0, {}, 143), (2, {}, 2), (70, {}, 70), (75, {"SLURM_RESTART_COUNT": "100"}, 75),
    (75, {"SLURM_RESTART_COUNT": "1", "RESTARTS": "1"}, 75)])
def test_other_slurm_jobs_are_not(cloud, code, environment, left):
    ran, done, _ = slurm(cloud, code, **environment)
    assert ran.returncode == left and not done


def test_slurm_is_asked_for_a_warning_and_a_requeue():
    asked = re.findall(r"^#SBATCH (\S+)", (ROOT / "launch/slurm.sbatch").read_text(), re.MULTILINE)
    assert {"--signal=TERM@120", "--requeue", "--open-mode=append"} <= set(asked)
    nodes, tasks = (next(a for a in asked if a.startswith(f"--{x}-per-node=")) for x in ("gpus", "ntasks"))
    assert nodes.split("=")[1] == tasks.split("=")[1]  # a process a GPU, as JAX's SLURM detection takes it


@pytest.mark.parametrize("script, given, message", [
    ("tpu_pod.sh", [], "--name=''"), ("tpu_pod.sh", ["--name=My_Pod"], "--name='My_Pod', wanted small letters"),
    ("tpu_pod.sh", POD[:1], "no --zone given"), ("tpu_pod.sh", POD[:2], "no --topology given"),
    ("tpu_pod.sh", [*POD, "--tpu"], "unknown flag '--tpu'"), ("tpu_pod.sh", [*POD, *ODD], "unknown flag '--config=configs"),
    ("tpu_pod.sh", [*POD, "--restarts=x", "--", *ODD], "--restarts='x'"),
    ("tpu_pod.sh", POD, "no --config after '--'"), ("tpu_pod.sh", [*POD, "--", ODD[0]], "no --workdir after '--'"),
    ("tpu_pod.sh", [*POD, "--", ODD[0], "--workdir=runs/a"], "--workdir=runs/a is on one machine"),
    ("tpu_pod.sh", [*POD[:2], "--topology=v9:8x8"], "there is no TPU 'v9'; wanted v2, v3"),
    ("tpu_pod.sh", [*POD[:2], "--topology=8x8"], "there is no TPU '8x8'"),
    ("tpu_pod.sh", [*POD[:2], "--topology=v3:3x5"], "v3 has no shape '3x5'; there are 2x2 4x4"),
    ("tpu_pod.sh", [*POD[:2], "--topology=v4:4x4x6"], "there are 2x2x1 2x2x2 2x2x4 2x4x4 or multiples of 4x4x4"),
    ("tpu_pod.sh", [*POD[:2], "--topology=v5e:4x4x4"], "v5e has no shape '4x4x4'"),
    ("tpu_pod.sh", [*POD[:2], "--topology=v4:0x4x4"], "v4 has no shape '0x4x4'"),
    ("gke.sh", GKE[:1], "no --topology given"), ("gke.sh", GKE[:2], "--image=''"),
    ("gke.sh", ["--name=a b"], "'a b', wanted small letters"), ("gke.sh", [*GKE, "--zone=a"], "unknown flag '--zone=a'"),
    ("gke.sh", [GKE[0], GKE[2], "--topology=v2:2x2", "--", *ODD], "GKE has no TPU v2; take launch/tpu_pod.sh"),
    ("gke.sh", [*GKE, "--", ODD[0], "--workdir=/tmp/x"], "--workdir=/tmp/x is on one machine"),
    ("slurm.sbatch", [], "no --config given"), ("slurm.sbatch", ODD[:1], "no --workdir given"),
    ("slurm.sbatch", ["config"], "'config' is no flag"), ("slurm.sbatch", [*ODD, "--dry-run"], "--dry-run stands first"),
    ("slurm.sbatch", ODD, "this is no SLURM job"),
    ("local.sh", ["two"], "got 'two' for the number of processes"), ("local.sh", [], "got '' for the number"),
    ("worker.sh", [], "no command given")])
def test_refusals_are_one_line(cloud, script, given, message):
    ran, done, _ = cloud.run(script, *given, STATE=str(cloud.path / "state"))
    assert ran.returncode == 2 and not ran.stdout and not done
    assert ran.stderr.startswith("error: ") and ran.stderr.count("\n") == 1 and message in ran.stderr
