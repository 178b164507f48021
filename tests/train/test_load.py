"""Nets that start from the weights of another run, or of a file."""
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from runs import ROOT, SMALL, train
from simclr_jax import build, config as configs
from simclr_jax.errors import UsageError
from simclr_jax.nets import vit
from simclr_jax.train import load, stored
from simclr_jax.train.__main__ import main
from simclr_jax.train.checkpoint import Checkpoints
from simclr_jax.types import TrainState


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


def export(directory, **nets):
    """An export directory: {role: {name: array}} as config.json and model.safetensors."""
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps({"nets": {role: {"name": "convnet", "width": 1} for role in nets}}))
    save_file({f"{role}/{name}".removesuffix("/"): np.array(x) for role, of in nets.items() for name, x in of.items()},
              directory / "model.safetensors")
    return str(directory)


def test_an_export_directory_is_read_role_by_role(tmp_path):
    w = {"kernel": np.arange(6.0, dtype=np.float32).reshape(2, 3), "stats/mean": np.ones(3, np.float32)}
    one, two = export(tmp_path / "one", backbone=w), export(tmp_path / "two", image=w, text={"kernel": w["kernel"] + 1})
    for role, place in [("backbone", one), ("backbone", one + ":backbone"), ("image", one), ("image", two),
                        ("backbone", two + ":image")]:
        got = load.read({role: place})[role]
        assert got.keys() == w.keys() and all(np.array_equal(got[n], w[n]) for n in w)
    assert load.read({"image": two + ":text"})["image"].keys() == {"kernel"}
    with pytest.raises(UsageError, match="config.load.backbone=.*has no net 'backbone'; it has image, text"):
        load.read({"backbone": two})
    (tmp_path / "one/model.safetensors").write_bytes(b"\xff" * 20)
    with pytest.raises(UsageError, match="config.init_from=.* cannot be read"):
        load.resolve({}, one, ["backbone"])


def test_init_from_gives_the_roles_that_both_have(simclr, tmp_path):
    w = {"kernel": np.ones((1, 1), np.float32)}
    one, two = export(tmp_path / "one", backbone=w), export(tmp_path / "two", image=w, text=w)
    assert load.resolve({"backbone": "", "projector": ""}, one, ["backbone", "projector"]) == {"backbone": f"{one}:backbone"}
    assert load.resolve({"text": "x.npz"}, one, ["image", "text"]) == {"image": f"{one}:backbone", "text": "x.npz"}
    assert load.resolve({}, two, ["image", "text"]) == {"image": f"{two}:image", "text": f"{two}:text"}
    assert load.resolve({"image": "x.npz"}, two, ["image", "text"])["image"] == "x.npz"  # config.load goes before
    run = str(simclr)
    assert load.resolve({}, run, ["backbone", "projector"]) == {r: f"{run}:{r}" for r in ("backbone", "projector")}
    assert load.resolve({}, run, ["image", "text"]) == {"image": f"{run}:backbone"}  # a projector is no tower
    for place, says in [(two, "it has image, text, and the recipe's nets are backbone, projector"),
                        (str(tmp_path / "none"), "wanted an export directory .* or the workdir of a run")]:
        with pytest.raises(UsageError, match=f"config.init_from={place}: {says}") as error:
            load.resolve({}, place, ["backbone", "projector"])
        assert "\n" not in str(error.value)


def test_a_pair_brings_its_temperature(tmp_path):
    w = {"kernel": np.ones((1, 1), np.float32)}
    pair = export(tmp_path / "pair", image=w, text=w, logit_scale={"": np.float32(3.5)}, beside={"head": np.zeros(1)})
    assert load.resolve({}, pair, ["image"]).keys() == {"image"}  # a method without one
    places = load.resolve({}, pair, ["image", "text"], {"image": 0, "logit_scale": 0})
    assert places == {role: f"{pair}:{role}" for role in ("image", "text", "logit_scale")}
    net = {"kernel": jnp.zeros((1, 1))}
    params, stats = {"image": net, "text": net, "logit_scale": jnp.float32(0)}, {"image": {}, "text": {}}
    state = TrainState(0, params, (), {"stats": stats}, ())
    made = load.place(state, load.read(places))
    assert float(made.params["logit_scale"]) == 3.5 and float(made.params["text"]["kernel"][0, 0]) == 1
    assert jax.tree.structure(made) == jax.tree.structure(state)
    with pytest.raises(UsageError, match="it has image, text, and the recipe's nets are backbone"):
        load.resolve({}, pair, ["backbone"], {"logit_scale": 0})


def test_the_log_says_what_starts_where_and_what_net_the_weights_are_of(tmp_path):
    one = export(tmp_path / "one", backbone={"kernel": np.ones((1, 1), np.float32)})
    nets = {"backbone": {"name": "convnet", "width": 2, "dtype": "bfloat16"}, "projector": {"name": "mlp"}}
    lines = load.report({"backbone": one}, nets)
    assert lines[0] == f"weights: backbone from {one}; at random: projector"
    assert lines[1:] == ["warning: the weights for backbone are of a net with width=1, here 2: see config.nets.backbone"]
    assert load.report({}, nets) == []


def test_teachers_start_as_copies_of_the_loaded_student():
    tree = lambda v: {role: {"w": jnp.full(2, v)} for role in ("backbone", "projector")}
    state = TrainState(0, tree(0.0), (), {"stats": tree(1.0), "teacher": {"params": tree(2.0), "stats": tree(3.0)}}, ())
    made = load.place(state, {"backbone": {"w": np.full(2, 5.0), "stats/w": np.full(2, 6.0)}})
    teacher = made.extra["teacher"]
    for role, want in (("backbone", (5.0, 6.0, 5.0, 6.0)), ("projector", (0.0, 1.0, 2.0, 3.0))):
        got = [t[role]["w"] for t in (made.params, made.extra["stats"], teacher["params"], teacher["stats"])]
        assert [float(x[0]) for x in got] == list(want)
        assert len({x.unsafe_buffer_pointer() for x in got}) == 4  # the step writes into them


def test_blocks_that_are_stacked_or_not_are_one_net():
    size = dict(width=8, depth=3, heads=2, mlp=8, patch=4, image=8)
    x, r, first = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32), np.random.default_rng(0), {}
    for scan in (False, True):
        shapes = jax.eval_shape(lambda: vit.make(**size, scan=scan).init(jax.random.key(0), jnp.zeros(x.shape)))[0]
        first[scan] = jax.tree.map(lambda s: jnp.asarray(r.normal(size=s.shape), s.dtype), shapes)
    for ours, theirs in ((False, True), (True, False), (True, True)):
        state = TrainState(0, {"image": first[ours]}, (), {"stats": {}}, ())
        weights = {name: np.asarray(x) for name, x in stored.named(first[theirs]).items()}
        got = stored.named(load.place(state, {"image": weights}).params["image"])
        flat, stacked = (got, weights) if theirs else (weights, got)
        for name, x in stacked.items():
            if ours != theirs and "blocks" in name:
                parts = np.stack([flat[name.replace("blocks", f"block{i + 1}")] for i in range(3)])
            else:
                parts = flat[name]
            np.testing.assert_array_equal(parts, x)
    shallow = {n: np.asarray(w[:2] if "/blocks/" in n else w) for n, w in stored.named(first[True]).items()}
    with pytest.raises(UsageError, match=r"stack/blocks/.* has shape \(2, .*\), and the net wants \(3, "):
        load.place(TrainState(0, {"image": first[True]}, (), {"stats": {}}, ()), {"image": shallow})


@pytest.mark.slow
def test_a_run_starts_from_another_with_its_teacher(simclr, tmp_path, capsys):
    before = arrays(simclr, "backbone")
    place = export(tmp_path / "exported", backbone=before)
    main(["train", f"--config={ROOT}/configs/byol_digits.py", f"--config.init_from={place}", "--config.steps=1",
          f"--workdir={tmp_path / 'byol'}", "--config.method.momentum=1.0", "--config.batch=64",
          "--config.nets.backbone.channels=(4,8)", "--config.evals.every=0", "--config.pictures=false"])
    assert f"weights: backbone from {place}:backbone; at random: predictor, projector" in capsys.readouterr().out
    steps = Checkpoints(tmp_path / "byol" / "checkpoints", writable=False)
    directory = steps.directory / str(steps.steps()[-1])
    leaves = stored.record(directory)["leaves"]
    wanted = {n: np.zeros(shape, dtype) for n, dtype, shape, _ in leaves if n.startswith("extra/teacher/params/backbone/")}
    teacher, _ = stored.read(directory, wanted, {n: crc for n, _, _, crc in leaves})
    assert teacher and all(np.array_equal(x, before[n.split("backbone/")[1]]) for n, x in teacher.items())
