"""BYOL: a predictor makes of one view what a slow copy of the net makes of the other; there are no negatives.

Grill et al. 2020, "Bootstrap Your Own Latent", arXiv:2006.07733. Details as in deepmind-research byol/byol_experiment.py.
"""
import jax

from simclr_jax.losses import cosine_regression, spread
from simclr_jax.methods import branches
from simclr_jax.types import Method


def make(nets, *, momentum: float = 0.996, predictor: bool = True, steps: int) -> Method:
    """BYOL as a `Method`. Batch: "views" f32[b,2,H,W,3].

    Args:
      nets: {"backbone": images -> f32[n,D], "projector": f32[n,D] -> f32[n,P], "predictor": f32[n,P] -> f32[n,P]}.
      momentum: of the target network at the start, tau_base; it rises to 1 by a half cosine (section 3.3).
      predictor: False leaves the predictor out, and the net collapses (table 5 (b)).
      steps: of the run.

    extra: {"stats", "teacher": {"params", "stats"}}. The target network starts from a draw of its own and normalises by
    the statistics of its own batches, as in the released code. Each view is a pass, with statistics of its own.

    Metrics: positive, the mean cosine of prediction and target; spread, of the projections (0: collapsed).
    """
    branches.check_momentum(momentum)
    target = branches.chain(nets, ("backbone", "projector"), "byol")
    roles = ("backbone", "projector", "predictor") if predictor else ("backbone", "projector")
    online = branches.chain(nets, roles, "byol")

    def init(key, batch):
        mine, others = jax.random.split(key)
        params, stats = online.init(mine, batch["views"][:, 0])
        teacher, teacher_stats = target.init(others, batch["views"][:, 0])
        return params, {"stats": stats, "teacher": {"params": teacher, "stats": teacher_stats}}

    def forward(params, extra, batch, ctx):
        views, teacher = branches.two(batch, "byol"), extra["teacher"]
        q, stats = branches.each(online, params, extra["stats"], views, branches.view_keys(ctx, batch))
        z, teacher_stats = branches.each(target, teacher["params"], teacher["stats"], views)
        extra = {"stats": stats, "teacher": {**teacher, "stats": teacher_stats}}
        return {"prediction": q, "target": z}, extra  # [b,2,P] both

    def criterion(params, extra, outputs, ctx):
        q, z = outputs["prediction"], jax.lax.stop_gradient(outputs["target"])
        one, metrics = cosine_regression(q[:, 0], z[:, 1], metrics=True)
        other, _ = cosine_regression(q[:, 1], z[:, 0], metrics=True)
        return one + other, (extra, {**metrics, "spread": spread(z[:, 0], axis=ctx.axis)})

    def finish(params, extra, ctx):
        teacher = extra["teacher"]
        tau = branches.rising(momentum, ctx.step, steps)
        return {**extra, "teacher": {**teacher, "params": branches.follow(teacher["params"], params, tau)}}

    def embed(params, extra, inputs):
        return branches.features(nets, params, extra["stats"], inputs)

    return Method(init, forward, criterion, embed, finish)
