"""One config on one topology: compiles the step that will run there and reads off what it needs."""
import math
import re

import jax
import numpy as np

from simclr_jax import build, dist
from simclr_jax.errors import UsageError
from simclr_jax.plan import arithmetic, chips, hlo, stand_in, topology as topologies


def run(config, devices, topology: str, *, examples: int = 0, compile: bool = True, keep=None) -> dict:
    """Plans a config.

    Args:
      devices: of the topology, as `topology.devices` gives them.
      topology: its name, for the record.
      examples: of the training data, if it is not here; 0: as `stand_in` knows.
      compile: False: only what the traced program tells, its arithmetic and what is held from step to step.
      keep: a path to write the optimised program to.

    Returns:
      What --json prints; all that counts bytes or products is of one device (a core on v2 and v3) and one step:
      topology, devices, batch, fits, memory_bytes {arguments, temporary, output, total, limit}, collectives {kind:
      {count, bytes}}, flops, time_bound_s, bound_by, compiler_time_s, images_per_s; and beside these device, takes
      {parameters, optimiser, extra, batch: bytes}, largest [[bytes, shape, origin]], links_bytes, memory_traffic_bytes,
      bounds_s {products, memory, links}, flops_in_passes, flops_exact, steps, hours, chip_hours, needs, in_a_loop. None
      is what is not known: all of the compiled program where it does not fit, bounds of a device that `chips` lacks.

    Raises:
      UsageError: what no run could be.
    """
    mesh = build.mesh(config, devices)
    source, size = stand_in.source(config, examples)
    tokenizer, recipe = stand_in.tokenizer(config), build.recipe(config)
    method = build.method(config, axis=dist.rows_axis(mesh), examples=source.size, tokenizer=tokenizer)
    tx = build.optimiser(config, source.size).tx
    step = build.step(config, mesh, method, tx, recipe, source, tokenizer)
    traced = step.trace()
    platform, kind = devices[0].platform, devices[0].device_kind
    products = arithmetic.products(traced.jaxpr.jaxpr, mesh.size, platform)
    limit = topologies.memory(devices[0], len(devices))
    result = {"topology": topology, "devices": mesh.size, "batch": config.batch, "fits": False,
              "memory_bytes": {"arguments": None, "temporary": None, "output": None, "total": None, "limit": limit},
              "collectives": None, "flops": products.flops, "time_bound_s": None, "bound_by": None,
              "compiler_time_s": None, "images_per_s": None, "hours": None, "chip_hours": None,
              "device": kind, "mesh": dict(mesh.shape), "microbatches": config.microbatches,
              "flops_in_passes": products.passes, "flops_exact": products.exact, "takes": takes(step),
              "steps": build.steps(config, size) if size or config.steps else None, "needs": ""}
    if not compile:
        return result | {"fits": None, "needs": "not compiled, so whether it fits is not known"}
    try:
        compiled = build.compiled(traced)
    except build.DoesNotFit as e:
        return result | {"needs": str(e), "memory_bytes": result["memory_bytes"] | _asked(str(e))}
    text, m = compiled.as_text(), compiled.memory_analysis()
    if keep:
        keep.write_text(text)
    total = m.argument_size_in_bytes + m.temp_size_in_bytes + m.output_size_in_bytes - m.alias_size_in_bytes
    found = hlo.collectives(text)
    result |= {
        "fits": limit is None or total <= limit,
        "memory_bytes": {"arguments": m.argument_size_in_bytes, "temporary": m.temp_size_in_bytes,
                         "output": m.output_size_in_bytes, "total": total, "limit": limit},
        "collectives": hlo.by_kind(found), "how": hlo.cells(found), "links_bytes": int(hlo.sent(found)),
        "memory_traffic_bytes": hlo.traffic(text), "largest": hlo.largest(text, 8), "in_a_loop": hlo.loops(text) > 0}
    return result | _time(result, compiled, kind, platform)


def takes(step) -> dict:
    """Bytes a device holds from step to step, by what they are; the batch is that of a step."""
    def size(tree):
        local = [(x.sharding.shard_shape(x.shape), np.dtype(x.dtype)) for x in jax.tree.leaves(tree)]
        return sum(math.prod(shape) * dtype.itemsize for shape, dtype in local)
    return {"parameters": size(step.state.params), "optimiser": size(step.state.opt_state),
            "extra": size(step.state.extra), "batch": size(step.batch)}


def _time(result, compiled, kind, platform):
    """The fields that say how long a step takes at least."""
    cost = compiled.cost_analysis() or {}
    seconds = cost.get("optimal_seconds", 0)
    # A loop's body is counted once there, and the figure may turn negative.
    out = {"compiler_time_s": seconds if platform == "tpu" and seconds > 0 and not result["in_a_loop"] else None}
    chip = chips.of_device(kind)
    if chip is None:
        return out
    bounds = {"products": result["flops_in_passes"] / chip.flops,
              "memory": result["memory_traffic_bytes"] / chip.hbm_rate, "links": result["links_bytes"] / chip.link_rate}
    by = max(bounds, key=bounds.get)
    hours = result["steps"] and result["steps"] * bounds[by] / 3600
    return out | {"bounds_s": bounds, "time_bound_s": bounds[by], "bound_by": by,
                  "images_per_s": result["batch"] / bounds[by], "hours": hours,
                  "chip_hours": hours and hours * result["devices"] / chip.devices}


def _asked(message):
    """The total that the compiler asks for and the limit it has, which is less than the chip's: "31.9G of 15.7G"."""
    size = r"([\d.]+)([KMGT])"
    found = re.search(f"asks for {size}\\w* of {size}", message)
    if not found:
        return {}
    as_bytes = lambda number, unit: int(float(number) * 1024 ** (1 + "KMGT".index(unit)))  # noqa: E731
    return {"total": as_bytes(*found.groups()[:2]), "limit": as_bytes(*found.groups()[2:])}


def alike(config, **changes):
    """A copy of the config with fields set, as in {"remat": True}.

    Raises:
      UsageError: no such field.
    """
    own = config.copy_and_resolve_references().unlock()
    for field, value in changes.items():
        *path, last = field.split(".")
        at = own
        for part in path:
            at = at[part]
        if last not in at:
            raise UsageError(f"the config has no field {field}")
        at[last] = value
    return own.lock()
