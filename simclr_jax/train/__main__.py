"""`python -m simclr_jax.train --config=FILE --workdir=DIR`: pretrains, or goes on where the workdir stands.

`--replay=DIR` runs one step again that a run has given up on, and says what in it is not finite.
"""
import functools
import platform

import jax

from simclr_jax import __version__, augment, build, config as configs, data, dist, embed, life, replay, watch
from simclr_jax.life import command
from simclr_jax.errors import UsageError
from simclr_jax.evals import health, pictures
from simclr_jax.train import cache, dump, load, log as logs, optim, placement, workdir as workdirs
from simclr_jax.train.checkpoint import Checkpoints
from simclr_jax.train.loop import run
from simclr_jax.train.state import init_state


def main(argv: list[str]) -> None:
    if any(a.startswith("--replay") for a in argv):
        replay.main(configs.options(argv, replay="")["replay"])
        return
    config, flags = configs.parse(argv, workdir="", coordinator="", processes=0, process=-1,
                                  allow_config_change=False)
    configs.check(config)
    workdir = workdirs.resolve(flags["workdir"])
    _choose_devices(config, flags, workdirs.read_config(workdir))
    times = {k: config.life[k] for k in ("heartbeat", "warn", "abort", "grace")}
    with life.Life(**times) as alive, cache.of(workdir / "compiled" if config.compile_cache else None):
        _run(config, flags, workdir, alive)


def _run(config, flags, workdir, alive):
    life.agree(configs.to_json(config), "the config")
    process, lead = (jax.process_index(), jax.process_count()), jax.process_index() == 0

    # All that can be refused is refused here, before anything compiles or is written, by all processes together.
    problem = ""
    try:
        mesh = build.mesh(config)
        share = dist.share(mesh)
        source = build.source(config)
        data.check(source, batch=config.batch, process=share)
        recipe = build.recipe(config)
        augment.build_eval(config.augment.eval)
        tokenizer = build.tokenizer(config, source, workdir)
        method = build.method(config, axis=dist.rows_axis(mesh), examples=source.size, tokenizer=tokenizer)
        total = build.steps(config, source.size)
        optimiser = build.optimiser(config, source.size)
        made = build.step(config, mesh, method, optimiser.tx, recipe, data.as_read(source, share), tokenizer)
        traced, rows = made.trace(), made.rows
        fresh = not Checkpoints(workdir / "checkpoints", writable=False).steps()
        # A run that goes on has its weights.
        places = load.resolve(config.load, config.init_from, list(config.nets), made.state.params) if fresh else {}
        loaded = load.read(places)
        if fresh and (random := set(config.method.get("locked", ())) - set(places)):
            raise UsageError(f"config.method.locked names {sorted(random)[0]!r}, for which "
                             f"config.init_from={config.init_from} has no weights; give them, as in "
                             f"--config.load.{sorted(random)[0]}=DIR:backbone")
        load.place(made.shapes(), loaded)
        evaluate = watch.make(config, method, process, tokenizer) if config.evals.every else None
        logs.check(config)
    except UsageError as e:
        problem = str(e)
    life.refuse_together(problem)
    life.agree(f"{source.size} examples, digest {source.digest}", "the data")
    life.agree(str(source.shards), "the list of shards")
    if tokenizer is not None:
        life.agree(str(tokenizer.digest), "the tokenizer")
    workdirs.open_workdir(workdir)
    checkpoints = Checkpoints(workdir / "checkpoints", keep=config.checkpoint.keep,
                              keep_every=config.checkpoint.keep_every, log=print if lead else lambda _: None)
    meta = {"config": configs.plain(config), "data": {"examples": source.size, "digest": source.digest}}
    if tokenizer is not None:
        meta["data"]["tokenizer"] = tokenizer.digest
        workdirs.write_tokenizer(workdir, tokenizer.keep)
    _refuse_change(checkpoints.meta(), meta, flags["allow_config_change"], lead)
    if lead:
        _greet(config, mesh, source, tokenizer, total, workdir)

    state = init_state(method, optimiser.tx, mesh, rows, seed=config.seed, shardings=made.shardings)
    state = load.place(state, loaded)
    excluded = optimiser.report(state.params)
    if lead:
        print(f"parameters: {build.count(state.params):,}; state: {placement.bytes_here(state) / 2**20:,.1f} MiB a device",
              *load.report(places, config.nets), *excluded, sep="\n", flush=True)
    restored = checkpoints.restore(state)
    if restored:
        step, state, _ = restored
        if lead:
            print(f"going on from step {step} of {total}" if step < total else f"already at step {step} of {total}")
    start = int(state.step)
    workdirs.write_config(workdir, configs.to_json(config))
    log = logs.Log(workdir, total=total, start=start, config=meta["config"], active=lead)
    try:
        if lead and config.pictures and start < total:
            first = build.feed(config, source, recipe, batch=min(8, source.size), where="host")
            embed.picture(workdir, "views.png", pictures.views, next(first)["views"])
            first.close()
        step_fn, batches = None, iter(())
        if start < total:
            step_fn = build.compiled(traced)
            batches = build.feed(config, source, recipe, start_step=start, process=share, tokenizer=tokenizer)
        run(state, step_fn, batches, mesh=mesh, total=total, batch=config.batch, rate=optimiser.rate,
            checkpoints=checkpoints, meta=meta, log=log, log_every=config.log_every, save_every=config.checkpoint.every,
            eval_every=config.evals.every, evaluate=evaluate, best=config.evals.best, problems=source.problems,
            at_bounds=optimiser.at_bounds, collapse=health.Guard(total), profile=dict(config.profile), workdir=workdir,
            life=alive,
            check_every=config.life.check, stop_after=config.guard.stop,
            dump=functools.partial(dump.write, workdir, build.given(tokenizer), source.size, configs.to_json(config)))
        if lead and config.pictures and start < total:
            embed.picture(workdir, "loss.png", pictures.loss_curve, workdir / "metrics.jsonl")
    finally:
        log.close()
        checkpoints.close()
    if lead:
        print(f"done: {workdir}\nnext: python -m simclr_jax.evals --workdir={flags['workdir']}")


def _choose_devices(config, flags, saved):
    """Simulates CPU devices and joins the other processes; config.devices becomes the number chosen."""
    kept = (saved or {}).get("devices", 0)
    local = flags["coordinator"].startswith(("localhost", "127."))
    chosen = config.devices or kept or build.cpu_devices(config, max(flags["processes"], 1), local)
    build.start_devices(chosen)
    life.start(flags["coordinator"], flags["processes"], flags["process"], join=config.life.join,
               heartbeat=config.life.heartbeat)
    if jax.default_backend() == "cpu" and jax.process_count() == 1 and not config.devices:
        config.devices = min(kept or build.cpu_devices(config), jax.device_count())


def _refuse_change(saved, meta, allowed, lead):
    """A run is one config on one set of data: what would change the mathematics half way is refused, or listed."""
    if not saved:
        return
    differs = configs.changes(saved["config"], meta["config"])
    for key, new in meta["data"].items():
        old = saved.get("data", {}).get(key, new)
        differs += [f"the data's {key}: {old} -> {new}"] if old != new else []
    if differs and not allowed:
        raise UsageError(f"this workdir's checkpoints were made with another config: {'; '.join(differs)}; "
                         "take another --workdir, or pass --allow_config_change to go on with the new values")
    if lead:
        for d in differs:
            print(f"changed on resume, as allowed: {d}")


def _greet(config, mesh, source, tokenizer, total, workdir):
    device = jax.devices()[0]
    layout = " x ".join(f"{name} {size}" for name, size in mesh.shape.items())
    print(f"simclr_jax {__version__}, jax {jax.__version__}, Python {platform.python_version()}")
    print(f"devices: {mesh.size} {device.platform} ({device.device_kind}), mesh {layout}, {jax.process_count()} process(es)")
    print(f"data: {source.describe}" + (f"; text: {tokenizer.describe}" if tokenizer else ""))
    top = optim.peak(config.optim.lr, config.batch, config.optim.scaling)
    epochs = total * config.batch / source.size
    print(f"run: {config.method.name}, batch {config.batch} ({config.batch // mesh.shape[dist.DATA]} a device), "
          f"{total} steps = {epochs:.1f} epochs, learning rate {config.optim.lr:g} scaled {config.optim.scaling}: {top:g}")
    warmup = config.optim.warmup_steps * config.batch / source.size or config.optim.warmup_epochs
    if warmup > epochs:
        print(f"note: the warm-up of {warmup:.3g} epochs is longer than the run, which never reaches "
              "that rate; lower config.optim.warmup_epochs or warmup_steps")
    print(f"workdir: {workdir}", flush=True)


if __name__ == "__main__":
    command(main)
