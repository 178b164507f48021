"""`python -m simclr_jax.train --replay=DIR`: one step of a run again, and what in it is not finite. Composition."""
import types

import jax
import numpy as np
import optax
from jax.sharding import PartitionSpec as P

from simclr_jax import build, config as configs, dist
from simclr_jax.errors import UsageError
from simclr_jax.train import dump, stored
from simclr_jax.train.checkpoint import Checkpoints
from simclr_jax.train.state import state_shapes
from simclr_jax.train.step import make_gradients
from simclr_jax.types import Ctx

SHOWN = 16  # rows named in a line


def main(folder: str) -> None:
    """Prints the loss, the gradient's norm by top-level group of parameters, and the rows that are not finite.

    Raises:
      UsageError: `folder` is no dump, or not whole, or of another version of the nets.
    """
    if not folder:
        raise UsageError("--replay= names no directory; wanted WORKDIR/bad/STEP, as a run that stops with code 71 says")
    plain, given, batch = dump.read(folder)
    config = configs.from_plain(plain)
    build.start_devices(config.devices or build.cpu_devices(config))
    with config.unlocked():
        if jax.process_count() == 1 and config.devices > jax.device_count():
            config.devices = 0
    mesh = build.mesh(config)
    told = types.SimpleNamespace(**given["nets"]) if given["nets"] else None
    method = build.method(config, axis=dist.rows_axis(mesh), examples=given["examples"], tokenizer=told)
    recipe = build.recipe(config)
    finish = build.augmenter(config, recipe) if config.augment.where == "device" else lambda rows: rows
    tx = build.optimiser(config, given["examples"]).tx
    whole = {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in batch.items()}
    checkpoints = Checkpoints(f"{folder}/state", writable=False)
    rows = jax.eval_shape(finish, whole)
    found = checkpoints.restore(jax.tree.map(_placed(mesh), state_shapes(method, tx, rows, seed=config.seed)))
    if found is None:
        raise UsageError(f"--replay={folder}: there is no state in it; wanted what a run left under WORKDIR/bad/STEP")
    step, state, _ = found
    where = f"{mesh.size} {jax.devices()[0].platform} device(s)"
    print(f"step {step} of {config.method.name}, batch {config.batch}, on {where}")
    _report(state, batch, *_run(method, mesh, config, finish, state, batch))


def _placed(mesh):
    return lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=dist.replicated(mesh))


def _run(method, mesh, config, finish, state, batch):
    """(loss, gradients, finished rows, outputs) of the step, on the host."""
    axis = dist.rows_axis(mesh)
    gradients = make_gradients(method, axis, seed=config.seed, microbatches=config.microbatches, augment=finish)

    def sharded(state, batch):
        loss, grads, *_ = gradients(state, batch)
        rows = finish(batch)
        ctx = Ctx(state.step, jax.random.fold_in(jax.random.key(config.seed), state.step), axis)
        outputs, _ = method.forward(dist.varying(state.params, axis), state.extra, rows, ctx)
        return loss, grads, rows, outputs
    split = P(), P(), P(axis), P(axis)
    mapped = sharded if axis is None else jax.shard_map(sharded, mesh=mesh, in_specs=(P(), P(axis)), out_specs=split,
                                                        axis_names={axis})
    return jax.device_get(jax.jit(mapped)(state, dist.place_batch(batch, mesh)))


def _report(state, batch, loss, grads, rows, outputs):
    print(f"loss {loss:g}")
    print(f"gradient norm {float(optax.tree.norm(grads)):g}")
    for group, tree in sorted(grads.items() if isinstance(grads, dict) else [("parameters", grads)]):
        print(f"  {group}: {float(optax.tree.norm(tree)):g}" + _where(tree))
    print(f"parameters: {'all finite' if not (bad := _where(state.params)) else bad.strip()}")
    for what, tree in (("batch", rows), ("outputs", outputs)):
        bad = sorted({int(i) for x in jax.tree.leaves(tree) for i in _bad_rows(np.asarray(x))})
        shown = ", ".join(f"{i} (example {batch['id'][i, 0]})" for i in bad[:SHOWN])
        found = f"{len(bad)} of {len(batch['id'])}: {shown}" + (", ..." if len(bad) > SHOWN else "") if bad else "none"
        print(f"rows of the {what} that are not finite: {found}")


def _bad_rows(x):
    if not np.issubdtype(x.dtype, np.inexact) and x.dtype.kind != "V":
        return []
    return np.nonzero(~np.isfinite(x.astype(np.float32)).reshape(len(x), -1).all(axis=1))[0]


def _where(tree):
    """The first leaf of a tree that is not finite, in words."""
    bad = [name for name, x in stored.named(tree).items() if not np.isfinite(np.asarray(x, np.float32)).all()]
    return f"  not finite: {bad[0]}" + (f" and {len(bad) - 1} more" if len(bad) > 1 else "") if bad else ""
