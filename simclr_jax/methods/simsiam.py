"""SimSiam: a predictor makes of one view what the net itself makes of the other, whose gradient is stopped.

Chen & He 2021, "Exploring Simple Siamese Representation Learning", arXiv:2011.10566.
"""
from jax import lax

from simclr_jax.losses import cosine_regression, spread
from simclr_jax.methods import branches
from simclr_jax.types import Method


def make(nets, *, stop_gradient: bool = True) -> Method:
    """SimSiam as a `Method`. Batch: "views" f32[b,2,H,W,3].

    Args:
      nets: {"backbone": images -> f32[n,D], "projector": f32[n,D] -> f32[n,P], "predictor": f32[n,P] -> f32[n,P]}.
      stop_gradient: False lets the gradient into the targets too, and the net collapses (section 4.1).

    The loss is the mean of both directions' negative cosines, between -1 and 1. The predictor's constant rate is
    config.optim.steady=("^predictor/",). Each view is a pass, with batch statistics of its own, as in the released code.

    extra: {"stats"}. Metrics: positive, the mean cosine; spread, of the projections (section 4.1's figure; 0: collapsed).
    """
    encoder = branches.chain(nets, ("backbone", "projector"), "simsiam")
    predictor = branches.chain(nets, ("predictor",), "simsiam")
    whole = branches.chain(nets, ("backbone", "projector", "predictor"), "simsiam")

    def init(key, batch):
        params, stats = whole.init(key, batch["views"][:, 0])
        return params, {"stats": stats}

    def forward(params, extra, batch, ctx):
        views, keys = branches.two(batch, "simsiam"), branches.view_keys(ctx, batch)
        z, stats = branches.each(encoder, params, extra["stats"], views, keys)
        p, stats = branches.each(predictor, params, stats, z, keys)
        return {"p": p, "z": z}, {**extra, "stats": stats}  # [b,2,P] both

    def criterion(params, extra, outputs, ctx):
        p, z = outputs["p"], outputs["z"]
        target = lax.stop_gradient(z) if stop_gradient else z
        one, metrics = cosine_regression(p[:, 0], target[:, 1], metrics=True)
        other, _ = cosine_regression(p[:, 1], target[:, 0], metrics=True)
        loss = (one / 2 - 1 + other / 2 - 1) / 2  # |p - z|^2 / 2 - 1 = -cos(p, z) of unit vectors
        return loss, (extra, {**metrics, "spread": spread(z[:, 0], axis=ctx.axis)})

    def embed(params, extra, inputs):
        return branches.features(nets, params, extra["stats"], inputs)

    return Method(init, forward, criterion, embed)
