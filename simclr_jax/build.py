"""From a config to the pieces of a run. Only the commands (`__main__` files) use this."""
import functools
import json
import os

import jax
import numpy as np

from simclr_jax import augment, data, dist, names
from simclr_jax.data import captions, memory
from simclr_jax.errors import UsageError
from simclr_jax.train import optim
from simclr_jax.types import Method


def method(config, *, axis: str | None, tokenizer=None) -> Method:
    """The method and its nets; `axis` as the nets' batch norms shall know it (None outside the step).

    A text net learns the number of tokens, the length of a text and the end token from the tokenizer.

    Raises:
      UsageError: also if config.remat is to reach blocks and no net has any.
    """
    given = {"axis": axis, "remat": config.remat}
    if tokenizer is not None:
        given |= {"vocab": tokenizer.vocab, "length": tokenizer.length, "eot": tokenizer.eot}
    factories = [names.factory("nets", spec.name) for spec in config.nets.values()]
    if config.remat and not any("remat" in names.parameters(factory) for factory in factories):
        raise UsageError("config.remat=true, but none of config.nets has blocks to make again; set it to false")
    nets = {role: names.make("nets", spec, **given) for role, spec in config.nets.items()}
    return names.make("methods", config.method, nets)


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


def rows(config, recipe: augment.Recipe, tokenizer=None) -> dict:
    """The global batch of a run as the method sees it, augmented, as ShapeDtypeStructs."""
    made = {key: (shape, np.float32) for key, shape in recipe.shapes().items()}
    made |= {"label": ((), np.int32), "id": ((2,), np.uint32)}
    if tokenizer is not None:
        made["text"] = (tokenizer.length,), np.int32
    return {k: jax.ShapeDtypeStruct((config.batch, *shape), dtype) for k, (shape, dtype) in made.items()}


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
    return augment.finished(pieces, augment.make(recipe, config.seed), rows=rows, workers=threads)


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


def mesh(config):
    """The mesh of the run: all devices, or `config.devices` of them.

    Raises:
      UsageError: more devices than there are, or a batch that they do not divide.
    """
    devices = jax.devices()
    if config.devices and jax.process_count() == 1:
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
    apply = jax.jit(lambda p, e, x: method.embed(p, e, {modality: x})[modality])
    return lambda x: apply(params, extra, jax.device_put(x, rows)), len(devices)


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
