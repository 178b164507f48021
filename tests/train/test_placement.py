"""Parameters spread over a model axis: the same run, less memory a device, and checkpoints that pass between layouts."""
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

import runs
from runs import SMALL, launch, numbers
from simclr_jax import dist
from simclr_jax.errors import UsageError
from simclr_jax.train import __main__ as command, guard, load, placement
from simclr_jax.types import TrainState

# All but 2% of the parameters are in two arrays that are cut; momentum with them.
BIG = [flag for flag in SMALL if ".channels" not in flag] + [
    "--config.nets.backbone.channels=(128,128)", "--config.nets.projector.layers=1", "--config.nets.projector.out=512",
    "--config.optim.momentum=0.9", "--config.optim.schedule=constant", "--config.devices=4"]


def state(params, tx=optax.adam(0.1), **extra):
    return jax.eval_shape(lambda: TrainState(jnp.int32(0), params, tx.init(params), extra, guard.new()))


def cut(sharding):
    return [name for name in sharding.spec if name is not None]


def test_momenta_and_teachers_lie_as_their_parameters_and_all_else_is_whole():
    mesh = dist.make_mesh({"data": 2, "model": 4})
    params = {"kernel": jnp.zeros((64, 96)), "bias": jnp.zeros(96)}
    found = placement.of(state(params, teacher=params, stats={"mean": jnp.zeros(96)}, queue=jnp.zeros((512, 128))), mesh,
                         least=1000)
    kernels = found.params["kernel"], found.opt_state[0].mu["kernel"], found.opt_state[0].nu["kernel"], \
        found.extra["teacher"]["kernel"]
    assert all(k.spec == P(None, "model") for k in kernels)
    whole = found.params["bias"], found.opt_state[0].mu["bias"], found.opt_state[0].count, found.extra["stats"]["mean"], \
        found.extra["queue"], found.step
    assert not any(cut(s) for s in whole)


def test_without_a_model_axis_nothing_is_cut():
    found = placement.of(state({"kernel": jnp.zeros((512, 512))}), dist.make_mesh({"data": 8}))
    assert not any(cut(s) for s in jax.tree.leaves(found))


def test_the_longest_dimension_that_divides_is_cut():
    assert placement.spec((3, 3, 512, 512), 4) == P(None, None, None, "model")
    assert placement.spec((50001, 768), 4) == P(None, "model")
    assert placement.spec((50001, 767), 4) == P()
    assert placement.spec((255, 256), 4) == P()  # one row short of the least size


@pytest.fixture
def last_state(monkeypatch):
    """The state that the training command ended with, after `train`."""
    found, run = [], command.run
    monkeypatch.setattr(command, "run", lambda *args, **kwargs: found.append(run(*args, **kwargs)))
    return lambda: found[-1]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole")
    train(path)
    return path


def train(workdir, *more):
    runs.train(workdir, *more, small=BIG)


def same(a, b):
    for got, want in zip(numbers(a), numbers(b), strict=True):
        np.testing.assert_allclose(got["train/loss"], want["train/loss"], rtol=1e-5)
        np.testing.assert_allclose(got["train/update_norm"], want["train/update_norm"], rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("model", [4, 2])
def test_a_model_axis_trains_the_same_in_less_memory(model, tmp_path, whole, capsys, last_state):
    train(tmp_path, f"--config.mesh.model={model}")
    assert f"mesh data {4 // model} x model {model}" in capsys.readouterr().out
    same(tmp_path, whole)
    after = last_state()
    assert placement.bytes_here(after) < (1 / model + 0.03) * sum(x.nbytes for x in jax.tree.leaves(after))
    kernel = after.params["backbone"]["conv2"]["kernel"]  # cut it stays, from step to step, and its momentum with it
    momenta = [x for x in jax.tree.leaves(after.opt_state) if x.shape == kernel.shape]
    assert momenta and all(x.sharding.spec == P(None, None, None, "model") for x in (kernel, *momenta))


@pytest.mark.slow
def test_a_run_passes_from_layout_to_layout(tmp_path, whole, capsys):
    """Saved on model=4, read on 1 and on 2; the steps after are those of a run that was never cut."""
    for steps, model in ((2, 4), (4, 1), (6, 2)):
        train(tmp_path, f"--config.mesh.model={model}", f"--config.steps={steps}", "--allow_config_change")
    assert capsys.readouterr().out.count("going on from step") == 2
    same(tmp_path, whole)


@pytest.mark.slow
def test_a_cut_run_is_evaluated_while_it_trains(tmp_path):
    train(tmp_path, "--config.mesh.model=2", "--config.evals.every=2", "--config.steps=2")
    assert 0.1 < numbers(tmp_path)[-1]["eval/knn"] <= 1


def test_loaded_weights_go_where_those_of_the_net_lie():
    mesh = dist.make_mesh({"data": 2, "model": 4})
    params = {"image": {"kernel": jnp.zeros((64, 96)), "bias": jnp.zeros(96)}}
    empty = TrainState(jnp.int32(0), params, (), {}, guard.new())
    empty = jax.device_put(empty, placement.of(empty, mesh, least=1000))
    new = {"kernel": np.arange(64 * 96, dtype=np.float32).reshape(64, 96), "bias": np.ones(96, np.float32)}
    filled = load.place(empty, {"image": new}).params["image"]
    assert filled["kernel"].sharding.spec == P(None, "model")
    assert filled["kernel"].addressable_shards[0].data.shape == (64, 24)
    jax.tree.map(np.testing.assert_array_equal, filled, new)


@pytest.mark.slow
def test_an_axis_that_spans_processes(tmp_path, whole):
    """Two processes of one device each hold half of each big parameter, and the same rows."""
    how = ["--config.devices=1", "--config.mesh.model=2", "--config.evals.every=6"]
    job, output = launch(tmp_path, *how, small=BIG, wait=150)
    assert job.returncode == 0 and "mesh data 1 x model 2, 2 process(es)" in output, output
    *rows, scored = numbers(tmp_path)
    assert 0.1 < scored["eval/knn"] <= 1
    for got, want in zip(rows, numbers(whole), strict=True):
        np.testing.assert_allclose(got["train/loss"], want["train/loss"], rtol=1e-5)
    train(tmp_path)  # all of it is on disk


def test_sizes_that_fit_no_layout_are_one_line(tmp_path):
    for model, message in ((3, "does not fit 4 devices"), (0, "config.mesh.model=0, wanted at least 1")):
        with pytest.raises(UsageError, match=message) as e:
            train(tmp_path, f"--config.mesh.model={model}")
        assert "\n" not in str(e.value)
