"""From a config to the pieces of a run. Only the commands (`__main__` files) use this."""
import functools
import json
import os
import re
from typing import Any, Callable, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P

from simclr_jax import augment, data, dist, names
from simclr_jax.data import captions, memory
from simclr_jax.errors import UsageError
from simclr_jax.train import guard, optim, placement
from simclr_jax.train.state import state_shapes
from simclr_jax.train.step import make_step
from simclr_jax.types import Method, Net, TrainState


class DoesNotFit(UsageError):
    """A step that asks for more memory than a device has."""


class Step(NamedTuple):
    """The step of a run and all that it is compiled from, so that a plan compiles what a run will."""

    call: Callable  # (state, batch) -> (state, metrics), jitted
    state: TrainState  # ShapeDtypeStructs with shardings
    batch: dict[str, Any]  # likewise: the global batch as the feed hands it over
    rows: dict[str, Any]  # the global batch as the method sees it, augmented

    def trace(self):
        """The step traced with its shapes, `jax.stages.Traced`. What cannot be trained is a UsageError here."""
        return self.call.trace(self.state, self.batch)

    @property
    def shardings(self) -> TrainState:
        """Where each array of the state lies."""
        return jax.tree.map(lambda x: x.sharding, self.state)

    def shapes(self) -> TrainState:
        """The state as ShapeDtypeStructs that are on no device."""
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), self.state)


def compiled(traced):
    """`traced` compiled, to be called with what it was traced with.

    Raises:
      DoesNotFit: the compiler says so.
    """
    try:
        return traced.lower().compile()
    except jax.errors.JaxRuntimeError as e:
        if "RESOURCE_EXHAUSTED" not in str(e):
            raise
        asked = re.search(r"(?:Used |\()([\d.]+\w)\)? (?:of|exceeds available \w+) \(?([\d.]+\w)", str(e))
        how = f"it asks for {asked[1]} of {asked[2]}" if asked else " ".join(str(e).split())[:160]
        raise DoesNotFit(f"the step does not fit into a device's memory: {how}; take more config.microbatches, a smaller "
                         "config.batch or more devices: python -m simclr_jax.plan --search finds what fits") from None


def method(config, *, axis: str | None, examples: int, tokenizer=None) -> Method:
    """The method and its nets; `axis` as the nets' batch norms shall know it (None outside the step).

    A method may ask for `steps` of the run, the global `batch` and the `examples` of the source, as an optimiser does.

    Raises:
      UsageError: also as `nets`.
    """
    return names.make("methods", config.method, nets(config, axis=axis, tokenizer=tokenizer), batch=config.batch,
                      steps=steps(config, examples), examples=examples)


def nets(config, *, axis: str | None, tokenizer=None) -> dict[str, Net]:
    """The nets of the config by role, for a step over `axis`; None outside it.

    A text net learns the number of tokens, the length of a text and the end token from the tokenizer.

    Raises:
      UsageError: also if config.remat is to reach blocks and no net has any.
    """
    factories = [names.factory("nets", spec.name) for spec in config.nets.values()]
    if config.remat and not any("remat" in names.parameters(factory) for factory in factories):
        raise UsageError("config.remat=true, but none of config.nets has blocks to make again; set it to false")
    told = {"axis": axis, "remat": config.remat, **given(tokenizer)}
    return {role: names.make("nets", spec, **told) for role, spec in config.nets.items()}


def given(tokenizer) -> dict:
    """What nets are told of a tokenizer, or of whatever has its `vocab`, `length` and `eot`; {} for None."""
    return {} if tokenizer is None else {k: getattr(tokenizer, k) for k in ("vocab", "length", "eot")}


def tokenizer(config, source, workdir):
    """The tokenizer of the config, or None; one that is trained on captions is read from the workdir if it is there."""
    if not config.text:
        return None
    captions.check(source, config.text)

    def every():
        for i in range(source.size):
            yield from source.captions(i)
    return names.make("data.tokenizers", config.text, captions=every, file=str(workdir / "tokenizer.json"))


def recipe(config) -> augment.Recipe:
    """The recipe of the config."""
    return augment.build(config.augment.views)


def augmenter(config, recipe: augment.Recipe):
    """batch -> batch: what a recipe leaves to the device or the host's cores, and the masks of views if there are any."""
    made = augment.make(recipe, config.seed)
    hide = _hide(config, recipe)
    return lambda batch: hide(made(batch))


def _hide(config, recipe):
    if not config.augment.mask:
        return lambda batch: batch
    return names.call(augment.hide, config.augment.mask, "config.augment.mask", recipe, config.seed)


def rows(config, recipe: augment.Recipe, tokenizer=None) -> dict:
    """The global batch of a run as the method sees it, augmented, as ShapeDtypeStructs."""
    made = {key: (shape, np.float32) for key, shape in recipe.shapes().items()}
    made |= {"label": ((), np.int32), "id": ((2,), np.uint32)}
    if tokenizer is not None:
        made["text"] = (tokenizer.length,), np.int32
    made = {k: jax.ShapeDtypeStruct((config.batch, *shape), dtype) for k, (shape, dtype) in made.items()}
    return jax.eval_shape(_hide(config, recipe), made)


def delivered(config, recipe: augment.Recipe, source, tokenizer=None) -> dict:
    """The global batch of a run as `feed` hands it over, as ShapeDtypeStructs.

    Args:
      source: as `data.as_read` gives it; only its `shape` and `sizes` are looked at.
    """
    made = rows(config, recipe, tokenizer)
    if config.augment.where != "device":
        return made
    made.pop("mask", None)  # made beside the views
    of = lambda shape, dtype: jax.ShapeDtypeStruct((config.batch, *shape), dtype)
    if source.shape is None:  # cropped on the host
        return made | {key: of(shape, np.uint8) for key, shape in recipe.shapes().items()}
    made = {key: x for key, x in made.items() if key not in recipe.shapes()}
    made["image"] = of((*source.shape, 3), np.uint8)
    return made if source.sizes is None else made | {"size": of((2,), np.int32)}


def step(config, mesh, method: Method, tx, recipe: augment.Recipe, source, tokenizer=None) -> Step:
    """The step of the config on a mesh, whose devices need not be there.

    Args:
      source: as in `delivered`.
    """
    seen, given = rows(config, recipe, tokenizer), delivered(config, recipe, source, tokenizer)
    inside = dict(augment=augmenter(config, recipe)) if config.augment.where == "device" else {}
    shapes = state_shapes(method, tx, seen, seed=config.seed)
    shardings = placement.of(shapes, mesh)
    call = make_step(method, tx, mesh, seed=config.seed, microbatches=config.microbatches, shardings=shardings,
                     guard=guard.Rule(**config.guard), **inside)
    split = NamedSharding(mesh, P(dist.DATA))
    placed = lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)
    return Step(call, jax.tree.map(placed, shapes, shardings), {k: placed(x, split) for k, x in given.items()}, seen)


def feed(config, source, recipe: augment.Recipe, *, batch: int = 0, start_step: int = 0, process=(0, 1), tokenizer=None,
         where: str = ""):
    """The training batches of this process as the step takes them: finished on the host, or as far as the device wants.

    Args:
      batch: global rows; 0: those of the config. where: "host" or "device"; "": as the config says. Others as in
        `data.batches`.
    """
    memory.reuse_freed()
    batch, workers = batch or config.batch, config.augment.workers or None
    given = dict(batch=batch, seed=config.seed, start_step=start_step, process=process, workers=workers,
                 tokenizer=tokenizer)
    if (where or config.augment.where) == "device":
        return data.batches(source, recipe, **given, bits=8)
    threads, rows = workers or max(1, memory.cores() - 1), batch // process[1]
    pieces = data.batches(source, recipe, **given, piece=_piece(rows, recipe, threads))
    return augment.finished(pieces, augmenter(config, recipe), rows=rows, workers=threads)


def _piece(rows: int, recipe, threads: int) -> int:
    """Rows that a thread augments at a time: enough to keep all busy, few enough (24 MiB) for the memory to be used again and again."""
    size = sum(4 * int(np.prod(shape)) for shape in recipe.shapes().values())
    most = max(1, min(24 * 2**20 // size, -(-rows // threads)))
    return max(n for n in range(1, rows + 1) if rows % n == 0 and n <= most)


def source(config, split: str | None = None):
    """The data source of the config; `split` in place of its own. The same one every time, for what it keeps."""
    spec = config.data.to_dict() | ({} if split is None else {"split": split})
    return _source(json.dumps(spec, sort_keys=True))


@functools.lru_cache(maxsize=8)
def _source(spec: str):
    return names.make("data.sources", json.loads(spec))


def steps(config, examples: int) -> int:
    """How many steps the run has."""
    return config.steps or optim.total_steps(examples, config.epochs, config.batch)


def optimiser(config, examples: int) -> optim.Optimiser:
    return names.call(optim.make, config.optim, "config.optim", batch=config.batch, steps=steps(config, examples),
                      examples=examples)


def cpu_devices(config, processes: int = 1, local: bool = False) -> int:
    """How many devices to simulate on a CPU: XLA runs a convolution on one thread a device, so several are quicker.

    The largest divisor of this process's rows of a micro-batch that is not above its share of the cores, a `model` axis
    taking so many devices for each.
    """
    if config.devices:
        return config.devices
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cores = max(1, cores // processes) if local else cores
    cores = max(1, cores // config.mesh.model)
    rows = config.batch // config.microbatches // processes
    return config.mesh.model * max(n for n in range(1, cores + 1) if rows % n == 0) if rows else 1


def start_devices(count: int) -> None:
    """Simulates `count` CPU devices, if nothing has set their number yet. Before any JAX computation."""
    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        jax.config.update("jax_num_cpu_devices", count)


def mesh(config, devices=None):
    """The mesh of the run: all devices, or `config.devices` of them; or the `devices` given, which need not be there.

    Raises:
      UsageError: more devices than there are, or a batch that they do not divide.
    """
    given, devices = devices is not None, jax.devices() if devices is None else devices
    if config.devices and jax.process_count() == 1 and not given:
        if config.devices > len(devices):
            raise UsageError(f"config.devices={config.devices}, but there are {len(devices)}; set it to 0 or at most that")
        devices = devices[:config.devices]
    sizes = {axis: n for axis, n in config.mesh.items() if axis == dist.DATA or n != 1}
    made = dist.make_mesh(sizes, devices)
    shards = made.shape[dist.DATA] * config.microbatches
    if config.batch % shards:
        below = config.batch // shards * shards
        fits = " or ".join(str(b) for b in (below, below + shards) if b)
        raise UsageError(f"config.batch={config.batch} does not divide over {made.shape[dist.DATA]} devices x "
                         f"{config.microbatches} micro-batches; take {fits}, or another number of devices "
                         f"(config.devices divides {config.batch}: {_divisors(config.batch // config.microbatches)})")
    return made


def _divisors(n: int) -> str:
    return ", ".join(str(d) for d in range(1, min(n, 4096) + 1) if n % d == 0)


def count(params) -> int:
    """Number of parameters of a tree."""
    return sum(int(np.prod(p.shape)) for p in jax.tree.leaves(params))


def embedder(method: Method, params, extra, modality: str = "image"):
    """A function f32[n,H,W,3] -> f32[n,D] (numpy in, array out) that splits rows over this process's devices.

    Args:
      params, extra: as in a state, replicated or sharded.

    Returns:
      (embed, step): n must be a multiple of `step`.
    """
    devices = jax.local_devices()
    local = dist.make_mesh({dist.DATA: len(devices)}, devices)
    params, extra = jax.device_put(_whole((params, extra)), dist.replicated(local))
    rows = jax.sharding.NamedSharding(local, jax.sharding.PartitionSpec(dist.DATA))
    apply = _embed(method, modality)
    return lambda x: apply(params, extra, jax.device_put(x, rows)), len(devices)


@functools.lru_cache(maxsize=8)
def _embed(method, modality):
    """Compiled once, whatever the weights: training evaluates again and again."""
    return jax.jit(lambda params, extra, x: method.embed(params, extra, {modality: x})[modality])


def _whole(tree):
    """Every leaf as one local array, also where processes hold parts."""
    def whole(x):
        if x.is_fully_replicated:
            return x.addressable_data(0)
        if x.is_fully_addressable:
            return np.asarray(x)
        from jax.experimental import multihost_utils
        return multihost_utils.process_allgather(x, tiled=True)
    return jax.tree.map(whole, tree)
