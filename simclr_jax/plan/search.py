"""Tries settings of a config that change what it costs and not what it computes, and recommends one."""
import time

from simclr_jax import dist
from simclr_jax.errors import UsageError
from simclr_jax.plan import measure, report

MICROBATCHES = 2, 4, 8, 16, 32
BLOCKS = 512, 2048, 8192
MODEL = 2, 4
ALIKE = 1.02  # bounds within this factor are one: then less memory wins


def run(config, *, say, **given) -> dict:
    """Plans variants of the config, one setting at a time from the best so far, and returns the best plan.

    In turn: how the loss meets other devices' rows, activations made again, micro-batches and parameters over a `model`
    axis (these only until it fits, since they cost time), and the side of the loss's tiles.

    Returns:
      What `measure.run` returns, of the recommended settings, with settings {field: value} and searched, a list of all
      that was tried: settings, fits, memory_bytes, time_bound_s, bound_by.

    Raises:
      UsageError: the config itself is none that could run.
    """
    tried = {}

    def plan(settings):
        key = tuple(sorted((k, str(v)) for k, v in settings.items()))
        if key not in tried:
            try:
                result = measure.run(measure.alike(config, **settings), **given)
            except UsageError as e:
                if not settings:
                    raise
                say(f"{shown(settings)}: refused: {e}")
                result = None
            else:
                say(line(settings, result))
            tried[key] = settings, result
        return tried[key][1]

    began, devices = time.monotonic(), len(given["devices"])
    fits = plan({})["fits"]
    more = sum(len(axis(config, devices)) for axis in AXES if not (fits and axis in COSTLY))
    say(f"up to {more} more settings to compile, as long as this one each: {time.monotonic() - began:.0f} s")
    for axis in AXES:
        best, found = recommended(tried.values())
        for settings in axis(config, devices):
            if axis in COSTLY and found["fits"]:
                break
            result = plan(best | settings)
            if result:
                found = recommended([(best, found), (settings, result)])[1]
    settings, result = recommended(tried.values())
    say(f"recommended: {flags(settings) or 'the config as it is'}" if result["fits"] else
        "none of these fits; take a smaller batch or more devices")
    searched = [{"settings": s} | {k: r[k] for k in ("fits", "memory_bytes", "time_bound_s", "bound_by")}
                for s, r in tried.values() if r]
    return result | {"settings": settings, "searched": searched}


def recommended(tried):
    """(settings, plan): of those that fit that with the least bound on its time, of those as quick the one with least
    memory, of those as large the one with fewest changes; else that which asks for least."""
    made = [(s, r) for s, r in tried if r]
    fitting = [x for x in made if x[1]["fits"]]
    total = lambda x: x[1]["memory_bytes"]["total"] or float("inf")  # noqa: E731
    if not fitting:
        return min(made, key=total)
    bounds = [r["time_bound_s"] for _, r in fitting if r["time_bound_s"] is not None]
    if bounds:
        fitting = [x for x in fitting if x[1]["time_bound_s"] <= ALIKE * min(bounds)]
    return min(fitting, key=lambda x: (round(total(x) / 2**26), len(x[0])))


def shown(settings):
    return " ".join(f"{k}={v}" for k, v in settings.items()) or "as it is"


def flags(settings):
    """Settings as a command line has them."""
    return " ".join(f"--config.{k}={v}" for k, v in settings.items())


def line(settings, r):
    bound = "" if r["time_bound_s"] is None else f", at least {1e3 * r['time_bound_s']:.3g} ms by {r['bound_by']}"
    size = report.size(r["memory_bytes"]["total"])
    return f"{shown(settings)}: {'fits' if r['fits'] else 'does not fit'}, {size} a device{bound}"


# Each setting's values: what to add to the best settings so far.


def _remat(config, devices):
    return [] if config.remat else [{"remat": True}]


def _microbatches(config, devices):
    rows = config.batch // devices
    return [{"microbatches": n} for n in MICROBATCHES if n > config.microbatches and rows % n == 0]


def _model(config, devices):
    if any(net.get("bn") for net in config.nets.values()):  # a convolutional net, whose activations are what is large
        return []
    return [{"mesh.model": n} for n in MODEL if devices % n == 0]


def _comm(config, devices):
    other = {"gather": "ring", "ring": "gather"}.get(config.method.get("comm"))
    return [{"method.comm": other}] if other and devices > 1 else []


def _block(config, devices):
    return [{"method.block": n} for n in BLOCKS if n < 2 * config.batch] if "block" in config.method else []


AXES = _comm, _remat, _microbatches, _model, _block
COSTLY = _microbatches, _model  # more of these only until it fits
