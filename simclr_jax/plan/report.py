"""A plan as text."""

UNITS = {"GiB": 2**30, "MiB": 2**20, "KiB": 2**10, "TFLOP": 1e12, "GFLOP": 1e9, "MFLOP": 1e6}


def text(r: dict) -> str:
    """Lines for a person, of what `measure.run` returns."""
    m, lines = r["memory_bytes"], []
    say = lines.append
    say(f"{r['topology']}: {r['devices']} devices ({r['device']}), batch {r['batch']:,}, "
        f"{r['batch'] // r['mesh']['data']} rows a device"
        + (f" in {r['microbatches']} micro-batches" if r["microbatches"] > 1 else ""))
    if r["collectives"] is None:
        say(r["needs"])
    else:
        say(f"memory a device: {size(m['total'])} of {size(m['limit'])}: {'fits' if r['fits'] else 'does not fit'}")
        say(f"  {size(m['arguments'])} arguments, {size(m['temporary'])} temporary, {size(m['output'])} output "
            "(in place of arguments, as far as they are alike)")
    say("  held: " + ", ".join(f"{name} {size(n)}" for name, n in r["takes"].items()))
    if r["collectives"] is None:
        say(f"arithmetic a device: {work(r['flops'])}")
        return "\n".join(lines)
    say("  largest results in memory:")
    lines += [f"    {size(n):>10}  {shape}  {origin}" for n, shape, origin in r["largest"]]
    say("collectives a step: " + (", ".join(f"{v['count']} {k} ({size(v['bytes'])})"
                                           for k, v in r["collectives"].items()) or "none"))
    say(f"  in MiB, once: {r['how'][0]}\n  in loops: {r['how'][1]}")
    say(f"arithmetic a device: {work(r['flops'])}, {work(r['flops_in_passes'])} in passes of bf16"
        + ("" if r["flops_exact"] else " (at least: a loop has no known length)"))
    if r["time_bound_s"] is None:
        say(f"time: no bound, as the speeds of {r['device']!r} are not in simclr_jax/plan/chips.py")
    else:
        each = ", ".join(f"{k} {1e3 * v:.3g} ms" for k, v in r["bounds_s"].items())
        say(f"a step takes at least {1e3 * r['time_bound_s']:.3g} ms, bound by {r['bound_by']} ({each}); "
            "a bound, not a forecast")
        say(f"  at most {r['images_per_s']:,.0f} examples/s" + (
            "; hours unknown: give --examples=N" if r["hours"] is None else
            f"; {r['steps']:,} steps in at least {r['hours']:,.2f} hours, {r['chip_hours']:,.1f} chip-hours"))
    say("the compiler's own estimate: " + (f"{1e3 * r['compiler_time_s']:.3g} ms" if r["compiler_time_s"] else
                                           "none (it counts a loop's body once)" if r["in_a_loop"] else "none"))
    if r.get("largest_batch") is not None:
        say(f"largest batch that fits: {r['largest_batch'] or 'none'} (tried: {', '.join(r['tried'])})")
    return "\n".join(lines)


def size(count: float | None) -> str:
    """Bytes as a person reads them.

    >>> size(3 << 29), size(1000), size(None)
    ('1.50 GiB', '0.98 KiB', 'unknown')
    """
    if count is None:
        return "unknown"
    unit = next((u for u in ("GiB", "MiB") if count >= UNITS[u]), "KiB")
    return f"{count / UNITS[unit]:.2f} {unit}"


def work(flops: float) -> str:
    """Products as a person reads them."""
    unit = next((u for u in ("TFLOP", "GFLOP") if flops >= UNITS[u]), "MFLOP")
    return f"{flops / UNITS[unit]:.2f} {unit}"
