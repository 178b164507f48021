"""`python -m simclr_jax.train --config=FILE --workdir=DIR`: pretrains, or goes on where the workdir stands."""
import platform
import sys

import jax

from simclr_jax import __version__, build, config as configs, dist, watch
from simclr_jax.errors import UsageError


def main(argv: list[str]) -> None:
    config, flags = configs.parse(argv, workdir="", coordinator="", processes=0, process=-1,
                                  allow_config_change=False)
    configs.check(config)
    local = flags["coordinator"].startswith(("localhost", "127."))
    from simclr_jax.train.workdir import open_workdir, read_config, write_config
    saved = read_config(flags["workdir"]) if flags["workdir"] else None
    if saved and not config.devices:
        config.devices = saved.get("devices", 0)
    build.start_devices(build.cpu_devices(config, max(flags["processes"], 1), local))
    dist.start(flags["coordinator"], flags["processes"], flags["process"])
    if jax.default_backend() == "cpu" and jax.process_count() == 1 and not config.devices:
        config.devices = min(build.cpu_devices(config), jax.device_count())
    dist.agree(configs.to_json(config), "the config")

    # All that can be refused is refused here, before anything compiles.
    mesh = build.mesh(config)
    method = build.method(config, axis=dist.DATA)
    source = build.source(config)
    total = build.steps(config, source.size)
    optimiser = build.optimiser(config, source.size)
    from simclr_jax import data
    from simclr_jax.train.checkpoint import Checkpoints
    process = jax.process_index(), jax.process_count()
    first = data.batches(source, config.augment.views, batch=config.batch, seed=config.seed, process=process)
    rows = next(first)
    workdir = open_workdir(flags["workdir"])
    lead = jax.process_index() == 0
    checkpoints = Checkpoints(workdir / "checkpoints", keep=config.checkpoint.keep,
                              keep_every=config.checkpoint.keep_every, log=print if lead else lambda _: None)
    _refuse_change(checkpoints.meta(), config, flags["allow_config_change"], lead)
    if lead:
        _greet(config, mesh, source, total, workdir)

    from simclr_jax.train.log import Log
    from simclr_jax.train.loop import run
    from simclr_jax.train.state import init_state
    from simclr_jax.train.step import make_step
    state = init_state(method, optimiser.tx, mesh, rows, seed=config.seed)
    excluded = optimiser.report(state.params)
    if lead:
        print(f"parameters: {build.count(state.params):,}", *excluded, sep="\n")
    restored = checkpoints.restore(state)
    if restored:
        step, state, _ = restored
        if lead:
            print(f"going on from step {step} of {total}" if step < total else f"already at step {step} of {total}")
    start = int(state.step)
    write_config(workdir, configs.to_json(config))
    plain = configs.plain(config)
    log = Log(workdir, total=total, start=start, config=plain, active=lead)
    try:
        if start < total:
            from simclr_jax.evals import pictures
            evaluate = watch.make(config, method, process) if config.evals.every else None
            if lead and config.pictures:
                watch.picture(workdir, "views.png", pictures.views, rows["views"])
            batches = data.batches(source, config.augment.views, batch=config.batch, seed=config.seed,
                                   start_step=start, process=process)
            step_fn = make_step(method, optimiser.tx, mesh, seed=config.seed, microbatches=config.microbatches)
            run(state, step_fn, batches, mesh=mesh, total=total, batch=config.batch, rate=optimiser.rate,
                checkpoints=checkpoints, meta={"config": plain}, log=log, log_every=config.log_every,
                save_every=config.checkpoint.every, eval_every=config.evals.every, evaluate=evaluate,
                best=config.evals.best, profile=dict(config.profile), workdir=workdir)
            for line in source.problems():
                log.say(f"skipped {line}")
            if lead and config.pictures:
                watch.picture(workdir, "loss.png", pictures.loss_curve, workdir / "metrics.jsonl")
    finally:
        checkpoints.close()
        log.close()
    if lead:
        print(f"done: {workdir}\nnext: python -m simclr_jax.evals --workdir={flags['workdir']}")


def _refuse_change(meta, config, allowed, lead):
    """A run is one config: what would change the mathematics half way is refused, or listed if allowed."""
    if not meta:
        return
    differs = configs.changes(meta["config"], configs.plain(config))
    if differs and not allowed:
        raise UsageError(f"this workdir's checkpoints were made with another config: {'; '.join(differs)}; "
                         "take another --workdir, or pass --allow_config_change to go on with the new values")
    if lead:
        for d in differs:
            print(f"changed on resume, as allowed: {d}")


def _greet(config, mesh, source, total, workdir):
    device = jax.devices()[0]
    layout = " x ".join(f"{name} {size}" for name, size in mesh.shape.items())
    print(f"simclr_jax {__version__}, jax {jax.__version__}, Python {platform.python_version()}")
    print(f"devices: {mesh.size} {device.platform} ({device.device_kind}), mesh {layout}, {jax.process_count()} process(es)")
    print(f"data: {source.describe}")
    from simclr_jax.train import optim
    top = optim.peak(config.optim.lr, config.batch, config.optim.scaling)
    print(f"run: {config.method.name}, batch {config.batch} ({config.batch // mesh.shape[dist.DATA]} a device), "
          f"{total} steps = {total * config.batch / source.size:.1f} epochs, learning rate {config.optim.lr:g} "
          f"scaled {config.optim.scaling}: {top:g}")
    print(f"workdir: {workdir}")


def command(main):
    """Runs a command's `main`; what the user can put right is one line and exit code 2, without a traceback."""
    try:
        main(sys.argv)
    except UsageError as e:
        print(f"error: {e}", file=sys.stderr, flush=True)
        sys.exit(2)


if __name__ == "__main__":
    command(main)
