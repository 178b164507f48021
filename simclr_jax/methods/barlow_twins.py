"""Barlow Twins: the features of two views are to be the same, and each feature to tell something else.

Zbontar et al. 2021, "Barlow Twins: Self-Supervised Learning via Redundancy Reduction", arXiv:2103.03230.
"""
from simclr_jax.losses import barlow_twins, spread
from simclr_jax.methods import branches
from simclr_jax.types import Method


def make(nets, *, off_diagonal: float = 0.005, loss_scale: float = 1.0) -> Method:
    """As a `Method`. Batch: "views" f32[b,2,H,W,3].

    Args:
      nets: {"backbone": images -> f32[n,D], "projector": f32[n,D] -> f32[n,P]}; P is wide (8192 in the paper).
      off_diagonal: the weight lambda of correlations between features; 0.0051 in the released code.
      loss_scale: factor on the loss; 0.024 in the released code, which LARS all but hides.

    extra: {"stats"}. Each view is a pass, with batch statistics of its own, as in the released code.

    Metrics: diagonal, the mean correlation of a feature with itself in the other view; spread, of the embeddings (0:
    collapsed).
    """
    encoder = branches.chain(nets, ("backbone", "projector"), "barlow_twins")

    def init(key, batch):
        params, stats = encoder.init(key, batch["views"][:, 0])
        return params, {"stats": stats}

    def forward(params, extra, batch, ctx):
        views = branches.two(batch, "barlow_twins")
        z, stats = branches.each(encoder, params, extra["stats"], views, branches.view_keys(ctx, batch))
        return {"z": z}, {**extra, "stats": stats}  # [b,2,P]

    def criterion(params, extra, outputs, ctx):
        z = outputs["z"]
        loss, metrics = barlow_twins(z[:, 0], z[:, 1], off_diagonal=off_diagonal, axis=ctx.axis, metrics=True)
        return loss_scale * loss, (extra, {**metrics, "spread": spread(z[:, 0], axis=ctx.axis)})

    def embed(params, extra, inputs):
        return branches.features(nets, params, extra["stats"], inputs)

    return Method(init, forward, criterion, embed)
