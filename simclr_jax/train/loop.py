"""The loop around the step: feed, log, save, evaluate, stop. The mathematics is in step.py and methods/."""
import time
from typing import Callable

import jax
import numpy as np

from simclr_jax import dist
from simclr_jax.errors import NumericsError, UsageError
from simclr_jax.life import REQUEUE, Life, agree, barrier, of_lead
from simclr_jax.train import digest
from simclr_jax.train.feed import Feed


def run(state, step_fn: Callable, batches, *, mesh, total: int, batch: int, rate: Callable, checkpoints, meta: dict,
        log, log_every: int, save_every: int, eval_every: int = 0, evaluate: Callable | None = None, best: str = "",
        problems: Callable = list, at_bounds: Callable | None = None, collapse: Callable | None = None,
        profile: dict | None = None, workdir=None, life: Life | None = None, check_every: int = 0, stop_after: int = 0,
        dump: Callable | None = None):
    """Trains from `state.step` to `total` and returns the last state.

    Args:
      step_fn: (state, batch) -> (state, metrics); batches: iterator of host batches, the first that of `state.step`.
      batch: global batch, for images/s; rate: step -> learning rate, for the log.
      checkpoints: `train.checkpoint.Checkpoints`; meta: what is saved beside every state.
      evaluate: state -> {name: float}, called every `eval_every` steps and at the end, with the state saved; best: the
        name by which the best checkpoint is kept.
      problems: () -> [str], lines about examples that were skipped so far.
      at_bounds: params -> [str], what sits at a bound; each line is said once.
      collapse: (step, numbers) -> (text for the log's line, [warnings]), of what is logged and of what is evaluated.
      profile: {"start", "steps"}: which steps to trace into workdir/profile.
      life: of this process; check_every: steps between comparisons of all devices' parameters, 0: only at the start.
      stop_after: as `guard.Rule.stop` of the step; dump: (state, batch, step) -> where it wrote the step for a replay.

    Raises:
      NumericsError: so many steps in a row were not finite, or devices hold different parameters.
      DataError: a batch could not be made. CheckpointError: a state could not be written.
      SystemExit: a signal asked to stop; the state is saved.
    """
    life = life or Life()

    def score(step, state):
        life.at("eval", step)
        try:
            scores = {f"eval/{k}": v for k, v in evaluate(state).items()}
        except UsageError as e:  # an evaluation that cannot be made is no reason to lose a run
            return log.say(f"step {step}: not evaluated: {e}")
        log.write(step, scores)
        log.say(f"step {step}: " + "  ".join(f"{k} {v:.4f}" for k, v in scores.items()))
        warn(step, scores)
        if f"eval/{best}" in scores:
            checkpoints.save_best(step, state, {**meta, "best_of": best}, scores[f"eval/{best}"])

    def save(step, state, wait):
        life.at("together", step)
        barrier(f"the save of step {step}")
        life.at("save", step)
        checkpoints.save(step, state, meta, wait=wait)

    def leave(step, state):
        save(step, state, wait=True)
        log.say(f"stopped at step {step}, saved; the same command goes on from there")
        raise SystemExit(REQUEUE)

    def warn(step, numbers):
        text, lines = collapse(step, numbers) if collapse else ("", ())
        for line in lines:
            log.say(f"warning: {line}")
        return text

    def due(step):
        return evaluate is not None and step > 0 and (step % eval_every == 0 or step == total)

    def place(rows):
        if not shapes:  # before any device waits for rows that another process does not have
            shapes.append(str({k: np.shape(v) for k, v in sorted(rows.items())}))
            agree(shapes[0], "the shape of a process's batch")
        return dist.place_batch(rows, mesh)

    def look(step, rows, metrics):
        """What the guard decided of the latest step that is through."""
        if metrics["in_a_row"] > 0:
            _skipped(log, step, rows, metrics)
        if stop_after and metrics["in_a_row"] >= stop_after:
            raise _Bad(step, rows, metrics)

    step, reported, warned, shapes = int(state.step), 0, set(), []
    if due(step) and not of_lead(int(log.has(step, "eval/")), "whether step was evaluated"):
        score(step, state)  # a run that was stopped here has saved, but not scored
    if step >= total:
        return state
    clock, tracer = _Clock(batch, total, step), _Tracer(profile or {"start": 0, "steps": 0}, workdir)
    feed = Feed(batches, place)
    try:
        before, seen = None, step  # (step, batch, metrics) of the step before; the last step that was looked at
        same = digest.Same(state, mesh)
        if odd := same(state):
            raise UsageError(f"before the first step: {odd}; start all processes with the same command")
        life.begin(step)
        while step < total:
            life.at("data", step)
            placed = feed.next(lambda: life.stops(step))
            if placed is None or not life.goes(step):
                leave(step, state)
            tracer.before(step)
            life.at("step" if before else "compile", step + 1)
            with jax.profiler.StepTraceAnnotation("train", step_num=step):
                state, metrics = step_fn(state, placed)
            metrics["in_a_row"].copy_to_host_async()
            step += 1
            earlier, before = before, (step, placed, metrics)
            jax.block_until_ready((earlier or before)[2])  # two steps in flight at most
            if earlier is None:
                clock.compiled(step, feed.waited)
            elif earlier[0] > seen:
                look(*earlier)
            tracer.after(step, metrics)
            log.tick(step)
            last, stopping = step == total, life.stops(step)
            saves = step % save_every == 0 or last or stopping or due(step)
            if step % log_every == 0 or saves:
                look(*before)
                seen = step
                numbers = {f"train/{k}": float(v) for k, v in metrics.items()}
                numbers |= {"train/lr": float(rate(step - 1)), **clock.lap(step, feed.waited)}
                log.write(step, numbers)
                log.progress(step, _line(numbers, clock.eta(step), warn(step, numbers)))
                reported = _report(problems(), reported)
                for line in set(at_bounds(state.params) if at_bounds else ()) - warned:
                    warned.add(line)
                    log.say(f"warning: step {step}: {line}")
            if check_every and step % check_every == 0 and (odd := same(state)):
                raise NumericsError(f"step {step}: {odd}; a device or its memory is faulty; the same command goes on "
                                    "from the last checkpoint")
            if stopping and not last:
                leave(step, state)
            if saves:
                save(step, state, wait=last or due(step))
            if due(step):
                score(step, state)
                clock.skip()
    except _Bad as bad:
        raise NumericsError(_give_up(bad, state, checkpoints, meta, stop_after, dump, life)) from None
    except jax.errors.JaxRuntimeError as e:
        if "RESOURCE_EXHAUSTED" not in str(e):
            raise
        raise UsageError(_no_room(str(e), batch, mesh)) from None
    finally:
        life.at("end", step)
        _report(problems(), reported)
        feed.close()
        tracer.close()
    return state


def _no_room(text, batch, mesh):
    """What to do about a step that does not fit: needed, there, and what makes it fit."""
    stats = mesh.local_devices[0].memory_stats() or {}
    limit = f", of {stats['bytes_limit'] / 2**30:.1f} GiB a device" if "bytes_limit" in stats else ""
    return (f"out of memory: a step of {batch} rows on {mesh.size} device(s) does not fit "
            f"({' '.join(text.split())[:160]}){limit}; set config.microbatches to 2 or more (the gradient stays exact), "
            "or take a smaller config.batch or more devices")


class _Bad(Exception):
    """(step, batch, metrics) of the last of too many skipped steps."""


def _skipped(log, step, rows, metrics):
    """Says which step was not taken, and on what examples."""
    from jax.experimental import multihost_utils
    ids = np.asarray(multihost_utils.process_allgather(rows["id"], tiled=True)).tolist()
    found = {k: float(metrics[k]) for k in ("loss", "grad_norm", "update_norm", "skipped", "in_a_row")}
    log.skipped(step, found, ids)
    log.say(f"step {step}: skipped: loss {found['loss']:.4g}, gradient norm {found['grad_norm']:.4g}; "
            f"{found['in_a_row']:.0f} in a row, {found['skipped']:.0f} in all; "
            f"examples {', '.join(str(i) for i, _ in ids[:8])}{', ...' if len(ids) > 8 else ''} (all: skipped.jsonl)")


def _give_up(bad, state, checkpoints, meta, stop_after, dump, life):
    """Saves the state, which is that of the last step taken, and the batch; returns what to say."""
    step, rows, metrics = bad.args
    now = int(state.step)
    life.at("save", now)
    state = state.replace(guard=state.guard._replace(in_a_row=state.guard.in_a_row * 0))
    newest = max(checkpoints.steps(), default=-1)
    if newest < step - stop_after:  # else nothing was taken since
        checkpoints.save(now, state, meta, wait=True)
        newest = now
    where = f"python -m simclr_jax.train --replay={dump(state, rows, step)} runs the last of them again" if dump else ""
    return (f"{stop_after} steps in a row were skipped, to step {step}: loss {float(metrics['loss']):.4g}, gradient "
            f"norm {float(metrics['grad_norm']):.4g}; checkpoint {newest} holds the last state; {where}; try a lower "
            "config.optim.lr or a longer config.optim.warmup_epochs, or another config.guard")


def _report(lines, reported):
    """Prints, on whichever process met them, the examples that were skipped since the last time."""
    for i, line in enumerate(lines[reported:], reported + 1):
        print(f"skipped example {i}: {line}", flush=True)
    return len(lines)


def _line(n, eta, health):
    health = health and f"  {health}"
    extra = f"  accuracy {n['train/accuracy']:.3f}" if "train/accuracy" in n else ""
    return (f"loss {n['train/loss']:.4f}{extra}{health}  lr {n['train/lr']:.4g}  {n['images_per_s']:.0f} images/s"
            f"  waiting for data {n['data_wait']:.0%}  ETA {eta}")


class _Clock:
    """Rates between log lines. The first step, which compiles, counts for none of them."""

    def __init__(self, batch, total, step):
        self.batch, self.total = batch, total
        self.step, self.time, self.waited = step, time.perf_counter(), 0.0
        self.seconds_a_step = None

    def compiled(self, step, waited):
        """To be called when the first step is through."""
        self.step, self.time, self.waited = step, time.perf_counter(), waited

    def lap(self, step, waited):
        now = time.perf_counter()
        seconds, steps = now - self.time, step - self.step
        wait = min((waited - self.waited) / max(seconds, 1e-9), 1.0)
        self.step, self.time, self.waited = step, now, waited
        if steps:
            self.seconds_a_step = seconds / steps
        return {"images_per_s": steps * self.batch / max(seconds, 1e-9), "data_wait": wait}

    def skip(self):
        """Leaves what has passed since the last lap (an evaluation) out of the next."""
        self.time = time.perf_counter()

    def eta(self, step):
        seconds = int((self.total - step) * (self.seconds_a_step or 0))
        return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"


class _Tracer:
    """Traces steps [start, start + steps) for XProf or TensorBoard's profile tab."""

    def __init__(self, profile, workdir):
        self.first, self.end = profile["start"], profile["start"] + profile["steps"]
        self.directory, self.running = str(workdir) + "/profile", False

    def before(self, step):
        if not self.running and self.first <= step < self.end:
            jax.profiler.start_trace(self.directory)
            self.running = True

    def after(self, step, metrics):
        if self.running and step >= self.end:
            jax.block_until_ready(metrics)
            self.close()

    def close(self):
        if self.running:
            jax.profiler.stop_trace()
            self.running = False
