"""benchmarks/methods.py: runs, scores, keeps, and says what is not above the untrained net."""
import importlib.util

import pytest

from runs import ROOT
from simclr_jax.errors import UsageError

SMALL = ["--config.batch=32", "--config.steps=2", "--config.nets.backbone.channels=(4,8)", "--config.devices=1"]


@pytest.fixture(scope="module")
def methods():
    spec = importlib.util.spec_from_file_location("methods_table", ROOT / "benchmarks/methods.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("flags, message", {
    (): "wanted a directory", ("--keep=x", "--recipes=byo_digits"): "did you mean 'byol_digits'",
    ("--keep=x", "--seeds=0,a"): "whole numbers", ("--keep=x", "--recipes=folder"): "folder: the recipe counts epochs",
    ("--keep=x", "--kep=y"): "unknown flag", ("--keep=x", "--config.nothing=1"): "the config has no field 'nothing'"}.items())
def test_what_it_cannot_do_is_refused_before_anything_runs(methods, flags, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=message):
        methods.main(["methods", *flags])
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_table_is_made_and_made_again_from_what_is_kept(methods, tmp_path, capsys, monkeypatch):
    command = ["methods", f"--keep={tmp_path}", "--recipes=byol_digits moco_digits:queue=64", "--seeds=0,1", *SMALL]
    methods.main(command)
    first = capsys.readouterr().out
    monkeypatch.setattr(methods, "train", lambda argv: pytest.fail("trained again"))
    methods.main(command)
    assert capsys.readouterr().out == first
    byol, moco, net, pixels = [[cell.strip() for cell in line.strip("| ").split("|")]
                               for line in first.splitlines() if line.startswith("| ")][1:]
    assert (byol[0], byol[1], byol[2], moco[0]) == ("byol", "convnet, 4-8", "2 x 32", "moco:queue=64")
    assert net[0] == "untrained convnet, 4-8" and pixels[0] == "raw pixels"
    assert 50 < float(pixels[-2]) < 99 and "±" in byol[3] and "±" not in pixels[3]
    assert "Not 3 points" in first  # two steps teach nothing
