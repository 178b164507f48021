"""What the TPU compiler makes of whole training steps of the image-text recipes, on a pod that need not be there.

    python benchmarks/steps_on_tpu.py --topology v4:4x4x4 v5e:8x8 --batch 32768 --only clip_vit_b32 siglip_vit_b16

Forward, loss, backward and optimiser in one program, in two forms of the same towers, optimiser and batch:

    tiles    the step of `python -m simclr_jax.train`: data manual, the loss in tiles
    matrix   big_vision's (trainers/proj/image_text/siglip.py, utils.py): plain `jax.jit`, rows sharded, parameters
             replicated, the loss written over the whole matrix of B x B similarities, which the compiler divides

The least time is the largest of three that no run of the program can be under; none counts waiting:

    products  those of the traced step, at the chip's peak of bf16 (`simclr_jax/plan/arithmetic.py`, in passes).
    HBM       operands and results of the instructions as compiled (`simclr_jax/plan/hlo.py`).
    links     what a chip must send or receive, over all its links at once.
"""
from simclr_jax.plan import environment

environment.prepare_or_exit("v5e:8x8")  # before jax is imported

import argparse  # noqa: E402
import importlib.metadata  # noqa: E402
import os  # noqa: E402
import pathlib  # noqa: E402
import time  # noqa: E402

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import optax  # noqa: E402
from jax.sharding import NamedSharding, PartitionSpec as P  # noqa: E402

from simclr_jax import build, config as configs, dist  # noqa: E402
from simclr_jax.errors import UsageError  # noqa: E402
from simclr_jax.life import command  # noqa: E402
from simclr_jax.losses.unit import unit  # noqa: E402
from simclr_jax.plan import arithmetic, chips, hlo, stand_in, topology as topologies  # noqa: E402
from simclr_jax.types import Ctx, TrainState  # noqa: E402

ROOT = pathlib.Path(__file__).parents[1]
RECIPES = "clip_vit_b32", "siglip_vit_b16"


def main(argv):
    flags = _flags(argv[1:])
    versions = ", ".join(f"{p} {importlib.metadata.version(p)}" for p in ("jax", "libtpu"))
    meshes = {t: dist.make_mesh({dist.DATA: -1}, topologies.devices(t)) for t in flags.topology}
    for mesh in meshes.values():
        if odd := [n for n in flags.microbatches if flags.batch % (mesh.size * n)]:
            raise UsageError(f"--batch={flags.batch} does not divide over {mesh.size} chips x {odd[0]} micro-batches")
    for topology, mesh in meshes.items():
        chip = chips.of_device(mesh.devices.flat[0].device_kind)
        print(f"\n{topology}, {mesh.size} chips of {chip.hbm >> 30} GiB, {flags.batch:,} pairs; {versions}\n")
        print("| recipe | form | memory a chip, GiB | of the loss alone, MiB | collectives (MiB) | in a loop (MiB) | "
              "TFLOP a chip (loss, in passes) | least ms: products, HBM, links | compiled in, s |")
        print("|" + "---|" * 9)
        for recipe in flags.only:
            for form in flags.form:
                for pieces in flags.microbatches if form == "tiles" else (1,):
                    batch, least = flags.batch, 2 * mesh.size * pieces
                    while not _line(recipe, form, pieces, mesh, chip, batch, flags) and batch % least == 0:
                        batch //= 2  # until it fits


def _flags(argv):
    def refuse(message):
        raise UsageError(f"{message}; see --help")
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.error = refuse
    p.add_argument("--topology", nargs="+", default=["v4:4x4x4", "v5e:8x8"])
    p.add_argument("--batch", type=int, default=32768, help="pairs in all")
    p.add_argument("--only", nargs="+", choices=RECIPES, default=list(RECIPES))
    p.add_argument("--form", nargs="+", choices=("tiles", "matrix"), default=("tiles", "matrix"))
    p.add_argument("--microbatches", nargs="+", type=int, default=[1], help="of tiles; matrix has none")
    p.add_argument("--remat", action="store_true", help="make each block's activations again")
    p.add_argument("--scan", action="store_true", help="layers as a loop, which is sooner compiled")
    p.add_argument("--set", nargs="+", default=[], metavar="FIELD=VALUE", help="further fields of the config")
    p.add_argument("--keep", metavar="FOLDER", help="for the optimised programs")
    flags = p.parse_args(argv)
    if flags.batch < 1 or min(flags.microbatches) < 1:
        raise UsageError(f"--batch={flags.batch} --microbatches={flags.microbatches}, wanted 1 or more")
    return flags


def _line(recipe, form, pieces, mesh, chip, batch, flags):
    """Prints a row; whether the step fits."""
    step, loss = _programs(recipe, form, pieces, mesh, batch, flags)
    how = f"{pieces} micro-batches" * (pieces > 1), "remat" * flags.remat, f"{batch:,} pairs" * (batch < flags.batch)
    what = [recipe, ", ".join(filter(None, (form, *how)))]
    alone, refused = _compile(loss)
    own = f"{alone.memory_analysis().temp_size_in_bytes / 2 ** 20:.0f}" if alone else refused
    flops, of_loss = (arithmetic.products(x.jaxpr.jaxpr, mesh.size, "tpu").passes for x in (step, loss))
    start = time.perf_counter()
    compiled, refused = _compile(step)
    took = f"{time.perf_counter() - start:.0f}"
    work = f"{flops / 1e12:.1f} ({of_loss / 1e12:.2f})"
    if compiled is None:
        least = f"{1e3 * flops / chip.flops:.0f}"
        print("|", " | ".join([*what, refused, own, "", "", work, least, took]), "|", flush=True)
        return False
    text, m = compiled.as_text(), compiled.memory_analysis()
    if flags.keep:
        name = "_".join([*what, mesh.devices.flat[0].device_kind, str(mesh.size)]).replace(", ", "_").replace(" ", "_")
        os.makedirs(flags.keep, exist_ok=True)
        pathlib.Path(flags.keep, f"{name}.hlo").write_text(text)
    kept, temporary = m.argument_size_in_bytes, m.temp_size_in_bytes
    total = kept + temporary + m.output_size_in_bytes - m.alias_size_in_bytes
    found = hlo.collectives(text)
    least = flops / chip.flops, hlo.traffic(text) / chip.hbm_rate, hlo.sent(found) / chip.link_rate
    memory = f"{total / 2 ** 30:.2f} ({kept / 2 ** 30:.2f} kept, {temporary / 2 ** 30:.2f} temporary)"
    least = ", ".join(f"{1e3 * t:.0f}" for t in least)
    print("|", " | ".join([*what, memory, own, *hlo.cells(found), work, least, took]), "|", flush=True)
    return True


def _compile(traced):
    """(the program, "") or, where it asks for more memory than there is, (None, the compiler's words in short)."""
    try:
        return build.compiled(traced), ""
    except build.DoesNotFit as e:
        return None, str(e).split("memory: ")[1].split(";")[0].replace("it asks for", "does not fit:")


def _programs(recipe, form, pieces, mesh, batch, flags):
    """(the step, the loss alone with its gradient), both traced."""
    fields = [f"nets.{role}.scan=true" for role in ("image", "text") if flags.scan] + ["remat=true"] * flags.remat
    fields = [f"--config.{field}" for field in (f"batch={batch}", f"microbatches={pieces}", *fields, *flags.set)]
    config, _ = configs.parse(["steps_on_tpu", f"--config={ROOT}/configs/{recipe}.py", *fields])
    tokenizer, recipe = stand_in.tokenizer(config), build.recipe(config)
    source, _ = stand_in.source(config, 400_000_000)
    method = build.method(config, axis=dist.DATA if form == "tiles" else None, examples=source.size,
                          tokenizer=tokenizer)
    tx = build.optimiser(config, source.size).tx
    made = build.step(config, mesh, method, tx, recipe, source, tokenizer)
    every, split = NamedSharding(mesh, P()), NamedSharding(mesh, P(dist.DATA))
    put = lambda tree, where: jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), tree)
    state, rows = made.state, made.batch
    outputs = jax.eval_shape(lambda s, r: method.forward(s.params, s.extra, r, _alone(s))[0], state, rows)
    learned = {k: v for k, v in state.params.items() if k.startswith("logit_")}
    if form == "tiles":
        step = made.call
        mean = lambda p, z: dist.pmean(method.criterion(p, {}, z, Ctx(None, None, dist.DATA))[0], dist.DATA)
        loss = jax.shard_map(jax.value_and_grad(mean, argnums=(0, 1)), mesh=mesh, in_specs=(P(), P(dist.DATA)),
                             out_specs=(P(), (P(), P(dist.DATA))))
    else:
        whole = MATRIX[config.method.name]
        step = jax.jit(_whole(method, tx, whole), donate_argnums=0, out_shardings=every)
        loss = jax.value_and_grad(whole, argnums=(0, 1))
    return step.trace(state, rows), jax.jit(loss).trace(put(learned, every), put(outputs, split))


# big_vision's form, in our words: one program over global arrays.


_alone = lambda state: Ctx(state.step, jax.random.fold_in(jax.random.key(0), state.step), None)  # noqa: E731


def _whole(method, tx, loss):
    def step(state, rows):
        def of(params):
            return loss(params, method.forward(params, state.extra, rows, _alone(state))[0])
        value, grads = jax.value_and_grad(of)(state.params)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        metrics = {"loss": value, "grad_norm": optax.tree.norm(grads), "update_norm": optax.tree.norm(updates)}
        return TrainState(state.step + 1, optax.apply_updates(state.params, updates), opt_state, state.extra,
                          state.guard), metrics
    return step


def _clip(learned, z):
    logits = jnp.exp(learned["logit_scale"]) * (unit(z["image"]) @ unit(z["text"]).T)
    own = [jnp.diag(jax.nn.log_softmax(logits, axis=axis)) for axis in (1, 0)]
    return -jnp.mean(own[0] + own[1]) / 2


def _siglip(learned, z):
    logits = jnp.exp(learned["logit_scale"]) * (unit(z["image"]) @ unit(z["text"]).T) + learned["logit_bias"]
    return -jnp.mean(jnp.sum(jax.nn.log_sigmoid((2 * jnp.eye(len(logits)) - 1) * logits), axis=1))


MATRIX = {"clip": _clip, "siglip": _siglip}


if __name__ == "__main__":
    command(main)
