"""Memory, config, safety: what cannot work is one line with what to do, and nothing that is loaded is run."""
import pickle

import numpy as np
import pytest

from reliability.jobs import FLAGS
from simclr_jax import build, config as configs, watch
from simclr_jax.errors import UsageError
from simclr_jax.train import load
from simclr_jax.train.__main__ import main
from simclr_jax.train.state import init_state


@pytest.mark.slow
@pytest.mark.scorecard(41)
def test_a_step_that_finds_no_memory_is_one_line_with_what_to_do(job):
    """132 GB of activations, in an address space of two more."""
    one = job("--config.batch=1296", "--config.nets.backbone.channels=(200000,)", fault="little_memory")
    assert one.codes(60) == [2], one.all()
    said = "error: out of memory: a step of 1296 rows on 1 device(s) does not fit (RESOURCE_EXHAUSTED"
    assert one.last().startswith(said)
    assert "set config.microbatches to 2 or more" in one.last() and "Traceback" not in one.text()


def every_field():
    config, _ = configs.parse(["train", *FLAGS])
    return sorted(configs._fields(config))


@pytest.mark.slow
@pytest.mark.scorecard(42)
def test_every_key_mistyped_by_one_letter_is_refused_with_the_right_one():
    fields = every_field()
    assert len(fields) > 60 and "optim.lr" in fields and "guard.spike" in fields
    for field in fields:
        section, dot, name = field.rpartition(".")
        for wrong in {section + dot + bad for bad in (name + "x", name[:-1] + "x", name[1:])} - set(fields):
            with pytest.raises(UsageError) as e:
                configs.parse(["train", *FLAGS, f"--config.{wrong}=1"])
            assert repr(wrong) in str(e.value) and "\n" not in str(e.value)
            assert len(name) < 4 or repr(field) in str(e.value), str(e.value)  # of three letters, others are as near


@pytest.mark.slow
@pytest.mark.scorecard(42)
@pytest.mark.parametrize("flag, said", [
    ("--config.batch=1e3", "invalid literal for int"), ("--config.steps=ten", "invalid literal for int"),
    ("--config.optim.lr=fast", "could not convert"), ("--config.pictures=7", "config.pictures"),
    ("--config.devices=3", "does not divide over 3 devices"), ("--config.guard.stop=-1", "config.guard.stop=-1"),
    ("--config.guard.spike=0.5", "config.guard.spike=0.5"), ("--config.life.grace=0", "wanted seconds above 0"),
    ("--replay=/nowhere", "is no flag|/nowhere")])
def test_values_of_the_wrong_kind_are_one_line_and_nothing_is_made(flag, said, tmp_path):
    with pytest.raises(UsageError, match=said) as e:
        main(["train", *FLAGS, f"--workdir={tmp_path / 'run'}", flag] if "replay" not in flag else ["train", flag])
    assert "\n" not in str(e.value) and e.value.code == 2 and not (tmp_path / "run").exists()


class Payload:
    """What runs when it is unpickled."""

    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return open, (str(self.canary), "w")


@pytest.mark.slow
@pytest.mark.scorecard(43)
@pytest.mark.parametrize("name", ["w.npz", "w.safetensors", "w.pt", "w.msgpack", "w.npy"])
def test_weights_that_carry_code_are_refused_and_nothing_runs(name, tmp_path):
    canary, path = tmp_path / "canary", tmp_path / name
    if name == "w.npz":
        np.savez(path, stem=np.array([Payload(canary)], object))
    else:
        path.write_bytes(pickle.dumps({"stem": Payload(canary)}))
    assert not canary.exists()
    with pytest.raises(UsageError, match="config.load.backbone") as e:
        load.read({"backbone": str(path)})
    assert "\n" not in str(e.value) and not canary.exists()
    pickle.loads(pickle.dumps(Payload(canary))).close()  # the payload is a live one
    assert canary.exists()


@pytest.mark.slow
@pytest.mark.scorecard(45)
def test_a_constant_encoder_shows_in_the_first_evaluation(tmp_path):
    import jax
    config, _ = configs.parse(["train", *FLAGS, "--config.evals.every=1", "--config.evals.limit=300",
                               "--config.nets.backbone.channels=(32,64)"])
    recipe, source = build.recipe(config), build.source(config)
    method, mesh = build.method(config, axis="data", examples=source.size), build.mesh(config)
    state = init_state(method, build.optimiser(config, source.size).tx, mesh, build.rows(config, recipe), seed=0)
    evaluate = watch.make(config, method)
    healthy = evaluate(state)
    collapsed = evaluate(state.replace(params=jax.tree.map(lambda x: 0 * x, state.params)))
    assert healthy["effective_rank"] > 2 and healthy["spread"] > 0.05
    assert collapsed["effective_rank"] < 1.01 and collapsed["spread"] < 1e-3
    assert collapsed["knn"] < 0.25 < healthy["knn"]  # ten classes: chance is a tenth
