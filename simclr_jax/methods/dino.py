"""DINO: all views and crops predict what a slow copy of the net says of the views, centred and sharpened.

Caron et al. 2021, "Emerging Properties in Self-Supervised Vision Transformers", arXiv:2104.14294. Details as in
facebookresearch/dino main_dino.py.
"""
import jax
import jax.numpy as jnp

from simclr_jax import dist, losses
from simclr_jax.errors import UsageError
from simclr_jax.methods import branches, prototypes as wide
from simclr_jax.types import Method


def make(nets, *, prototypes: int = 65536, norm_last_layer: bool = True, student_temperature: float = 0.1,
         teacher_temperature: float = 0.04, warmup_teacher_temperature: float = 0.04, warmup_teacher_epochs: float = 0.0,
         momentum: float = 0.996, center_momentum: float = 0.9, batch: int, steps: int, examples: int) -> Method:
    """DINO as a `Method`. Batch: "views" f32[b,V,H,W,3] and maybe "crops" f32[b,C,h,w,3]; the teacher sees the views.

    Args:
      nets: {"backbone": images -> f32[n,D], "projector": f32[n,D] -> f32[n,P], the head up to its bottleneck}.
      prototypes: K, width of the last layer.
      norm_last_layer: its rows stay at unit length; False: their lengths are learned ("gain").
      student_temperature, teacher_temperature: T_s and T_t; T_t rises from `warmup_teacher_temperature` over
        `warmup_teacher_epochs`, epoch by epoch.
      momentum: of the teacher at the start; it rises to 1 by a half cosine. center_momentum: of the centre.
      batch, steps, examples: of the run.

    The last layer waits an epoch with config.optim.hold=(("^last/", 1.0),).

    params: those of the nets, and "last" {"direction": f32[K,P]}.
    extra: {"stats", "teacher": {"params", "stats"}, "center": f32[K]}. The teacher drops nothing, starts as a copy, and is
    what `embed` uses.

    Metrics: the teacher's entropy (0 or log K: collapsed), kl and accuracy (see `losses.dino`); usage, the share of
    prototypes that the teacher uses; spread, of the teacher's features; chance, log K.

    Raises:
      UsageError: a missing net, a value out of range; when traced, no two views or crops.
    """
    branches.check_momentum(momentum)
    if prototypes < 2 or min(student_temperature, teacher_temperature, warmup_teacher_temperature) <= 0:
        raise UsageError(f"config.method: prototypes={prototypes}, student_temperature={student_temperature}, "
                         f"teacher_temperature={teacher_temperature}, warmup_teacher_temperature="
                         f"{warmup_teacher_temperature}: wanted 2 or more and numbers above 0")
    backbone, projector = (branches.chain(nets, (role,), "dino") for role in ("backbone", "projector"))
    net = branches.chain(nets, ("backbone", "projector"), "dino")

    def init(key, batch):
        mine, of_last = jax.random.split(key)
        x = batch["views"][:, 0]
        params, stats = net.init(mine, x)
        width = branches.width(net, params, stats, x)
        last = {"direction": wide.init(of_last, prototypes, width)}
        params["last"] = last if norm_last_layer else {**last, "gain": jnp.ones(prototypes)}
        return params, {"stats": stats, "teacher": {"params": params, "stats": stats}, "center": jnp.zeros(prototypes)}

    def forward(params, extra, batch, ctx):
        views, teacher = batch["views"], extra["teacher"]
        if views.shape[1] + batch.get("crops", views[:, :0]).shape[1] < 2:
            raise UsageError("dino predicts one view from another; config.augment.views makes one")
        student, _, stats = branches.multi_crop(backbone, projector, params, extra["stats"], batch, ctx)
        out, teacher_stats = branches.together(net, teacher["params"], teacher["stats"], views)
        extra = {**extra, "stats": stats, "teacher": {**teacher, "stats": teacher_stats}}
        return {"student": student, "teacher": out["pooled"]}, extra  # [b,V+C,P], [b,V,P]

    def criterion(params, extra, outputs, ctx):
        t = wide.warmed(warmup_teacher_temperature, teacher_temperature, warmup_teacher_epochs, ctx.step, examples, batch)
        student = wide.scores(outputs["student"], wide.normed(params["last"]))  # [V+C,b,K]
        teacher = wide.scores(outputs["teacher"], wide.normed(extra["teacher"]["params"]["last"]))  # [V,b,K]
        loss, metrics = losses.dino(student, teacher, student_temperature=student_temperature, teacher_temperature=t,
                                    center=extra["center"], metrics=True)
        mean = dist.pmean(jnp.mean(jax.lax.stop_gradient(teacher), axis=(0, 1)), ctx.axis)
        center = center_momentum * extra["center"] + (1 - center_momentum) * mean
        metrics |= {"usage": wide.usage(jax.nn.softmax((teacher - extra["center"]) / t), ctx.axis),
                    "spread": losses.spread(outputs["teacher"][:, 0], axis=ctx.axis), "chance": jnp.log(float(prototypes))}
        return loss, ({**extra, "center": center}, metrics)

    def finish(params, extra, ctx):
        teacher, m = extra["teacher"], branches.rising(momentum, ctx.step, steps)
        return {**extra, "teacher": {**teacher, "params": branches.follow(teacher["params"], params, m)}}

    def weights(params, extra):
        return extra["teacher"]["params"], extra["teacher"]["stats"]

    def embed(params, extra, inputs):
        return branches.features(nets, *weights(params, extra), inputs)

    return Method(init, forward, criterion, embed, finish, weights)
