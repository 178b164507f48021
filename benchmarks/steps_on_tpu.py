"""What the TPU compiler makes of whole training steps of the image-text recipes, on a pod that need not be there.

    python benchmarks/steps_on_tpu.py --topology v4:4x4x4 v5e:8x8 --batch 32768 --only clip_vit_b32 siglip_vit_b16

Forward, loss, backward and optimiser in one program, in two forms of the same towers, optimiser and batch:

    tiles    the step of `python -m simclr_jax.train`: data manual, the loss in tiles
    matrix   big_vision's (trainers/proj/image_text/siglip.py, utils.py): plain `jax.jit`, rows sharded, parameters
             replicated, the loss written over the whole matrix of B x B similarities, which the compiler divides

The least time is the largest of three that no run of the program can be under; none counts waiting:

    products  those of the traced step, at the chip's peak of bf16. One of f32 at "highest" counts as the six of bf16
              that it is made of; one of f32 at the default precision as one.
    HBM       operands and results of the instructions as compiled, a fusion as one, tiles filled up.
    links     what a chip must send or receive, over all its links at once.
"""
from losses_on_tpu import cells, collectives, pod, traffic  # first, as it sets the environment; isort: skip

import argparse
import importlib.metadata
import importlib.util
import math
import os
import pathlib
import re
import sys
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec as P

from simclr_jax import build, config as configs, dist
from simclr_jax.life import command
from simclr_jax.data.tokenizer import Tokenizer
from simclr_jax.errors import UsageError
from simclr_jax.losses.unit import unit
from simclr_jax.train.state import state_shapes
from simclr_jax.train.step import make_step
from simclr_jax.types import Ctx, TrainState

ROOT = pathlib.Path(__file__).parents[1]
RECIPES = {"clip_vit_b32": (49408, 77, 49407), "siglip_vit_b16": (32000, 64, 1)}  # tokenizers: vocabulary, length, eot


class Chip(NamedTuple):
    """By Cloud TPU's pages; links, one way, of v4 by Jouppi et al. 2023, arXiv:2304.01433: 6 of 50 GB/s."""

    flops: float  # bf16, a second
    hbm: int  # bytes
    hbm_rate: float  # bytes a second
    ici_rate: float  # bytes a second one way, all links


CHIPS = {"TPU v4": Chip(275e12, 32 << 30, 1228e9, 300e9), "TPU v5 lite": Chip(197e12, 16 << 30, 819e9, 200e9),
         "TPU v5": Chip(459e12, 95 << 30, 2765e9, 600e9)}


def main(argv):
    flags = _flags(argv[1:])
    if importlib.util.find_spec("libtpu") is None:
        raise UsageError("libtpu, which holds the TPU compiler, is not installed; pip install -e '.[tpu]'")
    versions = ", ".join(f"{p} {importlib.metadata.version(p)}" for p in ("jax", "libtpu"))
    meshes = {topology: pod(topology) for topology in flags.topology}
    for topology, mesh in meshes.items():
        if mesh.devices.flat[0].device_kind not in CHIPS:
            raise UsageError(f"--topology={topology}: wanted a v4, v5e or v5p, whose speeds are known")
        if odd := [n for n in flags.microbatches if flags.batch % (mesh.size * n)]:
            raise UsageError(f"--batch={flags.batch} does not divide over {mesh.size} chips x {odd[0]} micro-batches")
    for topology, mesh in meshes.items():
        chip = CHIPS[mesh.devices.flat[0].device_kind]
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
    flops, of_loss = (_products(x.jaxpr.jaxpr) / mesh.size for x in (step, loss))
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
    found = collectives(text)
    least = flops / chip.flops, traffic(text) / chip.hbm_rate, _sent(found, mesh.size) / chip.ici_rate
    memory = f"{total / 2 ** 30:.2f} ({kept / 2 ** 30:.2f} kept, {temporary / 2 ** 30:.2f} temporary)"
    least = ", ".join(f"{1e3 * t:.0f}" for t in least)
    print("|", " | ".join([*what, memory, own, *cells(found), work, least, took]), "|", flush=True)
    return True


def _compile(traced):
    """(the program, "") or, where it asks for more memory than there is, (None, the compiler's words in short)."""
    try:
        return traced.lower().compile(), ""
    except jax.errors.JaxRuntimeError as e:
        if "RESOURCE_EXHAUSTED" not in str(e):
            raise
        asked = re.search(r"\(([\d.]+\w)\) exceeds available HBM \(([\d.]+\w)\)|$", str(e))
        return None, f"does not fit: {' of '.join(asked.groups()) if asked[0] else str(e).splitlines()[0][:120]}"


def _programs(recipe, form, pieces, mesh, batch, flags):
    """(the step, the loss alone with its gradient), both traced."""
    fields = [f"nets.{role}.{k}=true" for role in ("image", "text") for k in ("remat", "scan") if getattr(flags, k)]
    fields = [f"--config.{field}" for field in (f"batch={batch}", *fields, *flags.set)]
    config, _ = configs.parse(["steps_on_tpu", f"--config={ROOT}/configs/{recipe}.py", *fields])
    tokenizer = Tokenizer(None, *RECIPES[recipe], 0, "", 0)
    method = build.method(config, axis=dist.DATA if form == "tiles" else None, tokenizer=tokenizer)
    tx = build.optimiser(config, 400_000_000).tx
    rows = build.rows(config, 1, config.augment.eval[0][1]["size"], tokenizer)
    state = state_shapes(method, tx, rows, seed=0)
    every, split = NamedSharding(mesh, P()), NamedSharding(mesh, P(dist.DATA))
    put = lambda tree, where: jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), tree)
    state, rows = put(state, every), put(rows, split)
    outputs = jax.eval_shape(lambda s, r: method.forward(s.params, s.extra, r, _alone(s))[0], state, rows)
    learned = {k: v for k, v in state.params.items() if k.startswith("logit_")}
    if form == "tiles":
        step = make_step(method, tx, mesh, seed=0, microbatches=pieces)
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


def _products(jaxpr):
    """FLOP of all matrix products and convolutions, of all devices together, each as many times as it has passes."""
    total = 0
    for e in jaxpr.eqns:
        name, inner = e.primitive.name, 1
        if name == "dot_general":
            (over, _), _ = e.params["dimension_numbers"]
            total += 2 * e.outvars[0].aval.size * math.prod(e.invars[0].aval.shape[i] for i in over) * _passes(e)
        elif name == "conv_general_dilated":
            kernel, out = e.invars[1].aval, e.params["dimension_numbers"].rhs_spec[0]
            total += 2 * e.outvars[0].aval.size * kernel.size // kernel.shape[out] * _passes(e)
        elif name == "scan":
            inner = e.params["length"]
        elif name == "shard_map":
            inner = e.params["mesh"].size
        elif name == "cond":  # one branch runs, as that of a platform
            total += max(_products(branch.jaxpr) for branch in e.params["branches"])
            continue
        for x in (x for v in e.params.values() for x in (v if isinstance(v, (tuple, list)) else (v,))):
            below = getattr(x, "jaxpr", x)
            found = _products(below) if hasattr(below, "eqns") else 0
            if found and name == "while":
                raise AssertionError("products in a loop of unknown length")
            total += inner * found
    return total


def _passes(e):
    """Of bf16, that a product of this precision takes: jax.lax.Precision."""
    if e.invars[0].aval.dtype == jnp.bfloat16:
        return 1
    asked = e.params["precision"]
    asked = asked[0] if isinstance(asked, tuple) else asked
    return {"None": 1, "DEFAULT": 1, "BF16_BF16_F32": 1, "HIGH": 3, "HIGHEST": 6}[getattr(asked, "name", str(asked))]


def _sent(found, chips):
    """Bytes that a chip sends, or receives where that is more, in the collectives of `collectives`."""
    share = (chips - 1) / chips
    factor = {"all-reduce": 2 * share, "all-gather": share, "reduce-scatter": chips - 1, "all-to-all": share, "coll": 1}
    return sum(times * size * next(factor[k] for k in factor if kind.removeprefix("async ").startswith(k))
               for (times, kind), (_, size) in found.items())


if __name__ == "__main__":
    command(main)
