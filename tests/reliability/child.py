"""A process of a training run with something wrong in it: `child.py FAULT [FLAG ...]`, the flags those of the command.

Faults are put into the real command from outside, so that what is tested is what users run. FAULT is "none", or names
below with commas between them, with ":process" for what befalls one process only.
"""
import itertools
import os
import signal
import sys
import time
import types

import numpy as np


def light_digits():
    """scikit-learn takes longer to import than a small run to end; noise of the digits' shape does here."""
    rng = np.random.default_rng(0)
    images, target = rng.integers(0, 17, (1797, 8, 8)).astype(float), rng.integers(0, 10, 1797)

    def split(rows, *, test_size, **_):
        n = test_size if test_size > 1 else int(len(rows) * test_size)
        return rows[n:], rows[:n]
    digits = types.SimpleNamespace(images=images, target=target)
    fakes = {"sklearn": {}, "sklearn.datasets": {"load_digits": lambda: digits},
             "sklearn.model_selection": {"train_test_split": split}}
    for name, content in fakes.items():
        sys.modules[name] = types.ModuleType(name)
        vars(sys.modules[name]).update(content)


def notes_ids():
    """Each process writes down which examples its steps are made of."""
    from simclr_jax import build
    feed = build.feed
    out = next(a.split("=", 1)[1] for a in sys.argv if a.startswith("--workdir="))
    own = next((a.split("=")[1] for a in sys.argv if a.startswith("--process=")), "0")

    def noted(*args, start_step=0, **kwargs):
        with open(f"{out}.ids-{own}", "a") as f:
            for i, rows in enumerate(feed(*args, start_step=start_step, **kwargs)):
                print(start_step + i, *rows["id"][:, 0].tolist(), file=f, flush=True)
                yield rows
    build.feed = noted


def sleeping_loader():
    """Alive, but its reader does not come back."""
    from simclr_jax import build
    feed = build.feed

    def slow(*args, **kwargs):
        for i, rows in enumerate(feed(*args, **kwargs)):
            if i == 5:
                time.sleep(600)
            yield rows
    build.feed = slow


def slow_loader():
    """Every batch takes a while, so that a step is mostly a wait for data."""
    from simclr_jax import build
    feed = build.feed

    def slow(*args, **kwargs):
        for rows in feed(*args, **kwargs):
            time.sleep(2)
            yield rows
    build.feed = slow


def failing_loader():
    from simclr_jax import build
    feed = build.feed

    def fails(*args, **kwargs):
        for i, rows in enumerate(feed(*args, **kwargs)):
            if i == 5:
                raise OSError(5, "Input/output error", "disk")
            yield rows
    build.feed = fails


def ending_loader():
    from simclr_jax import build
    feed = build.feed
    build.feed = lambda *args, **kwargs: itertools.islice(feed(*args, **kwargs), 5)


def short_batch():
    """Fewer rows than the others have."""
    from simclr_jax import build
    feed = build.feed
    build.feed = lambda *args, **kwargs: ({k: v[:-2] for k, v in rows.items()} for rows in feed(*args, **kwargs))


def other_seed():
    """Parameters drawn from a seed of this process's own, as when a global random state is used."""
    from simclr_jax.train import __main__ as command
    init = command.init_state
    command.init_state = lambda *args, seed, **kwargs: init(*args, seed=seed + 1, **kwargs)


def drifting():
    """A device's memory goes wrong in the middle of the run: this process's parameters move by a bit."""
    import jax
    from simclr_jax.train import __main__ as command
    make = command.build.compiled

    def moved(x):
        value = np.nextafter(np.asarray(x.addressable_data(0)), np.float32(9))
        return jax.make_array_from_single_device_arrays(x.shape, x.sharding, [
            jax.device_put(value, s.device) for s in x.addressable_shards])

    def made(*args, **kwargs):
        step_fn, count = make(*args, **kwargs), [0]

        def step(state, batch):
            state, metrics = step_fn(state, batch)
            count[0] += 1
            if count[0] == 3:
                state = state.replace(params=jax.tree.map(moved, state.params))
            return state, metrics
        return step
    command.build.compiled = made


def slow_step():
    """A tenth of a second more a step, so that signals come within the run."""
    from simclr_jax.train import __main__ as command
    make = command.build.compiled

    def made(*args, **kwargs):
        step_fn = make(*args, **kwargs)
        return lambda *given: (time.sleep(0.1), step_fn(*given))[1]
    command.build.compiled = made


def kills_itself():
    """As SIGKILL does, right after the step number in KILL_AT is under way, while a save may be."""
    from simclr_jax.train import __main__ as command
    make, at = command.build.compiled, int(os.environ["KILL_AT"])

    def made(*args, **kwargs):
        step_fn = make(*args, **kwargs)

        def step(state, batch):
            if not isinstance(state.step, jax.core.Tracer) and int(state.step) == at:
                os.kill(os.getpid(), signal.SIGKILL)
            return step_fn(state, batch)
        return step
    import jax
    command.build.compiled = made


def little_memory():
    """An address space in which a few GiB find no place, once all is imported."""
    import resource

    from simclr_jax.train import __main__ as command
    init = command.init_state

    def limited(*args, **kwargs):
        state = init(*args, **kwargs)
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 2**31, used + 2**31))
        return state
    command.init_state = limited


def stops_at_5():
    from simclr_jax.life import Life
    Life.stops = lambda self, step: step == 5


def slow_compile():
    import jax
    from simclr_jax.train import __main__ as command
    make = command.build.compiled

    def made(*args, **kwargs):
        step_fn, first = make(*args, **kwargs), [True]

        def step(*given):
            if first and not isinstance(given[0].step, jax.core.Tracer):  # which it is where shapes alone are asked for
                first.clear()
                print("compiling", flush=True)
                _in_c(600)
            return step_fn(*given)
        return step
    command.build.compiled = made


def _in_c(seconds):
    """Blocks the main thread where Python runs no signal handler, as XLA's compiler does."""
    import ctypes
    end = time.time() + seconds
    while time.time() < end:  # a signal cuts the C sleep short
        ctypes.CDLL(None).sleep(int(end - time.time()) + 1)


def slow_eval():
    from simclr_jax import watch
    watch.make = lambda *args, **kwargs: lambda state: (print("evaluating", flush=True), time.sleep(600), {})[2]


def only_one_saves():
    """The usual mistake, `if process_index == 0: save()`, as the others live it."""
    from simclr_jax.train.checkpoint import Checkpoints
    Checkpoints.save = lambda *args, **kwargs: None


def main(argv):
    light_digits()
    own = next((a.split("=")[1] for a in argv if a.startswith("--process=")), "0")
    for named in argv[1].split(","):
        fault, _, process = named.partition(":")
        if fault != "none" and process in ("", own):
            globals()[fault]()
    from simclr_jax.life import command
    from simclr_jax.train.__main__ import main as train
    sys.argv = ["train", *argv[2:]]
    command(train)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which shells have what they start in the background ignore
    os.environ["JAX_PLATFORMS"] = "cpu"
    main(sys.argv)
