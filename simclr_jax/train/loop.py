"""The loop around the step: feed, log, save, evaluate, stop. The mathematics is in step.py and methods/."""
import time
from typing import Callable

import jax
import numpy as np

from simclr_jax import dist
from simclr_jax.errors import UsageError
from simclr_jax.train.feed import Feed
from simclr_jax.train.stop import Stop


def run(state, step_fn: Callable, batches, *, mesh, total: int, batch: int, rate: Callable, checkpoints, meta: dict,
        log, log_every: int, save_every: int, eval_every: int = 0, evaluate: Callable | None = None, best: str = "",
        problems: Callable = list, at_bounds: Callable | None = None, guard: Callable | None = None,
        profile: dict | None = None, workdir=None):
    """Trains from `state.step` to `total` and returns the last state.

    Args:
      step_fn: (state, batch) -> (state, metrics); batches: iterator of host batches, the first that of `state.step`.
      batch: global batch, for images/s; rate: step -> learning rate, for the log.
      checkpoints: `train.checkpoint.Checkpoints`; meta: what is saved beside every state.
      evaluate: state -> {name: float}, called every `eval_every` steps and at the end; best: the name by which the best
        checkpoint is kept.
      problems: () -> [str], lines about examples that were skipped so far.
      at_bounds: params -> [str], what sits at a bound; each line is said once.
      guard: (step, numbers) -> (text for the log's line, [warnings]), of what is logged and of what is evaluated.
      profile: {"start", "steps"}: which steps to trace into workdir/profile.

    Raises:
      UsageError: the loss is not finite (nothing of it is saved), or a batch could not be made.
      SystemExit: a signal asked to stop; the state is saved.
    """
    def score(step, state):
        try:
            scores = {f"eval/{k}": v for k, v in evaluate(state).items()}
        except UsageError as e:  # an evaluation that cannot be made is no reason to lose a run
            return log.say(f"step {step}: not evaluated: {e}")
        log.write(step, scores)
        log.say(f"step {step}: " + "  ".join(f"{k} {v:.4f}" for k, v in scores.items()))
        warn(step, scores)
        if f"eval/{best}" in scores:
            checkpoints.save_best(step, state, {**meta, "best_of": best}, scores[f"eval/{best}"])

    def warn(step, numbers):
        text, lines = guard(step, numbers) if guard else ("", ())
        for line in lines:
            log.say(f"warning: {line}")
        return text

    def due(step):
        return evaluate is not None and step > 0 and (step % eval_every == 0 or step == total)

    step, reported, warned = int(state.step), 0, set()
    if due(step) and not log.has(step, "eval/"):
        score(step, state)  # a run that was stopped here has saved, but not scored
    if step >= total:
        return state
    clock, tracer = _Clock(batch, total, step), _Tracer(profile or {"start": 0, "steps": 0}, workdir)
    with Stop() as stop:
        feed = Feed(batches, lambda b: dist.place_batch(b, mesh))
        try:
            metrics = None
            while step < total:
                placed = next(feed)
                tracer.before(step)
                with jax.profiler.StepTraceAnnotation("train", step_num=step):
                    previous, (state, metrics) = metrics, step_fn(state, placed)
                step += 1
                jax.block_until_ready(metrics if previous is None else previous)  # two steps in flight at most
                if previous is None:
                    clock.compiled(step, feed.waited)
                tracer.after(step, metrics)
                log.tick(step)
                last, stopping = step == total, stop.reached(step)
                save = step % save_every == 0 or last or stopping
                if step % log_every == 0 or save or due(step):
                    numbers = {f"train/{k}": float(v) for k, v in metrics.items()}
                    if not np.isfinite([numbers["train/loss"], numbers["train/update_norm"]]).all():
                        raise UsageError(_not_finite(step, numbers, checkpoints.steps()))
                    numbers |= {"train/lr": float(rate(step - 1)), **clock.lap(step, feed.waited)}
                    log.write(step, numbers)
                    log.progress(step, _line(numbers, clock.eta(step), warn(step, numbers)))
                    reported = _report(problems(), reported)
                    for line in set(at_bounds(state.params) if at_bounds else ()) - warned:
                        warned.add(line)
                        log.say(f"warning: step {step}: {line}")
                if save:
                    checkpoints.save(step, state, meta, wait=last or stopping)
                if due(step) and not stopping:
                    score(step, state)
                    clock.skip()
                if stopping and not last:
                    log.say(f"stopped at step {step}, saved; the same command goes on from there")
                    raise SystemExit(Stop.EXIT_CODE)
        finally:
            _report(problems(), reported)
            feed.close()
            tracer.close()
    return state


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


def _not_finite(step, numbers, steps):
    return (f"step {step}: loss {numbers['train/loss']}, update norm {numbers['train/update_norm']}: not finite, stopped "
            f"unsaved; last good checkpoint: {steps[-1] if steps else 'none'}; try a lower config.optim.lr or a longer "
            "config.optim.warmup_epochs")


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
