"""What feeds a run's step how fast, and which settings to choose. Composition, for the command."""
import contextlib
import tempfile
import time
from typing import NamedTuple

import jax
import numpy as np
from etils import epath

from simclr_jax import augment, build, data, dist
from simclr_jax.augment import stage
from simclr_jax.augment.host import cpu
from simclr_jax.augment.recipe import consumes
from simclr_jax.data import memory, stages
from simclr_jax.errors import UsageError

_ENOUGH = 0.97  # of the best rate; what has it and costs less is recommended


class Stage(NamedTuple):
    name: str
    rate: float  # images/s, each with all its views
    note: str = ""


class Step(NamedTuple):
    """A short real run."""

    where: str
    workers: int  # as asked for; 0: chosen
    rate: float  # images/s
    waiting: float  # share of the time that the step waited for its batch


def run(config, *, seconds: float, steps: bool = True, say=print) -> None:
    """Measures and prints; `seconds` a stage.

    Raises:
      UsageError: a config that no run could have.
    """
    recipe, source = build.recipe(config), build.source(config)
    data.check(source, batch=config.batch)
    mesh = build.mesh(config)
    source = memory.in_memory(source)
    device = jax.devices()[0]
    say(f"data: {source.describe}")
    say(f"{memory.cores()} cores, {mesh.size} {device.platform} ({device.device_kind}); images/s, each image with its "
        f"{len(recipe.views)} views, {seconds:g} s a stage")
    ceiling = None
    for made in _stages(config, source, recipe, mesh, seconds):
        ceiling = ceiling or (made.rate if made.name in ("decode", "gather") else None)
        say(_line(*made))
    feeds = {}
    for where in ("host", "device"):
        feeds[where] = feed_rate(config, source, recipe, where, seconds)
        alone = "decoding" if source.rows is None else "gathering"
        say(_line(f"the whole feed, where={where}", feeds[where],
                  f"{feeds[where] / ceiling:.0%} of the machine's ceiling, {alone} alone on all cores"))
    found = []
    if steps:
        found = list(_steps(config, source, recipe, mesh, seconds, say))
    say(recommendation(found, feeds, device.platform, source.rows is None))


def _line(name, rate, note):
    return f"  {name:<36} {rate:>12,.0f}   {note}"


def recommendation(found: list[Step], feeds: dict[str, float], platform: str, encoded: bool) -> str:
    """One line: the settings of the fastest run or, of runs as fast, of that with the fewest threads.

    Without runs: on an accelerator it has the cores' work, since what the host need not do is won.
    """
    if not found:
        where = "host" if platform == "cpu" else "device"
        return (f"recommended: --config.augment.where={where} --config.augment.workers=0 "
                f"({feeds[where]:,.0f} images/s by the feed alone)")
    most = max(step.rate for step in found)
    best = min((s for s in found if s.rate >= _ENOUGH * most), key=lambda s: (s.workers or memory.cores(), -s.rate))
    line = (f"recommended: --config.augment.where={best.where} --config.augment.workers={best.workers} "
            f"({best.rate:,.0f} images/s, waiting for data {best.waiting:.0%})")
    if best.waiting > 0.05 and encoded:
        line += "; the host limits this run: a pre-decoded cache (--cache=DIR) spares it the decoding"
    return line


def _stages(config, source, recipe, mesh, seconds):
    """Each stage alone, as a Stage."""
    rows = config.batch
    for name, rate, note in stages.measure(source, recipe, rows=min(rows, 256), seed=config.seed, seconds=seconds):
        yield Stage(name, rate, note)
    with contextlib.closing(build.feed(config, source, recipe, where="device")) as batches:
        half = next(batches)
    views = _finished(config, recipe, half)
    for name, rate, note in _ops(recipe, half, views, seconds):
        yield Stage(name, rate, note)
    pieces = [{k: v[:max(1, rows // 8)] for k, v in views.items()}] * 8

    def batch(i):
        return {k: np.concatenate([piece[k] for piece in pieces]) for k in views}
    n = sum(len(piece["id"]) for piece in pieces)
    rate = stages.rate(batch, seconds, threads=1, each=n)
    yield Stage("batch", rate, "copies finished views into one array; one core")
    for where, batch in (("host", views), ("device", half)):
        size = sum(v.nbytes for v in batch.values()) / rows
        rate = stages.rate(lambda i, batch=batch: jax.block_until_ready(dist.place_batch(batch, mesh)), seconds,
                           threads=1, each=rows)
        yield Stage(f"transfer, where={where}", rate, f"to the devices; {size / 1e3:,.0f} kB an image, "
                                                      f"{size * rate / 1e9:.1f} GB/s")
    placed, whole = dist.place_batch(half, mesh), jax.jit(augment.make(recipe, config.seed))
    rate = stages.rate(lambda i: jax.block_until_ready(whole(placed)), seconds, threads=1, each=rows)
    yield Stage("all ops, on the device", rate, "what where=device adds to a step")


def _finished(config, recipe, half):
    """Finished views of the rows of a batch, a few rows at a time."""
    whole, n = jax.jit(augment.make(recipe, config.seed)), max(1, len(half["id"]) // 8)
    parts = [jax.tree.map(np.asarray, whole(jax.device_put({k: v[i:i + n] for k, v in half.items()}, cpu())))
             for i in range(0, len(half["id"]) - n + 1, n)]
    return {k: np.concatenate([part[k] for part in parts]) for k in parts[0]}


def _ops(recipe, half, views, seconds):
    """Each op of the recipe on the host's cores, once for each view that has it: (name, images/s, note)."""
    groups = {}
    for view in recipe.views:
        ops = view.ops if "image" in half else view.ops[len(view.chain):]
        for name, arguments in ops:
            at = view.ops.index((name, arguments))
            groups.setdefault((name, arguments, view.size, at >= len(view.chain)), []).append((view, at))
    for (name, _, size, is_pixel), members in groups.items():
        view, at = members[0]
        rows = max(1, min(len(half["id"]), 2**22 // (12 * size * size)))
        rng = np.random.default_rng(0)
        if is_pixel:
            op = view.pixels[at - len(view.chain)]
            images = np.ascontiguousarray(views[view.key][:rows, 0]).clip(0, 1)
            rows = len(images)
            u = rng.random((rows, consumes(op)), np.float32)
            work = jax.jit(lambda images, u, op=op: stage.finish((op,), images, (u,)))
        else:
            op = view.chain[at]
            images = half["image"][:rows]
            u = rng.random((rows, op.uniforms), np.float32)
            if at:
                continue  # its images are what the op before it makes; the whole is measured below
            work = jax.jit(lambda images, u, op=op: stage.crop(
                op, images, op.windows(u, *images.shape[1:3], jax.numpy)))
        images, u = jax.device_put((images, u), cpu())
        rate = stages.rate(lambda i: jax.block_until_ready(work(images, u)), seconds, each=rows) / len(members)
        yield name, rate, f"on the host, of {len(members)} view{'s' if len(members) > 1 else ''}, {size} px"


def feed_rate(config, source, recipe, where, seconds):
    """Images/s of the feed alone."""
    with contextlib.closing(build.feed(config, source, recipe, where=where)) as batches:
        for _ in range(2):  # what was made ahead while the first compiled
            next(batches)
        return stages.rate(lambda i: next(batches), seconds, threads=1, each=config.batch)


def _steps(config, source, recipe, mesh, seconds, say):
    """Short real runs, as Steps: both ways, with several numbers of workers."""
    from simclr_jax.train.state import init_state
    from simclr_jax.train.step import make_step
    cores = memory.cores()
    workers = sorted({max(1, cores // 2), max(1, cores - 1), cores})
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = build.tokenizer(config, source, epath.Path(folder))
    method = build.method(config, axis=dist.rows_axis(mesh), examples=source.size, tokenizer=tokenizer)
    tx = build.optimiser(config, source.size).tx
    rows = build.rows(config, recipe, tokenizer)
    for where in ("host", "device"):
        inside = dict(augment=build.augmenter(config, recipe)) if where == "device" else {}
        step = make_step(method, tx, mesh, seed=config.seed, microbatches=config.microbatches, **inside)
        try:
            state = init_state(method, tx, mesh, rows, seed=config.seed)
            for count in workers:
                state, made = _run(config, source, recipe, mesh, tokenizer, step, state, where, count, seconds)
                say(_line(f"training, where={where}, workers={count}", made.rate,
                          f"waiting for data {made.waiting:.0%}"))
                yield made
        except jax.errors.JaxRuntimeError as e:
            if "RESOURCE_EXHAUSTED" not in str(e) and "memory" not in str(e).lower():
                raise
            raise UsageError(f"a step of config.batch={config.batch} does not fit into this machine's memory; take a "
                             "smaller batch or more config.microbatches, or --nostep for the feed alone") from None


def _run(config, source, recipe, mesh, tokenizer, step, state, where, workers, seconds):
    from simclr_jax.train.feed import Feed
    own = config.copy_and_resolve_references().unlock()
    own.augment.workers = workers
    feed = Feed(build.feed(own, source, recipe, where=where, tokenizer=tokenizer), lambda b: dist.place_batch(b, mesh))
    try:
        for _ in range(3):  # compiles, and uses what was made ahead meanwhile
            state, metrics = step(state, feed.next())
        jax.block_until_ready(metrics)
        waited, start, done = feed.waited, time.perf_counter(), 0
        while done < 3 or time.perf_counter() - start < seconds:
            previous, (state, metrics) = metrics, step(state, feed.next())
            jax.block_until_ready(previous)
            done += 1
        jax.block_until_ready(metrics)
        passed = time.perf_counter() - start
        return state, Step(where, workers, done * config.batch / passed, min(1.0, (feed.waited - waited) / passed))
    finally:
        feed.close()
