"""MoCo: a query is to find its key among a queue of keys that a slow copy of the net made of earlier batches.

He et al. 2020, "Momentum Contrast for Unsupervised Visual Representation Learning", arXiv:1911.05722 (v1); Chen et al.
2020, "Improved Baselines with Momentum Contrastive Learning", arXiv:2003.04297 (v2: a head of two layers, more
augmentation, T = 0.2, a cosine). Details as in facebookresearch/moco moco/builder.py.
"""
import jax
import jax.numpy as jnp
from jax import lax

from simclr_jax import dist
from simclr_jax.errors import UsageError
from simclr_jax.losses import info_nce, spread
from simclr_jax.losses.unit import unit
from simclr_jax.methods import branches
from simclr_jax.types import Method


def make(nets, *, temperature: float = 0.2, queue: int = 65536, momentum: float = 0.999, shuffle: bool = False) -> Method:
    """MoCo v1 and v2 as a `Method`. Batch: "views" f32[b,2,H,W,3], a query and a key.

    Args:
      nets: {"backbone": images -> f32[n,D], "projector": f32[n,D] -> f32[n,P]}: a linear layer in v1, two in v2.
      temperature: T; 0.07 in v1.
      queue: K, keys that are kept; a multiple of the global batch.
      momentum: m of the key encoder.
      shuffle: deal the keys' images out anew among all rows before the key encoder, and back after it, so that a query
        and its key share no batch statistics (section 3.3, "Shuffling BN"). For nets whose statistics are of a part of
        the rows, bn="local", "devices=k" or "rows=k"; statistics of all rows make it needless. It gathers images.

    extra: {"stats", "teacher": {"params", "stats"}, "queue": f32[K,P] unit rows, "position": i32[]}. The queue is
    used before this batch's keys enter. The teacher follows after the optimiser, so that the next batch's keys are of
    the net it left, as where it follows before the keys are made.

    Metrics: those of `losses.info_nce`; spread, of the queries (0: collapsed); chance, log(K + 1), the loss of a net that
    tells nothing apart; queue_age, the steps that the oldest key has waited.

    Raises:
      UsageError: a value out of range; when traced, a queue that is no multiple of the batch.
    """
    branches.check_momentum(momentum)
    if temperature <= 0 or queue < 1:
        raise UsageError(f"config.method.temperature={temperature}, queue={queue}: wanted a number above 0 (0.07 to 0.2 are "
                         "usual) and 1 or more")
    encoder = branches.chain(nets, ("backbone", "projector"), "moco")

    def init(key, batch):
        mine, of_queue = jax.random.split(key)
        x = batch["views"][:, 0]
        params, stats = encoder.init(mine, x)
        width = branches.width(encoder, params, stats, x)
        return params, {"stats": stats, "teacher": {"params": params, "stats": stats},
                        "queue": unit(jax.random.normal(of_queue, (queue, width))), "position": jnp.int32(0)}

    def forward(params, extra, batch, ctx):
        views, teacher = branches.two(batch, "moco"), extra["teacher"]
        q, stats = branches.each(encoder, params, extra["stats"], views[:, :1], branches.view_keys(ctx, batch))
        keys = views[:, 1]
        rows = len(keys) * dist.size(ctx.axis)
        order = jax.random.permutation(jax.random.fold_in(ctx.key, 2**31), rows) if shuffle else jnp.arange(rows)
        keys = dist.deal(keys, order, ctx.axis) if shuffle else keys
        k, teacher_stats = branches.each(encoder, teacher["params"], teacher["stats"], keys[:, None])
        k = dist.deal(k[:, 0], jnp.argsort(order), ctx.axis) if shuffle else k[:, 0]
        extra = {**extra, "stats": stats, "teacher": {**teacher, "stats": teacher_stats}}
        return {"query": q[:, 0], "key": k}, extra  # [b,P] both

    def criterion(params, extra, outputs, ctx):
        q, k = outputs["query"], lax.stop_gradient(unit(outputs["key"]))
        loss, metrics = info_nce(q, k, temperature=temperature, negatives=extra["queue"], axis=ctx.axis, metrics=True)
        new = dist.all_gather_replicated(k, ctx.axis)
        if queue % len(new):
            raise UsageError(f"config.method.queue={queue} is no multiple of the global batch of {len(new)}; take "
                             f"{max(queue // len(new), 1) * len(new)}, or another config.batch")
        kept = lax.dynamic_update_slice(extra["queue"], new, (extra["position"], 0))
        metrics |= {"spread": spread(q, axis=ctx.axis), "chance": jnp.log(queue + 1.0),
                    "queue_age": jnp.float32(queue // len(new))}
        return loss, ({**extra, "queue": kept, "position": (extra["position"] + len(new)) % queue}, metrics)

    def finish(params, extra, ctx):
        teacher = extra["teacher"]
        return {**extra, "teacher": {**teacher, "params": branches.follow(teacher["params"], params, momentum)}}

    def embed(params, extra, inputs):
        return branches.features(nets, params, extra["stats"], inputs)

    return Method(init, forward, criterion, embed, finish)
