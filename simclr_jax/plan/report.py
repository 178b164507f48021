"""A plan as text."""

GIB, MIB = 2 ** 30, 2 ** 20


def text(r: dict) -> str:
    """Lines for a person, of what `measure.run` returns."""
    m, lines = r["memory_bytes"], []
    say = lines.append
    say(f"{r['topology']}: {r['devices']} devices ({r['device']}), batch {r['batch']:,}, "
        f"{r['batch'] // r['mesh']['data']} rows a device"
        + (f" in {r['microbatches']} micro-batches" if r["microbatches"] > 1 else ""))
    if r["collectives"] is None:
        say(f"does not fit: {r['needs']}")
    else:
        say(f"memory a device: {_gib(m['total'])} of {_gib(m['limit'])}: {'fits' if r['fits'] else 'does not fit'}")
        say(f"  {_gib(m['arguments'])} arguments, {_gib(m['temporary'])} temporary, {_gib(m['output'])} output "
            "(in place of arguments, as far as they are alike)")
    say("  held: " + ", ".join(f"{name} {size / MIB:,.1f} MiB" for name, size in r["takes"].items()))
    if r["collectives"] is None:
        say(f"arithmetic a device: {r['flops'] / 1e12:.2f} TFLOP")
        return "\n".join(lines)
    say("  largest results in memory:")
    lines += [f"    {size / MIB:8.1f} MiB  {shape}  {origin}" for size, shape, origin in r["largest"]]
    say("collectives a step: " + (", ".join(f"{v['count']} {k} ({v['bytes'] / MIB:.1f} MiB)"
                                           for k, v in r["collectives"].items()) or "none"))
    say(f"  once: {r['how'][0]}\n  in loops: {r['how'][1]}")
    say(f"arithmetic a device: {r['flops'] / 1e12:.2f} TFLOP, {r['flops_in_passes'] / 1e12:.2f} in passes of bf16"
        + ("" if r["flops_exact"] else " (at least: a loop has no known length)"))
    if r["time_bound_s"] is None:
        say(f"time: no bound, as the speeds of {r['device']!r} are not in simclr_jax/plan/chips.py")
    else:
        each = ", ".join(f"{k} {1e3 * v:.1f} ms" for k, v in r["bounds_s"].items())
        say(f"a step takes at least {1e3 * r['time_bound_s']:.1f} ms, bound by {r['bound_by']} ({each}); a bound, not a forecast")
        say(f"  at most {r['images_per_s']:,.0f} examples/s" + (
            "; hours unknown: give --examples=N" if r["hours"] is None else
            f"; {r['steps']:,} steps in at least {r['hours']:.1f} hours, {r['chip_hours']:,.0f} chip-hours"))
    say("the compiler's own estimate: " + (f"{1e3 * r['compiler_time_s']:.1f} ms" if r["compiler_time_s"] else
                                           "none (it counts a loop's body once)" if r["in_a_loop"] else "none"))
    if r.get("largest_batch"):
        say(f"largest batch that fits: {r['largest_batch']:,} ({', '.join(r['tried'])})")
    return "\n".join(lines)


def _gib(size):
    return "unknown" if size is None else f"{size / GIB:.2f} GiB"
