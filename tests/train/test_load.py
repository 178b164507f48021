"""Nets that start from the weights of another run, or of a file."""
import jax
import numpy as np
import pytest

from runs import ROOT, SMALL, train
from simclr_jax import build, config as configs
from simclr_jax.errors import UsageError
from simclr_jax.train import load, stored
from simclr_jax.train.__main__ import main
from simclr_jax.train.checkpoint import Checkpoints


@pytest.fixture(scope="module")
def simclr(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("simclr")
    train(workdir)
    return workdir


def arrays(workdir, role):
    """{name: array} of a role's parameters and statistics in the newest checkpoint."""
    return load.read({role: f"{workdir}:{role}"})[role]


# The image tower of configs/clip_digits.py as SMALL's backbone, locked.
TOWER = ["--config.nets.image.channels=(4,8)", "--config.nets.text.out=8", "--config.nets.text.width=8", "--config.text.size=300",
         "--config.nets.text.depth=1", "--config.nets.text.heads=1", "--config.method.locked=('image',)",
         "--config.optim.freeze=('^image/',)", *[f for f in SMALL if "backbone" not in f]]


def lit(workdir, simclr):
    config = workdir.parent / "lit.py"
    config.write_text("from configs import clip_digits\n\n\ndef get_config():\n    config = clip_digits.get_config()\n"
                      f"    config.load = dict(image={str(simclr) + ':backbone'!r})\n    return config\n")
    main(["train", f"--config={config}", f"--workdir={workdir}", *TOWER])


@pytest.mark.slow
def test_a_locked_tower_starts_and_stays_as_the_run_it_is_of(simclr, tmp_path):
    lit(tmp_path / "lit", simclr)
    before, after = arrays(simclr, "backbone"), arrays(tmp_path / "lit", "image")
    assert before.keys() == after.keys() and any(n.startswith("stats/") for n in before)
    assert all(np.array_equal(before[n], after[n]) for n in before)  # parameters and statistics, to the bit
    steps = Checkpoints(tmp_path / "lit" / "checkpoints", writable=False)
    record = stored.record(steps.directory / str(steps.steps()[-1]))
    momentum = [name for name, *_ in record["leaves"] if name.startswith("opt_state") and "image" in name]
    assert not momentum and any("text" in name for name, *_ in record["leaves"] if name.startswith("opt_state"))


def net_state():
    config, _ = configs.parse(["train", f"--config={ROOT}/configs/simclr_digits.py", *SMALL])
    method = build.method(config, axis=None, examples=1297)
    optimiser = build.optimiser(config, 1000)
    from simclr_jax import dist
    from simclr_jax.train.state import init_state
    mesh = dist.make_mesh({"data": 1}, jax.devices()[:1])
    return init_state(method, optimiser.tx, mesh, build.rows(config, build.recipe(config)), seed=7)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_a_file_of_named_arrays(simclr, tmp_path, suffix):
    wanted = arrays(simclr, "backbone")
    file = tmp_path / f"w{suffix}"
    if suffix == ".npz":
        np.savez(file, **wanted)
    else:
        from safetensors.numpy import save_file
        save_file(wanted, file)
    state = load.place(net_state(), load.read({"backbone": str(file), "projector": ""}))
    got = stored.named(state.params["backbone"]) | {f"stats/{n}": x for n, x in
                                                    stored.named(state.extra["stats"]["backbone"]).items()}
    assert got.keys() == wanted.keys() and all(np.array_equal(got[n], wanted[n]) for n in wanted)


def test_what_does_not_fit_is_named(simclr, tmp_path):
    state, good = net_state(), arrays(simclr, "backbone")
    name = next(n for n in good if n.endswith("kernel"))
    for wrong, says in [({n: x for n, x in good.items() if n != name}, f"have no '{name}' of shape"),
                        (good | {name: good[name][..., :1]}, f"{name} has shape"),
                        (good | {"extra/kernel": np.zeros(1)}, "'extra/kernel' .* is in no place of the net")]:
        with pytest.raises(UsageError, match=says):
            load.place(state, {"backbone": wrong})
    with pytest.raises(UsageError, match="config.load.image: the method has no net of that role; it has backbone"):
        load.place(state, {"image": good})


def test_places_that_hold_nothing(simclr, tmp_path):
    (tmp_path / "bad.npz").write_bytes(b"PK nothing")
    (tmp_path / "bad.safetensors").write_bytes(b"\0" * 20)
    for place, says in [(f"{simclr}:text", "has no net 'text'; it has backbone, projector"),
                        (tmp_path, "wanted the workdir of a run with a checkpoint"),
                        (tmp_path / "none.npz", "there is no such file"), (tmp_path / "bad.npz", "cannot be read"),
                        (tmp_path / "bad.safetensors", "cannot be read")]:
        with pytest.raises(UsageError, match=says) as error:
            load.read({"image": str(place)})
        assert "\n" not in str(error.value) and str(error.value).startswith("config.load.image=")
