"""Every method on real digits by its own recipe, in small: it starts, stops, goes on to the bit, and is evaluated."""
import json

import pytest

from runs import ROOT, numbers
from simclr_jax.evals.__main__ import main as evaluate
from simclr_jax.life import Life
from simclr_jax.train import stored
from simclr_jax.train.__main__ import main
from simclr_jax.train.checkpoint import Checkpoints

RECIPES = sorted(p.stem.removesuffix("_digits") for p in (ROOT / "configs").glob("*_digits.py") if "clip" not in p.stem)
SMALL = ["--config.batch=32", "--config.steps=3", "--config.log_every=1", "--config.checkpoint.every=1", "--config.evals.every=0",
         "--config.pictures=false", "--config.devices=2"]
SHORT = {"swav": ["--config.method.queue=64", "--config.method.queue_epochs=0.0", "--config.method.prototypes=16"],
         "moco": ["--config.method.queue=128", "--config.method.shuffle=true", "--config.nets.backbone.bn=rows=8"],
         "dino": ["--config.method.prototypes=32"], "dinov2": ["--config.method.prototypes=32", "--config.nets.backbone.depth=2"]}


def train(name, workdir):
    main(["train", f"--config={ROOT}/configs/{name}_digits.py", f"--workdir={workdir}", *SMALL, *SHORT.get(name, [])])


def leaves(workdir):
    steps = Checkpoints(workdir / "checkpoints", writable=False)
    return stored.record(steps.directory / str(steps.steps()[-1]))["leaves"]


@pytest.mark.scorecard(8)
@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_runs_resumes_to_the_bit_and_is_evaluated(name, tmp_path, monkeypatch):
    train(name, tmp_path / "whole")
    monkeypatch.setattr(Life, "stops", lambda self, at: at == 2)
    with pytest.raises(SystemExit):
        train(name, tmp_path / "parts")
    monkeypatch.undo()
    train(name, tmp_path / "parts")
    assert leaves(tmp_path / "parts") == leaves(tmp_path / "whole")  # teacher, queue, centre, statistics, optimiser: all
    assert numbers(tmp_path / "parts") == numbers(tmp_path / "whole") and len(numbers(tmp_path / "whole")) == 3
    evaluate(["evals", f"--workdir={tmp_path / 'whole'}", "--evals=knn", "--labels=all", "--baselines=", "--pictures=false"])
    (record,) = json.loads((tmp_path / "whole" / "evals.json").read_text())
    assert record["accuracy"] > 0.2  # ten classes
