"""Time and memory of the losses on a CPU, forward and backward, beside the dense forms and other libraries.

    python benchmarks/losses.py --rows 1024 8192 --torch-python ~/torch/bin/python
    python benchmarks/losses.py --grow     # peak memory over the number of rows
    python benchmarks/losses.py --large    # one step of 65,536 rows or pairs

Every measurement is a fresh process; contestants take turns, so that a machine which slows down slows all of them.
Rows are those of both views for nt_xent (half as many examples), pairs for clip and siglip. Gradients go to all inputs,
to scale and to bias. Memory is the peak of the first step above what the process held before: with gradients, without
inputs; blank where the system does not tell.
"""
import argparse
import functools
import json
import math
import os
import statistics
import subprocess
import sys
import time

import numpy as np

DIM = {"nt_xent": 128, "clip": 512, "siglip": 512}
TEMPERATURE, SCALE, BIAS = 0.1, 10.0, -10.0
MODULES = {"open_clip": "open_clip.loss", "lightly": "lightly.loss"}  # contestants that need torch
OPTAX_BYTES = 2 ** 31  # optax.losses.ntxent holds rows x rows x D numbers: larger ones are left out
SECONDS = 4.0  # of repeated steps in a process


def main():
    flags = _flags()
    losses = flags.only or list(DIM)
    if flags.large:
        _print_ours(losses, flags.rows or [65536], flags.dim)
    elif flags.grow:
        _print_ours(losses, flags.rows or [4096, 8192, 16384, 32768], flags.dim)
    else:
        _compare(losses, flags.rows or [1024, 8192], flags.dim, flags.rounds, flags.torch_python)


def _flags():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--rows", type=int, nargs="+", help="default 1024 8192")
    p.add_argument("--dim", type=int, help=f"default {DIM}")
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--only", nargs="+", choices=DIM)
    p.add_argument("--torch-python", default=sys.executable, help="an interpreter with torch and open_clip or lightly")
    p.add_argument("--grow", action="store_true", help="ours alone, one step at each of several sizes")
    p.add_argument("--large", action="store_true", help="ours alone, one step of 65,536 rows or pairs")
    return p.parse_args()


# The process that asks: starts the others and prints.


def _compare(losses, sizes, dim, rounds, torch_python):
    print("| loss | rows | D | contestant | ms | / ours | peak memory, MiB | / ours |")
    print("|---|---|---|---|---|---|---|---|")
    versions = set()
    for loss in losses:
        d = dim or DIM[loss]
        for rows in sizes:
            names = [name for name in CONTESTANTS[loss] if _takes_part(name, rows, d, torch_python)]
            results = {name: [] for name in names}
            for _ in range(rounds):
                for name in names:
                    results[name].append(_measure(loss, name, rows, d, SECONDS, torch_python))
            _agree(loss, rows, results)
            middle = {name: {k: _median(r[k] for r in runs) for k in ("ms", "mib")} for name, runs in results.items()}
            for name, m in middle.items():
                cells = [loss, f"{rows:,}", str(d), name]
                for k, form in ("ms", ",.1f"), ("mib", ",.0f"):
                    cells += _with_ratio(m[k], middle["ours"][k], form)
                print("| " + " | ".join(cells) + " |", flush=True)
                versions |= set(results[name][0]["versions"])
    print(f"\n{', '.join(sorted(versions))}; {os.cpu_count()} cores; medians of {rounds} processes each.")


def _print_ours(losses, sizes, dim):
    print("| loss | rows | D | seconds | peak memory, MiB | bytes a row |\n|---|---|---|---|---|---|")
    for loss in losses:
        for rows in sizes:
            d = dim or DIM[loss]
            m = _measure(loss, "ours", rows, d, 0, sys.executable)
            memory = ["", ""] if m["mib"] is None else [f"{m['mib']:,.0f}", f"{m['mib'] * 2 ** 20 / rows:,.0f}"]
            print("| " + " | ".join([loss, f"{rows:,}", str(d), f"{m['ms'] / 1000:.2f}", *memory]) + " |", flush=True)


def _takes_part(name, rows, dim, torch_python):
    if name == "optax":
        return rows * rows * dim * 4 <= OPTAX_BYTES
    return name not in MODULES or _imports(torch_python, MODULES[name])


@functools.cache
def _imports(python, module):
    done = subprocess.run([python, "-c", f"import {module}"], stderr=subprocess.PIPE, text=True)
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1]
        print(f"{module} left out (see --torch-python): {python} says {reason}", file=sys.stderr)
    return done.returncode == 0


def _measure(loss, name, rows, dim, seconds, torch_python):
    python = torch_python if name in MODULES else sys.executable
    done = subprocess.run([python, __file__, "--worker", loss, name, str(rows), str(dim), str(seconds)],
                          stdout=subprocess.PIPE, text=True)
    if done.returncode:  # such as -9, for want of memory
        sys.exit(f"error: {loss} by {name} at {rows} rows ended with code {done.returncode}; try fewer --rows")
    return json.loads(done.stdout.splitlines()[-1])


def _with_ratio(value, ours, form):
    return ["", ""] if value is None else [format(value, form), f"{value / ours:.2f}" if ours else ""]


def _median(values):
    values = list(values)
    return None if None in values else statistics.median(values)


def _agree(loss, rows, results):
    """Contestants that do not compute the same are not compared."""
    ours = results["ours"][0]
    for name, runs in results.items():
        for k in ("value", "gradient"):
            if not math.isclose(runs[0][k], ours[k], rel_tol=1e-3):
                sys.exit(f"error: {loss}, {rows} rows: {k} of {name} is {runs[0][k]}, of ours {ours[k]}")


# The process that measures one contestant.


def _work(loss, name, rows, dim, seconds):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((rows // 2 if loss == "nt_xent" else rows, dim), dtype=np.float32)
    y = (x + rng.standard_normal(x.shape, dtype=np.float32)) / 2
    if loss != "nt_xent":  # not every contestant makes rows unit length
        x, y = (z / np.linalg.norm(z, axis=1, keepdims=True) for z in (x, y))
    parameters = {"nt_xent": [], "clip": [math.log(SCALE)], "siglip": [math.log(SCALE), BIAS]}[loss]
    step, versions = CONTESTANTS[loss][name](x, y, *parameters)
    before = _reset_peak()
    times = [_timed(step)]
    peak = None if before is None else _status("VmHWM") - before
    if seconds:  # the first step also finds its memory
        times, stop = [], time.perf_counter() + seconds
        while len(times) < 3 or len(times) < 30 and time.perf_counter() < stop:
            times.append(_timed(step))
    value, gradient = step()
    print(json.dumps({"ms": 1000 * statistics.median(times), "mib": peak, "value": float(value), "versions": versions,
                      "gradient": float(np.linalg.norm(np.asarray(gradient, np.float64)))}))


def _timed(step):
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def _reset_peak():
    """Sets the peak of the resident memory back to what it is now, in MiB; None on systems that cannot."""
    try:
        with open("/proc/self/clear_refs", "w") as f:
            f.write("5")
    except OSError:
        return None
    return _status("VmRSS")


def _status(key):
    with open("/proc/self/status") as f:
        return next(int(line.split()[1]) for line in f if line.startswith(key + ":")) / 1024


# Contestants: (x, y, parameters) -> (step, versions); step() waits and gives the loss and the gradient of x.


def _jax(make):
    """A contestant from make() -> f(x, y, *parameters), compiled beforehand."""
    def contestant(*arrays):
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
        import jax
        arrays = [jax.numpy.asarray(a) for a in arrays]
        step = jax.jit(jax.value_and_grad(make(), argnums=tuple(range(len(arrays))))).lower(*arrays).compile()

        def run():
            value, gradients = jax.block_until_ready(step(*arrays))
            return value, gradients[0]
        return run, [f"jax {jax.__version__}"]
    return contestant


def _torch(make):
    """A contestant from make() -> f(x, y, *parameters), by torch."""
    def contestant(*arrays):
        import torch
        arrays = [torch.tensor(a, requires_grad=True) for a in arrays]
        f = make()

        def run():
            for a in arrays:
                a.grad = None
            value = f(*arrays)
            value.backward()
            return value.detach(), arrays[0].grad
        return run, [f"torch {torch.__version__}"]
    return contestant


def _ours_nt_xent():
    from simclr_jax.losses.nt_xent import nt_xent
    return lambda x, y: nt_xent(x, y, temperature=TEMPERATURE)


def _ours_clip():
    import jax.numpy as jnp
    from simclr_jax.losses.clip import clip
    return lambda x, y, t: clip(x, y, scale=jnp.exp(t), normalize=False)


def _ours_siglip():
    import jax.numpy as jnp
    from simclr_jax.losses.siglip import siglip
    return lambda x, y, t, bias: siglip(x, y, scale=jnp.exp(t), bias=bias, normalize=False)


def _dense_nt_xent():
    import jax
    import jax.numpy as jnp

    def f(x, y):
        a, b = (z / jnp.linalg.norm(z, axis=1, keepdims=True) for z in (x, y))
        own = 1e9 * jnp.eye(len(a))
        aa, bb = a @ a.T / TEMPERATURE - own, b @ b.T / TEMPERATURE - own
        ab, ba = a @ b.T / TEMPERATURE, b @ a.T / TEMPERATURE
        of_a, of_b = (jax.nn.log_softmax(jnp.concatenate(s, axis=1)) for s in ((ab, aa), (ba, bb)))
        return -(jnp.trace(of_a) + jnp.trace(of_b)) / (2 * len(a))
    return f


def _dense_clip():
    import jax
    import jax.numpy as jnp

    def f(x, y, t):
        s = jnp.exp(t) * x @ y.T
        return -(jnp.trace(jax.nn.log_softmax(s, axis=1)) + jnp.trace(jax.nn.log_softmax(s, axis=0))) / (2 * len(x))
    return f


def _dense_siglip():
    import jax
    import jax.numpy as jnp

    def f(x, y, t, bias):
        s = jnp.exp(t) * x @ y.T + bias
        return -jnp.sum(jax.nn.log_sigmoid((2 * jnp.eye(len(x)) - 1) * s)) / len(x)
    return f


def _optax_nt_xent():
    import jax.numpy as jnp
    import optax
    return lambda x, y: optax.losses.ntxent(jnp.concatenate([x, y]), jnp.tile(jnp.arange(len(x)), 2), TEMPERATURE)


def _lightly_nt_xent():
    from lightly.loss import NTXentLoss
    return NTXentLoss(temperature=TEMPERATURE)


def _open_clip_clip():
    from open_clip.loss import ClipLoss
    loss = ClipLoss()
    return lambda x, y, t: loss(x, y, t.exp())


def _open_clip_siglip():
    from open_clip.loss import SigLipLoss
    loss = SigLipLoss()
    return lambda x, y, t, bias: loss(x, y, t.exp(), bias)


CONTESTANTS = {
    "nt_xent": {"ours": _jax(_ours_nt_xent), "dense JAX": _jax(_dense_nt_xent), "optax": _jax(_optax_nt_xent),
                "lightly": _torch(_lightly_nt_xent)},
    "clip": {"ours": _jax(_ours_clip), "dense JAX": _jax(_dense_clip), "open_clip": _torch(_open_clip_clip)},
    "siglip": {"ours": _jax(_ours_siglip), "dense JAX": _jax(_dense_siglip), "open_clip": _torch(_open_clip_siglip)},
}


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        loss, name, rows, dim, seconds = sys.argv[2:]
        _work(loss, name, int(rows), int(dim), float(seconds))
    else:
        main()
