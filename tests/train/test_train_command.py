"""The training command on real digits: resume, devices, damage, refusals. Small nets, the real code."""
import json
import pathlib
import shutil

import numpy as np
import pytest
from PIL import Image

from runs import ROOT, SMALL, numbers, train
from simclr_jax import build, config as configs
from simclr_jax.errors import NumericsError, UsageError
from simclr_jax.life import Life, command
from simclr_jax.train.__main__ import main
from simclr_jax.train import load
from simclr_jax.train.checkpoint import Checkpoints
from simclr_jax.train.log import read_rows


def state_of(workdir):
    """{path: bytes} of the newest checkpoint, by the checksums and arrays that it stores."""
    from simclr_jax.train import stored
    steps = Checkpoints(workdir / "checkpoints", writable=False)
    step = steps.steps()[-1]
    return step, stored.record(steps.directory / str(step))["leaves"]


def stop_after(monkeypatch, step):
    monkeypatch.setattr(Life, "stops", lambda self, at: at == step)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("unbroken")
    train(workdir)
    return workdir


@pytest.mark.scorecard(10)
@pytest.mark.slow
def test_twice_the_same_command_is_twice_the_same_run(unbroken, tmp_path):
    train(tmp_path, "--config.profile.start=2", "--config.profile.steps=2", "--config.pictures=true")  # only watched
    assert state_of(tmp_path) == state_of(unbroken)
    assert numbers(tmp_path) == numbers(unbroken) and len(numbers(tmp_path)) == 6
    assert list(tmp_path.glob("profile/plugins/profile/*/*.xplane.pb")) and list(tmp_path.glob("tb/events*"))
    assert {p.name for p in (tmp_path / "images").iterdir()} == {"views.png", "loss.png"}


def test_a_stopped_run_goes_on_to_the_bit(unbroken, tmp_path, monkeypatch, capsys):
    stop_after(monkeypatch, 3)
    with pytest.raises(SystemExit) as stopped:
        train(tmp_path)
    assert stopped.value.code == 75 and "stopped at step 3, saved" in capsys.readouterr().out
    monkeypatch.undo()
    train(tmp_path)
    assert "going on from step 3 of 6" in capsys.readouterr().out
    assert state_of(tmp_path) == state_of(unbroken)  # every leaf's path, dtype, shape and checksum
    assert numbers(tmp_path) == numbers(unbroken)
    train(tmp_path)
    assert "already at step 6 of 6" in capsys.readouterr().out


@pytest.mark.scorecard(19)
def test_a_damaged_checkpoint_costs_the_steps_since_the_one_before(unbroken, tmp_path, monkeypatch, capsys):
    stop_after(monkeypatch, 4)
    with pytest.raises(SystemExit):
        train(tmp_path)
    monkeypatch.undo()
    for file in (tmp_path / "checkpoints" / "4" / "state").rglob("*"):
        if file.is_file():  # one bit in every hundred bytes: arrays and their index alike
            content = np.frombuffer(file.read_bytes(), np.uint8).copy()
            content[::100] ^= 1
            file.write_bytes(content.tobytes())
    train(tmp_path)
    out = capsys.readouterr().out
    assert "/4 is damaged" in out and "going on from step 2 of 6" in out
    assert state_of(tmp_path) == state_of(unbroken) and numbers(tmp_path) == numbers(unbroken)


@pytest.mark.slow  # in one run, resumed: test_a_run_resumed_on_other_devices_sees_the_same_and_loses_the_same
@pytest.mark.parametrize("more", [["--config.devices=1"], ["--config.devices=8"]], ids=str)
def test_any_number_of_devices_trains_the_same(unbroken, tmp_path, more):
    train(tmp_path, *more)
    for got, want in zip(numbers(tmp_path), numbers(unbroken), strict=True):
        np.testing.assert_allclose(got["train/loss"], want["train/loss"], rtol=1e-4)


@pytest.mark.slow
def test_a_run_resumed_on_other_devices_sees_the_same_and_loses_the_same(unbroken, tmp_path, monkeypatch):
    stop_after(monkeypatch, 3)
    with pytest.raises(SystemExit):
        train(tmp_path, "--config.devices=8")
    monkeypatch.undo()
    train(tmp_path, "--config.devices=4")
    for got, want in zip(numbers(tmp_path), numbers(unbroken), strict=True):
        np.testing.assert_allclose(got["train/loss"], want["train/loss"], rtol=1e-4)


@pytest.mark.slow
def test_the_devices_of_a_run_are_kept_on_resume(tmp_path, monkeypatch, capsys):
    stop_after(monkeypatch, 2)
    with pytest.raises(SystemExit):
        train(tmp_path, "--config.devices=4")
    monkeypatch.undo()
    train(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["devices"] == 4
    assert capsys.readouterr().out.count("devices: 4 cpu") == 2


def test_a_changed_config_is_refused_with_both_values(unbroken, tmp_path, capsys):
    workdir = shutil.copytree(unbroken, tmp_path / "run")
    with pytest.raises(UsageError, match=r"method.temperature: 0\.\d+ -> 0.77; .*another --workdir"):
        train(workdir, "--config.method.temperature=0.77")
    train(workdir, "--config.log_every=3", "--config.checkpoint.keep=5")  # these change no number
    train(workdir, "--config.steps=7", "--allow_config_change")
    assert "changed on resume, as allowed: steps: 6 -> 7" in capsys.readouterr().out


@pytest.mark.scorecard(23)
def test_steps_that_are_not_finite_are_skipped_and_so_many_in_a_row_stop_the_run(tmp_path):
    with pytest.raises(NumericsError, match=r"3 steps in a row were skipped, to step \d+: .*checkpoint \d+ holds the "
                                            r"last state; .*--replay=.*try a lower") as stopped:
        train(tmp_path, "--config.optim.lr=1e38", "--config.optim.momentum=0.99", "--config.checkpoint.every=100",
              "--config.guard.stop=3", "--config.steps=20")
    assert stopped.value.code == 71
    skipped = read_rows(tmp_path / "skipped.jsonl")
    assert [r["in_a_row"] for r in skipped][-3:] == [1, 2, 3] and all(len(r["ids"]) == 64 for r in skipped)
    step, leaves = state_of(tmp_path)  # the last state, which is finite
    assert step in (skipped[-1]["step"], skipped[-1]["step"] + 1)
    restored = load.read({"backbone": f"{tmp_path}:backbone"})["backbone"]
    assert all(np.isfinite(x).all() for x in restored.values())


WRONG = {
    "--config.bacth=3": "the config has no field 'bacth'; did you mean 'batch'",
    "--config.batch=1e3": "--config.batch=1e3: invalid literal for int",
    "--config.batch=1": "config.batch=1, wanted at least 2",
    "--config.seed=-1": "config.seed=-1, wanted at least 0",
    "--config.epochs=nan --config.steps=0": "config.epochs=nan: set one of them above 0",
    "--config.method.comm=foo": "config.method.comm='foo'",
    "--config.nets.backbone.bn=rows=7": "bn='rows=7' does not divide the",
    "--config.nets.backbone.bn=devices=3": "bn='devices=3' does not divide the",
    "--config.evals.every=2 --config.evals.run=knnn": "there is no 'knnn'; did you mean 'knn'",
    "--config.evals.every=2 --config.evals.limit=-5": "config.evals.limit=-5: wanted 0 or more",
    "--config.augment.views[0]=5": "not a valid index",
    "--config.augment.where=gpu": "config.augment.where='gpu'", "--config.augment.workers=-1": "config.augment.workers=-1",
    "--config.optim.decay=(('a','b'),)": "no (regex, number) pair",
    "--config.data.name=folder": "no root given; name your folder of images, as in --config.data.root=DIR",
    "--config.data.name=folder --config.data.root=/nowhere": "/nowhere is not a folder",
    "--config.wandb=true": "wandb is not installed",
    "--config.batch=60 --config.devices=8": "config.batch=60 does not divide over 8 devices x 1 micro-batches; take 56 or 64",
    "--config.batch=64 --config.microbatches=5": "does not split into config.microbatches=5",
    "--config.batch=4096": "1297 examples, fewer than a global batch of 4096",
    "--config.devices=9": "config.devices=9, but there are 8",
    "--config.method.name=simlcr": "there is no 'simlcr'; did you mean 'simclr'",
    "--config.method.temperature=0": "temperature=0.0, wanted a number above 0",
    "--config.nets.backbone.bn=globl": "globl",
    "--config.optim.name=lasr": "wanted one of lars_simclr",
    "--config.data.split=tset": "tset",
    "--config.mesh.data=3": "does not fit",
    "--config.steps=-1": "config.steps=-1, wanted at least 0",
    "--wrokdir=x": "unknown flag; did you mean 'workdir'?",
    "stray": "'stray' is no flag",
}


@pytest.mark.scorecard(42)
@pytest.mark.parametrize("given", WRONG)
def test_bad_input_is_one_line_and_leaves_nothing_behind(given, tmp_path, capsys, monkeypatch):
    workdir = tmp_path / "run"
    monkeypatch.setattr("sys.argv", ["train", f"--config={ROOT}/configs/simclr_digits.py", f"--workdir={workdir}",
                                     *SMALL, *given.split()])
    with pytest.raises(SystemExit) as stopped:
        command(main)
    err = capsys.readouterr().err
    assert stopped.value.code == 2
    assert err.startswith("error: ") and err.count("\n") == 1 and WRONG[given] in err
    assert not workdir.exists()


def test_config_files_are_refused_in_one_line(tmp_path):
    def refusal(text, arg=""):
        (tmp_path / "c.py").write_text(text)
        with pytest.raises(UsageError) as e:
            configs.parse(["train", f"--config={tmp_path}/c.py{arg}"])
        assert "\n" not in str(e.value)
        return str(e.value)
    head = "from simclr_jax.config import base\ndef get_config():\n  c = base()\n"
    assert "line 4" in refusal(head + "  c.bacth = 3\n  return c") and "bacth" in refusal(head + "  c.bacth = 3\n  return c")
    assert "float" in refusal(head + "  c.batch = 2.5\n  return c") or "int" in refusal(head + "  c.batch = 2.5\n  return c")
    assert "no function get_config" in refusal("x = 1")
    assert "takes no variant" in refusal(head + "  return c", ":batch=3")
    assert "SyntaxError" in refusal("def get_config(:")
    with pytest.raises(UsageError, match="there is no file configs/simclr_digit.py; did you mean 'configs/simclr_digits.py'"):
        configs.parse(["train", "--config=configs/simclr_digit.py"])
    with pytest.raises(UsageError, match="no --config given"):
        configs.parse(["train"])
    with pytest.raises(UsageError, match="unknown variant 'bacth'; did you mean 'batch'"):
        configs.parse(["train", f"--config={ROOT}/configs/simclr_imagenet.py:bacth=3"])


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.py")), ids=lambda p: p.name)
def test_every_config_is_complete(path):
    weights = ["--config.load.image=runs/some:backbone"] if path.name == "lit.py" else []
    config, _ = configs.parse(["train", f"--config={path}", *weights])
    configs.check(config)
    assert configs.plain(configs.from_plain(configs.plain(config))) == configs.plain(config)
    views = len(build.recipe(config).of("views"))
    assert views == (1 if config.text else 2) and len(config.augment.eval) >= 1
    text = path.read_text().split('"""')[1]
    assert "python -m simclr_jax.train" in text and "Hardware" in text and "Expected" in text


def test_a_name_can_be_overridden_and_its_fields_with_it():
    def parsed(*flags):
        return configs.parse(["train", f"--config={ROOT}/configs/simclr_digits.py", *flags])[0]
    net = parsed("--config.nets.backbone.name=resnet", "--config.nets.backbone.depth=18", "--config.nets.backbone.width=0.5",
                 "--config.nets.backbone.stem=cifar").nets.backbone
    assert (net.name, net.depth, net.width, net.bn) == ("resnet", 18, 0.5, "global") and "channels" not in net
    data = parsed("--config.data.name=folder", "--config.data.root=pictures").data
    assert data.root == str(pathlib.Path.cwd() / "pictures") and data.split == "train"


@pytest.mark.slow
def test_a_run_whose_data_changed_is_refused(tmp_path):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for i in range(20):
        Image.fromarray(np.full((9, 9, 3), 10 * i, np.uint8)).save(pictures / f"{i}.png")
    more = ["--config.data.name=folder", f"--config.data.root={pictures}", "--config.batch=8", "--config.steps=2"]
    train(tmp_path / "run", *more)
    (pictures / "3.png").rename(pictures / "33.png")
    build._source.cache_clear()  # as a new process would
    with pytest.raises(UsageError, match=r"the data's digest: \d+ -> \d+; take another --workdir"):
        train(tmp_path / "run", *more)


@pytest.mark.slow
def test_an_evaluation_that_a_stop_cut_off_is_made_up_for(tmp_path, monkeypatch):
    more = ["--config.evals.every=2", "--config.evals.best=knn"]
    train(tmp_path / "unbroken", *more)
    for step in (2, 4):
        stop_after(monkeypatch, step)
        with pytest.raises(SystemExit):
            train(tmp_path / "stopped", *more)
    monkeypatch.undo()
    train(tmp_path / "stopped", *more)
    def at(w):
        return {r["step"]: r["eval/knn"] for r in numbers(w) if "eval/knn" in r}
    assert at(tmp_path / "stopped") == at(tmp_path / "unbroken") and set(at(tmp_path / "stopped")) == {2, 4, 6}
    assert [p.name for p in (tmp_path / "stopped/best").iterdir()] == [p.name for p in (tmp_path / "unbroken/best").iterdir()]


@pytest.mark.slow
def test_statistics_by_device_make_their_number_part_of_the_run(tmp_path):
    train(tmp_path, "--config.nets.backbone.bn=local", "--config.devices=2", "--config.steps=2")
    with pytest.raises(UsageError, match="devices: 2 -> 4"):
        train(tmp_path, "--config.nets.backbone.bn=local", "--config.devices=4", "--config.steps=2")


@pytest.mark.scorecard(22)
def test_an_unwritable_workdir_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written"):
        train(tmp_path / "file" / "run")
    with pytest.raises(UsageError, match="no --workdir given"):
        main(["train", f"--config={ROOT}/configs/simclr_digits.py", *SMALL])
