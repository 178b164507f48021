"""Numbers that go bad in a step: skipped alike everywhere, counted, named, and in the end given up with all that is
needed to look into it."""
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding

from methods.test_laws import batch as rows, dense
from reliability.jobs import FLAGS
from simclr_jax import build, dist, names
from simclr_jax.errors import NumericsError
from simclr_jax.train import __main__ as command, guard
from simclr_jax.train.__main__ import main
from simclr_jax.train.checkpoint import Checkpoints
from simclr_jax.train.log import read_rows
from simclr_jax.train.state import init_state
from simclr_jax.train.step import make_step



def trained(devices, poison, *, steps=4, at=2, rule=guard.Rule(), microbatches=1, tx=None):
    """[(state, metrics)] of a few steps, with `poison(batch)` in place of the batch of one of them."""
    nets = {"backbone": dense(8), "projector": dense(6)}
    method = names.make("methods", {"name": "simclr", "temperature": 0.3}, nets)
    method = method._replace(criterion=_weighted(method.criterion), forward=_with_weight(method.forward))
    mesh = dist.make_mesh({"data": devices}, jax.devices()[:devices])
    tx = tx or optax.adam(optax.linear_schedule(0.0, 0.1, 10))
    first = rows(2) | {"weight": jnp.ones(16)}
    first.pop("text")
    state = init_state(method, tx, mesh, first, seed=0)
    step = make_step(method, tx, mesh, seed=0, guard=rule, microbatches=microbatches)
    out = []
    for i in range(steps):
        batch = poison(dict(first)) if i == at else first
        state, metrics = step(state, dist.place_batch(batch, mesh))
        out.append((jax.device_get(state), jax.device_get(metrics)))
        assert _copies_agree(state)
    return out


def _with_weight(forward):
    def weighted(params, extra, batch, ctx):
        outputs, extra = forward(params, extra, batch, ctx)
        return outputs | {"weight": batch["weight"]}, extra
    return weighted


def _weighted(criterion):
    """The loss times the mean of a weight a row: through it one example can blow up the loss, or the gradient alone."""
    def weighted(params, extra, outputs, ctx):
        weight = outputs.pop("weight")
        loss, aux = criterion(params, extra, outputs, ctx)
        return loss * jnp.mean(weight), aux
    return weighted


def _copies_agree(state):
    """Whether every device holds the same bytes."""
    return all(len({np.asarray(s.data).tobytes() for s in x.addressable_shards}) == 1 for x in jax.tree.leaves(state)
               if isinstance(x.sharding, NamedSharding))


def nan_in_one_example(batch):
    return batch | {"views": batch["views"].at[5, 1, 0, 0, 0].set(jnp.nan)}


def infinite_loss(batch):
    return batch | {"weight": batch["weight"].at[11].set(jnp.inf)}


def spike(batch):
    return batch | {"weight": 1e4 * batch["weight"]}


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


@pytest.mark.slow
@pytest.mark.scorecard(39)
@pytest.mark.parametrize("poison", [nan_in_one_example, infinite_loss])
@pytest.mark.parametrize("devices, microbatches", [(1, 1), (4, 1), (8, 2)])
def test_a_step_that_is_not_finite_changes_nothing_but_its_count(poison, devices, microbatches):
    got = trained(devices, poison, microbatches=microbatches)
    before, after, last = got[1][0], got[2][0], got[3]
    assert same(before.params, after.params) and same(before.extra, after.extra)
    assert same(before.opt_state[0].mu, after.opt_state[0].mu) and same(before.opt_state[0].nu, after.opt_state[0].nu)
    assert after.step == 3 and after.opt_state[1].count == 3  # so that the rate stays a function of the step
    assert [int(m["skipped"]) for _, m in got] == [0, 0, 1, 1] and [int(m["in_a_row"]) for _, m in got] == [0, 0, 1, 0]
    assert not np.isfinite(got[2][1]["grad_norm"]) and np.isfinite(last[1]["loss"])
    assert not same(after.params, last[0].params)


@pytest.mark.slow
@pytest.mark.scorecard(40)
@pytest.mark.parametrize("devices", [1, 8])
def test_a_spike_is_skipped_and_later_losses_stay_in_the_band(devices, monkeypatch):
    monkeypatch.setattr(guard, "FIRST", 5)
    unspiked = trained(devices, lambda b: b, steps=16, at=12)
    got = trained(devices, spike, steps=16, at=12)
    assert [int(m["skipped"]) for _, m in got] == [0] * 12 + [1] * 4
    assert got[12][1]["grad_norm"] > 1e3 * got[11][1]["grad_norm"]
    band = [float(m["loss"]) for _, m in unspiked[11:]]
    assert all(min(band) - 0.05 < m["loss"] < max(band) + 0.05 for _, m in got[13:])
    wild = trained(devices, spike, steps=14, at=12, rule=guard.Rule(spike=0.0), tx=optax.sgd(0.5))
    assert wild[-1][1]["skipped"] == 0 and not same(wild[11][0].params, wild[12][0].params)  # it is the rule that skips


@pytest.mark.slow
@pytest.mark.scorecard(39)
def test_after_so_many_in_a_row_nothing_moves_even_where_a_good_step_was_under_way():
    got = trained(2, nan_in_one_example, steps=3, at=1, rule=guard.Rule(stop=1))
    assert same(got[0][0].params, got[2][0].params) and int(got[2][1]["in_a_row"]) == 2


def poisoned_feed(monkeypatch, bad):
    """The run's own feed with a value that is not finite in one row of some steps' images."""
    feed = build.feed

    def poisoned(*args, start_step=0, **kwargs):
        for i, batch in enumerate(feed(*args, start_step=start_step, **kwargs)):
            if start_step + i in bad:
                views = batch["views"].copy()
                views[3, 0, 0, 0, 0] = np.nan
                batch = batch | {"views": views}
            yield batch
    monkeypatch.setattr(build, "feed", poisoned)


HOST = [*FLAGS, "--config.augment.where=host", "--config.steps=8", "--config.checkpoint.every=100",
        "--config.devices=2"]


@pytest.mark.slow
@pytest.mark.scorecard(39)
def test_a_skipped_step_is_logged_with_its_examples_and_the_run_goes_on(tmp_path, monkeypatch, capsys):
    poisoned_feed(monkeypatch, {2, 5})
    main(["train", *HOST, f"--workdir={tmp_path}"])
    skipped = read_rows(tmp_path / "skipped.jsonl")
    assert [(r["step"], r["skipped"], r["in_a_row"]) for r in skipped] == [(3, 1, 1), (6, 2, 1)]
    from simclr_jax.data import order
    for row in skipped:  # the very examples of that step
        assert [i for i, _ in row["ids"]] == order.make(0, 1297, 16)(row["step"] - 1)[0].tolist()
    out = capsys.readouterr().out
    # XLA's CPU maximum takes 0 of (0, nan), so that after a ReLU the loss may well be finite; the gradient is not.
    assert "step 3: skipped: loss " in out and "gradient norm nan; 1 in a row, 1 in all; examples " in out
    rows = read_rows(tmp_path / "metrics.jsonl")
    assert [r["train/skipped"] for r in rows] == [0, 0, 1, 1, 1, 2, 2, 2] and rows[2]["train/grad_norm"] is None
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[2], parse_constant=pytest.fail)


@pytest.mark.slow
@pytest.mark.scorecard(23)
@pytest.mark.scorecard(39)
def test_after_so_many_in_a_row_the_state_is_saved_and_the_step_can_be_replayed(tmp_path, monkeypatch, capsys):
    poisoned_feed(monkeypatch, range(4, 100))
    with pytest.raises(NumericsError) as stopped:
        main(["train", *HOST, f"--workdir={tmp_path}", "--config.guard.stop=3", "--config.steps=50"])
    assert stopped.value.code == 71 and "3 steps in a row were skipped, to step 7" in str(stopped.value)
    folder = tmp_path / "bad" / "7"
    assert f"--replay={folder}" in str(stopped.value)
    steps = Checkpoints(tmp_path / "checkpoints", writable=False)
    assert steps.steps() == [8] or steps.steps() == [7]
    capsys.readouterr()
    main(["train", f"--replay={folder}"])
    out = capsys.readouterr().out
    ids = read_rows(tmp_path / "skipped.jsonl")[-1]["ids"]
    assert "\nloss " in out and "gradient norm nan" in out and "  backbone: nan" in out and "  projector: " in out
    assert "parameters: all finite" in out
    assert f"rows of the batch that are not finite: 1 of 16: 3 (example {ids[3][0]})" in out

    # The state is finite: without the bad examples the same command goes on from it.
    monkeypatch.undo()
    main(["train", *HOST, f"--workdir={tmp_path}", "--config.guard.stop=3", "--config.steps=50"])
    assert "already" not in capsys.readouterr().out
    rows_ = read_rows(tmp_path / "metrics.jsonl")
    assert rows_[-1]["step"] == 50 and np.isfinite(rows_[-1]["train/loss"]) and rows_[-1]["train/in_a_row"] == 0


@pytest.mark.slow
@pytest.mark.scorecard(23)
def test_the_last_step_is_saved_whatever_the_interval(tmp_path):
    main(["train", *HOST, f"--workdir={tmp_path}", "--config.checkpoint.every=3"])
    assert Checkpoints(tmp_path / "checkpoints", writable=False).steps() == [6, 8]


@pytest.mark.slow
def test_a_replay_of_a_good_step_gives_the_loss_that_was_logged(tmp_path, capsys):
    """What is replayed is the run's own step: a dump of any step has its numbers."""
    from simclr_jax import replay
    from simclr_jax.train import dump
    kept = []
    make = command.build.compiled

    def made(*args, **kwargs):
        step_fn = make(*args, **kwargs)

        def step(state, batch):
            if not isinstance(state.step, jax.core.Tracer):
                kept.append((jax.tree.map(jnp.copy, state), batch))
            return step_fn(state, batch)
        return step
    with pytest.MonkeyPatch.context() as m:
        m.setattr(command.build, "compiled", made)
        main(["train", *HOST, f"--workdir={tmp_path}"])
    folder = dump.write(tmp_path, {}, 1297, (tmp_path / "config.json").read_text(), *kept[4], 5)
    capsys.readouterr()
    replay.main(str(folder))
    out = dict(line.split(" ", 1) for line in capsys.readouterr().out.splitlines() if line.startswith("loss"))
    np.testing.assert_allclose(float(out["loss"]), read_rows(tmp_path / "metrics.jsonl")[4]["train/loss"], rtol=1e-5)
