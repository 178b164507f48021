"""MoCo v3: a predictor's query is to find its key among the keys of the batch, which a slow copy of the net makes.

Chen, Xie & He 2021, "An Empirical Study of Training Self-Supervised Vision Transformers", arXiv:2104.02057. Details as in
facebookresearch/moco-v3 moco/builder.py.
"""
import jax.numpy as jnp
from jax import lax

from simclr_jax import dist
from simclr_jax.errors import UsageError
from simclr_jax.losses import info_nce, spread
from simclr_jax.methods import branches
from simclr_jax.types import Method


def make(nets, *, temperature: float = 1.0, momentum: float = 0.99, comm: str = "gather", block: int = 0,
         steps: int) -> Method:
    """MoCo v3 as a `Method`. Batch: "views" f32[b,2,H,W,3].

    Args:
      nets: {"backbone": images -> f32[n,D], "projector": f32[n,D] -> f32[n,P], "predictor": f32[n,P] -> f32[n,P]}.
      temperature: T; 1.0 for ResNet-50, 0.2 for ViT.
      momentum: m at the start; it rises to 1 by a half cosine.
      comm, block: how the other devices' keys are met and the tile of similarities; see `losses.info_nce`.
      steps: of the run.

    The loss is 2T times the sum of both directions. The patches of a ViT stay as drawn (section 4) with
    config.optim.freeze=("^backbone/patches/",).

    extra: {"stats", "teacher": {"params", "stats"}}; the teacher starts as a copy. Each view is a pass.

    Metrics: those of `losses.info_nce`; spread, of the queries (0: collapsed); chance, the loss of a net that tells
    nothing apart.

    Raises:
      UsageError: a missing net, a value out of range.
    """
    branches.check_momentum(momentum)
    if temperature <= 0 or comm not in ("gather", "ring") or block < 0:
        raise UsageError(f"config.method.temperature={temperature}, comm={comm!r}, block={block}: wanted a number above 0, "
                         "'gather' or 'ring', and 0 or more")
    slow = branches.chain(nets, ("backbone", "projector"), "moco_v3")
    encoder = branches.chain(nets, ("backbone", "projector", "predictor"), "moco_v3")

    def init(key, batch):
        params, stats = encoder.init(key, batch["views"][:, 0])
        copy = {"params": {r: params[r] for r in ("backbone", "projector")},
                "stats": {r: stats[r] for r in ("backbone", "projector")}}
        return params, {"stats": stats, "teacher": copy}

    def forward(params, extra, batch, ctx):
        views, teacher = branches.two(batch, "moco_v3"), extra["teacher"]
        q, stats = branches.each(encoder, params, extra["stats"], views, branches.view_keys(ctx, batch))
        k, teacher_stats = branches.each(slow, teacher["params"], teacher["stats"], views)
        return {"query": q, "key": k}, {"stats": stats, "teacher": {**teacher, "stats": teacher_stats}}  # [b,2,P]

    def criterion(params, extra, outputs, ctx):
        q, k = outputs["query"], lax.stop_gradient(outputs["key"])

        def find(q, k):
            return info_nce(q, k, temperature=temperature, axis=ctx.axis, comm=comm, block=block or None, metrics=True)
        (one, metrics), (other, _) = find(q[:, 0], k[:, 1]), find(q[:, 1], k[:, 0])
        rows = len(q) * dist.size(ctx.axis)
        metrics |= {"spread": spread(q[:, 0], axis=ctx.axis), "chance": jnp.float32(4 * temperature * jnp.log(rows))}
        return 2 * temperature * (one + other), (extra, metrics)

    def finish(params, extra, ctx):
        teacher = extra["teacher"]
        # The released code follows at the start of the next step, with that step's momentum.
        m = branches.rising(momentum, ctx.step + 1, steps)
        return {**extra, "teacher": {**teacher, "params": branches.follow(teacher["params"], params, m)}}

    def embed(params, extra, inputs):
        return branches.features(nets, params, extra["stats"], inputs)

    return Method(init, forward, criterion, embed, finish)
