"""Fine-tuning of a run's net, or a published one, on the labelled split of a config. Composition, for the commands."""
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from simclr_jax import augment, build, data, dist, embed
from simclr_jax.errors import UsageError
from simclr_jax.evals import draws as drawing
from simclr_jax.evals import finetune, score
from simclr_jax.train import guard, rules
from simclr_jax.train.feed import Feed
from simclr_jax.types import TrainState

SAY = 60.0  # seconds between lines of progress


class Weights(NamedTuple):
    """Where a net starts: trees of arrays."""

    params: Any
    stats: Any


def role(nets) -> str:
    """The role of the net that looks at images, of a mapping by role."""
    return "backbone" if "backbone" in nets else "image"


def start(config, method, params, extra) -> Weights:
    """What a state's `embed` runs on images, in host memory."""
    which = role(config.nets)
    params, stats = method.weights(params, extra)
    return Weights(*jax.tree.map(np.asarray, (params[which], stats[which])))


def run(config, kinds: dict[str, Weights], counts, *, step: int, draws: int, seed: int, lr: float = 0.0,
        epochs: float = 0.0, batch: int = 0) -> list[dict]:
    """Fine-tunes the net on images from each of `kinds` at each number of labels; tests each once, at its end.

    Args:
      counts: as of `evals.draws.rows`; lr, epochs, batch: as of `evals.finetune.plan`.
      draws, seed: as of `score.score`, whose draws are the same; the seed is also that of the order of examples and of
        their crops.

    Returns:
      Records as of `score.score`, with epochs, steps, batch, optimiser and lr (at its peak).

    Raises:
      UsageError: a split without labels or with one class, or training that diverges.
    """
    devices = jax.local_devices()
    mesh = dist.make_mesh({dist.DATA: len(devices)}, devices)
    source = build.source(config, config.evals.train)
    y = data.labels(source)
    if len(y) == 0 or y.min(initial=0) < 0 or len(np.unique(y)) < 2:
        raise UsageError(f"finetune: {source.describe}: {int(np.sum(y < 0))} of {len(y)} examples without a label, "
                         f"{len(np.unique(y[y >= 0]))} classes; wanted a labelled split of 2 classes or more")
    net = build.nets(config, axis=dist.rows_axis(mesh))[role(config.nets)]
    method = finetune.method(net, classes=int(y.max()) + 1)
    fit, _ = drawing.holdout(y, seed=seed)
    views = augment.light(config.augment.views, config.augment.eval)
    records = []
    for labels in counts:
        drawn = drawing.rows(y, fit, labels, draws=draws, seed=seed)
        share = len(drawn[0]) / len(y)
        names = [name for name, _ in rules.named(next(iter(kinds.values())).params)]
        plan = finetune.plan(names, len(drawn[0]), share, multiple=len(devices), lr=lr, epochs=epochs, batch=batch)
        job = _Job(_derived(config, plan, views, seed), plan, mesh, method, source, drawn[0])
        for kind, weights in kinds.items():
            began, right = time.perf_counter(), []
            for chosen in drawn:
                state, metrics = job.train(weights, chosen)
                logits, test_y, _ = embed.features(config, *build.embedder(method, state.params, state.extra),
                                                   split=config.evals.test)
                right.append(logits.argmax(axis=1) == test_y)
            records.append(score.record(
                "finetune", kind, labels, right, test_y, step=step, n_train=len(drawn[0]), share=share,
                epochs=plan.steps * plan.batch / len(drawn[0]), steps=plan.steps, batch=plan.batch,
                optimiser=plan.optim["name"], lr=job.peak))
            print(f"fine-tuned {kind}, {len(drawn[0])} labels: {len(drawn)} x {plan.steps} steps of {plan.batch}, "
                  f"loss {metrics['loss']:.3f} at the end, {time.perf_counter() - began:.0f} s", flush=True)
    return records


def _derived(config, plan, views, seed):
    """The config of the fine-tuning, as one of a training run."""
    made = config.copy_and_resolve_references().unlock()
    made.seed, made.batch, made.steps, made.microbatches = seed, plan.batch, plan.steps, 1
    made.optim, made.text = ConfigDict(plan.optim), ConfigDict()
    made.augment.views, made.augment.mask = views, ConfigDict()
    return made


class _Job:
    """One compiled step, which serves every draw of a number of labels and every kind of weights."""

    def __init__(self, config, plan, mesh, method, source, rows):
        self._config, self._plan, self._mesh, self._source = config, plan, mesh, source
        self._recipe = augment.build(config.augment.views)
        optimiser = build.optimiser(config, len(rows))
        self._tx, self._method = optimiser.tx, method
        self.peak = float(max(optimiser.rate(i) for i in (0, plan.optim.get("warmup_steps", 0))))
        made = build.step(config, mesh, method, self._tx, self._recipe, data.as_read(self._drawn(rows)))
        try:
            self._step, self._shapes = build.compiled(made.trace()), made.shapes().params
        except build.DoesNotFit:
            raise UsageError(f"fine-tuning at {plan.batch} images a step does not fit into a device's memory; take a "
                             "smaller --finetune_batch") from None

    def _drawn(self, rows):
        """The labelled examples, as often as it takes to fill a batch."""
        return data.subset(self._source, np.tile(rows, -(-self._plan.batch // len(rows))))

    def train(self, weights: Weights, rows):
        """(the state after all steps, its metrics) from `weights`, on the training examples `rows`."""
        classifier = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), self._shapes["classifier"])
        params = {"backbone": weights.params, "classifier": classifier}
        extra = {"stats": {"backbone": weights.stats}}
        state = TrainState(jnp.int32(0), params, self._tx.init(params), extra, guard.new())
        # Copies: the step writes into what it is given.
        state = jax.device_put(state, dist.replicated(self._mesh), may_alias=False)
        batches = build.feed(self._config, self._drawn(rows), self._recipe)
        feed = Feed(batches, lambda batch: dist.place_batch(batch, self._mesh))
        try:
            metrics, said = None, time.perf_counter()
            for i in range(self._plan.steps):
                placed, before = feed.next(), metrics
                state, metrics = self._step(state, placed)
                jax.block_until_ready(before)  # two steps in flight at most
                if time.perf_counter() > said + SAY:
                    said = time.perf_counter()
                    print(f"fine-tuning on {len(rows)} labels: step {i + 1} of {self._plan.steps}", flush=True)
        finally:
            feed.close()
        metrics = jax.device_get(metrics)
        if metrics["skipped"] or not np.isfinite(metrics["loss"]):
            raise UsageError(f"fine-tuning diverged: {int(metrics['skipped'])} of {self._plan.steps} steps were not "
                             f"finite or a hundred times too long, at a rate of {self.peak:g}; take a lower "
                             "--finetune_lr")
        return state, metrics
