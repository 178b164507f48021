"""Fine-tuning: a net and a new linear layer on it are trained on labelled examples, all of them together.

Chen et al. 2020, arXiv:2002.05709, appendix B.5 (SimCLR): SGD with Nesterov's momentum .9 at a rate of .05 * batch / 256,
random crops and flips, no weight decay and no warm-up, 60 epochs with 1% of the labels and 30 with 10%; 30 also with all of
them (Chen et al. 2020, arXiv:2006.10029, section 3). Transformers: AdamW at 1e-3 * batch / 256, decay .05, rates that fall
by .75 a layer, a twentieth of the run as warm-up (He et al. 2022, arXiv:2111.06377; facebookresearch/mae
main_finetune.py; without its mixing and erasing of images). Batch and least steps are ours, for small sets.
"""
import math
import re
from typing import Iterable, NamedTuple

import jax
import jax.numpy as jnp

from simclr_jax.errors import UsageError
from simclr_jax.types import Array, Method, Net, row_keys

FEW = 0.05  # share of the labels up to which there are twice as many epochs
LEAST = 300  # steps, however few examples: of 10 images an epoch is no measure
BLOCK = re.compile(r"(^|/)stack/block")  # of a transformer's parameters


def method(net: Net, *, classes: int) -> Method:
    """A net and a linear layer from its pooled vector to classes, as a `Method` with the cross-entropy for a loss.

    Batch: "views" f32[b,1,H,W,3], "label" i32[b] in [0, classes). `embed` gives {"image": f32[b,classes]}, the logits.

    params: {"backbone": the net's, "classifier": {"kernel": f32[D,classes], "bias": f32[classes]}}, the latter zeros at
    the start, as the gradient then moves it first; extra: {"stats": {"backbone"}}. Metrics: accuracy.
    """
    def init(key, batch):
        x = batch["views"][:, 0]
        params, stats = net.init(key, x)
        width = jax.eval_shape(lambda x: net.apply(params, stats, x, train=False)[0]["pooled"], x).shape[1]
        return {"backbone": params, "classifier": new(width, classes)}, {"stats": {"backbone": stats}}

    def forward(params, extra, batch, ctx):
        out, stats = net.apply(params["backbone"], extra["stats"]["backbone"], batch["views"][:, 0], train=True,
                               key=row_keys(ctx.key, batch))
        logits = _linear(params["classifier"], out["pooled"])
        return {"logits": logits, "label": batch["label"]}, {**extra, "stats": {"backbone": stats}}

    def criterion(params, extra, outputs, ctx):
        logits, label = outputs["logits"], outputs["label"]
        picked = jnp.take_along_axis(logits, label[:, None], axis=1)[:, 0]
        loss = jnp.mean(jax.nn.logsumexp(logits, axis=1) - picked)
        return loss, (extra, {"accuracy": jnp.mean(jnp.argmax(logits, axis=1) == label, dtype=jnp.float32)})

    def embed(params, extra, inputs):
        out, _ = net.apply(params["backbone"], extra["stats"]["backbone"], inputs["image"], train=False)
        return {"image": _linear(params["classifier"], out["pooled"])}

    return Method(init, forward, criterion, embed)


def new(width: int, classes: int) -> dict[str, Array]:
    """A classifier that says nothing yet."""
    return {"kernel": jnp.zeros((width, classes)), "bias": jnp.zeros(classes)}


def _linear(params, x):
    return jnp.matmul(x, params["kernel"], precision="highest") + params["bias"]


class Plan(NamedTuple):
    """How one net is fine-tuned."""

    batch: int
    steps: int
    optim: dict  # arguments of `train.optim.make`


def plan(parameters: Iterable[str], examples: int, share: float, *, multiple: int, lr: float = 0.0, epochs: float = 0.0,
         batch: int = 0) -> Plan:
    """The recipe for so many labelled examples, which are `share` of all there are.

    Args:
      parameters: the net's names, by which a transformer is known; multiple: of which the batch must be one.
      lr: per 256 rows of a batch, 0: the recipe's; epochs: 0: the recipe's, and at least `LEAST` steps; batch: 0: 64.

    Raises:
      UsageError: a value below 0.
    """
    if min(lr, epochs, batch) < 0 or not math.isfinite(lr + epochs):
        raise UsageError(f"--finetune_lr={lr:g} --finetune_epochs={epochs:g} --finetune_batch={batch}: wanted numbers "
                         "above 0, or 0 for the recipe's")
    rows = -(-(batch or 64) // multiple) * multiple
    steps = math.ceil((epochs or (60 if share <= FEW else 30)) * examples / rows)
    steps = max(steps, 1 if epochs else LEAST)
    if any(BLOCK.search(name) for name in parameters):
        optim = dict(name="adamw", lr=lr or 1e-3, layer_decay=0.75, weight_decay=0.05, warmup_steps=max(steps // 20, 1))
    else:
        optim = dict(name="sgd", lr=lr or 0.05, nesterov=True, weight_decay=0.0, warmup_epochs=0.0)
    return Plan(rows, steps, dict(optim, scaling="linear", schedule="cosine"))
