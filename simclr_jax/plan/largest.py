"""The largest batch of a config that fits, in few compilations."""
from simclr_jax import dist
from simclr_jax.errors import UsageError
from simclr_jax.plan import measure

COMPILATIONS = 5  # besides that of the config itself
NEAR = 16  # ends when what is left to search is a sixteenth


def find(config, result: dict, **given) -> dict:
    """{"largest_batch": rows, 0 if not even the least fits; "tried": [str]}; None where the memory is not known.

    Args:
      result: `measure.run(config, **given)`. Micro-batches, rematerialisation and all else stay as they are.
    """
    unit = result["mesh"][dist.DATA] * config.microbatches

    def measured(n):
        return measure.run(measure.alike(config, batch=n * unit), **given)
    if result["memory_bytes"]["limit"] is None:
        return {"largest_batch": None, "tried": []}
    low, tried = bisect(config.batch // unit, result, measured)
    said = [f"{n * unit:,} {'fits' if fits else 'does not'}" for n, fits in tried]
    return {"largest_batch": low * unit, "tried": said}


def bisect(n: int, first: dict, measured, compilations: int = COMPILATIONS):
    """(the largest n found to fit, [(n, whether it fits)]), from the plan `first` of n on.

    What a step needs is nearly a line in its rows, so the next n is where the line of the last two plans meets the
    limit, kept between what fits and what does not.
    """
    limit, tried, points = first["memory_bytes"]["limit"], [], []
    low, high = 0, None

    def see(n, plan):
        nonlocal low, high
        tried.append((n, plan["fits"]))
        low, high = (max(low, n), high) if plan["fits"] else (low, min(n, high or n))
        if plan["memory_bytes"]["total"]:
            points.append((n, plan["memory_bytes"]["total"]))

    see(n, first)
    for _ in range(compilations):
        if high is not None and high - low <= max(1, low // NEAR):
            break
        n = _next(points, limit, low, high)
        if n in [m for m, _ in tried]:
            break
        try:
            see(n, measured(n))
        except UsageError:  # rows that a net or its normalisation cannot have
            break
    return low, tried


def _next(points, limit, low, high):
    """Between low and high, neither of them."""
    at = (low + (high or 4 * low)) // 2
    if points:
        (n, total), *before = sorted(points[-2:], reverse=True)
        at = int(n * limit / total)  # short of it if n fits, since a part of the total does not grow
        if before and total > before[0][1]:
            slope = (total - before[0][1]) / (n - before[0][0])
            at = int(n + (0.99 * limit - total) / slope)
    most = high - max(1, (high - low) // 8) if high else max(8 * low, 2)
    return min(max(at, low + 1), max(most, 1))
