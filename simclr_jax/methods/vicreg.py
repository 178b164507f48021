"""VICReg: two views near each other, features that vary, and features that do not vary together.

Bardes, Ponce & LeCun 2022, "VICReg: Variance-Invariance-Covariance Regularization", arXiv:2105.04906.
"""
from simclr_jax.losses import vicreg, spread
from simclr_jax.methods import branches
from simclr_jax.types import Method


def make(nets, *, invariance: float = 25.0, variance: float = 25.0, covariance: float = 1.0) -> Method:
    """As a `Method`. Batch: "views" f32[b,2,H,W,3].

    Args:
      nets: {"backbone": images -> f32[n,D], "projector": f32[n,D] -> f32[n,P]}; P is wide (8192 in the paper).
      invariance, variance, covariance: weights of the three terms, see `losses.vicreg`.

    extra: {"stats"}. Each view is a pass, with batch statistics of its own, as in the released code.

    Metrics: invariance, variance and covariance, the terms before their weights; spread, of the embeddings (0: collapsed).
    """
    encoder = branches.chain(nets, ("backbone", "projector"), "vicreg")

    def init(key, batch):
        params, stats = encoder.init(key, batch["views"][:, 0])
        return params, {"stats": stats}

    def forward(params, extra, batch, ctx):
        views = branches.two(batch, "vicreg")
        z, stats = branches.each(encoder, params, extra["stats"], views, branches.view_keys(ctx, batch))
        return {"z": z}, {**extra, "stats": stats}  # [b,2,P]

    def criterion(params, extra, outputs, ctx):
        z = outputs["z"]
        loss, metrics = vicreg(z[:, 0], z[:, 1], invariance=invariance, variance=variance, covariance=covariance,
                               axis=ctx.axis, metrics=True)
        return loss, (extra, {**metrics, "spread": spread(z[:, 0], axis=ctx.axis)})

    def embed(params, extra, inputs):
        return branches.features(nets, params, extra["stats"], inputs)

    return Method(init, forward, criterion, embed)
