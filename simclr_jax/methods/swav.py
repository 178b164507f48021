"""SwAV: what one view is assigned to, among prototypes that share the batch evenly, is predicted from the others.

Caron et al. 2020, "Unsupervised Learning of Visual Features by Contrasting Cluster Assignments", arXiv:2006.09882.
Details as in facebookresearch/swav main_swav.py.
"""
import jax
import jax.numpy as jnp
from jax import lax

from simclr_jax import dist
from simclr_jax.errors import UsageError
from simclr_jax.losses import dino, sinkhorn, spread
from simclr_jax.losses.unit import unit
from simclr_jax.methods import branches, prototypes as wide
from simclr_jax.types import Method


def make(nets, *, prototypes: int = 3000, temperature: float = 0.1, epsilon: float = 0.05, iterations: int = 3,
         queue: int = 0, queue_epochs: float = 15.0, batch: int, examples: int) -> Method:
    """SwAV as a `Method`. Batch: "views" f32[b,V,H,W,3], each of which is assigned, and maybe "crops" f32[b,C,h,w,3].

    Args:
      nets: {"backbone": images -> f32[n,D], "projector": f32[n,D] -> f32[n,P]}.
      prototypes: K. Their rows are kept at unit length, and still in the first epoch, by the optimiser:
        config.optim.unit=("^prototypes$",) and hold=(("^prototypes$", 1.0),).
      temperature: of the predictions; epsilon, iterations: of `losses.sinkhorn` over the rows of all devices.
      queue: earlier features of each view that help to share prototypes evenly where the batch is small, a multiple of
        the global batch; 0: none. queue_epochs: when it starts to fill; it counts once it is full (section 4.3).
      batch, examples: of the run.

    Crops of a size are one pass of the backbone, all crops together one of the projector, as in the released code.

    params: those of the nets, and "prototypes" f32[K,P].
    extra: {"stats"} and, with a queue, "queue": f32[V,Q,P] and "position": i32[].

    Metrics: entropy of the assignments, kl and accuracy of the predictions (see `losses.dino`); usage, the share of
    prototypes in use; spread, of the features (0: collapsed); chance, log K.

    Raises:
      UsageError: a missing net, a value out of range; when traced, fewer than two views.
    """
    if prototypes < 2 or min(temperature, epsilon) <= 0 or iterations < 1:
        raise UsageError(f"config.method: prototypes={prototypes}, temperature={temperature}, epsilon={epsilon}, iterations="
                         f"{iterations}: wanted 2 or more, two numbers above 0, and 1 or more")
    if queue < 0 or queue % batch:
        raise UsageError(f"config.method.queue={queue} is no multiple of config.batch={batch}; take "
                         f"{max(queue // batch, 1) * batch}, or 0 for none")
    backbone, projector = (branches.chain(nets, (role,), "swav") for role in ("backbone", "projector"))
    net = branches.chain(nets, ("backbone", "projector"), "swav")
    full = int(queue_epochs * max(examples // batch, 1)) + queue // batch  # the step from which the queue counts

    def init(key, batch):
        mine, of_prototypes = jax.random.split(key)
        views = batch["views"]
        params, stats = net.init(mine, views[:, 0])
        width = branches.width(net, params, stats, views[:, 0])
        extra = {"stats": stats}
        if queue:
            extra |= {"queue": jnp.zeros((views.shape[1], queue, width)), "position": jnp.int32(0)}
        return {**params, "prototypes": wide.init(of_prototypes, prototypes, width)}, extra

    def forward(params, extra, batch, ctx):
        views = batch["views"].shape[1]
        if views < 2:
            raise UsageError("swav predicts one view from another; config.augment.views makes one")
        z, _, stats = branches.multi_crop(backbone, projector, params, extra["stats"], batch, ctx)
        return {"views": z[:, :views], "crops": z[:, views:]}, {**extra, "stats": stats}  # [b,V,P], [b,C,P]

    def criterion(params, extra, outputs, ctx):
        z = unit(jnp.concatenate([outputs["views"], outputs["crops"]], axis=1))
        scores = wide.scores(z, params["prototypes"])  # [V+C,b,K]
        codes = jnp.stack([codes_of(scores[v], v, params, extra, ctx) for v in range(outputs["views"].shape[1])])
        loss, metrics = dino(scores, codes, student_temperature=temperature, teacher_temperature=None, metrics=True)
        metrics |= {"usage": wide.usage(jax.nn.softmax(scores / temperature), ctx.axis),
                    "spread": spread(z[:, 0], axis=ctx.axis), "chance": jnp.log(float(prototypes))}
        return loss, (enqueue(extra, z, ctx), metrics)

    def codes_of(scores, view, params, extra, ctx):
        """f32[b,K]: how a view's rows are shared among prototypes, together with the queue of that view."""
        if not queue:
            return sinkhorn(scores, temperature=epsilon, iterations=iterations, axis=ctx.axis)
        b, part = len(scores), queue // dist.size(ctx.axis)  # each device brings its part of the queue
        mine = lax.dynamic_slice_in_dim(extra["queue"][view], dist.index(ctx.axis) * part, part)
        earlier = wide.scores(mine[:, None], params["prototypes"])[0]
        weights = jnp.concatenate([jnp.ones(b), jnp.full(part, ctx.step >= full, jnp.float32)])
        return sinkhorn(jnp.concatenate([scores, earlier]), temperature=epsilon, iterations=iterations, weights=weights,
                        axis=ctx.axis)[:b]

    def enqueue(extra, z, ctx):
        if not queue:
            return extra
        new = jnp.moveaxis(dist.all_gather_replicated(z[:, :len(extra["queue"])], ctx.axis), 1, 0)  # [V,B,P]
        kept = lax.dynamic_update_slice(extra["queue"], new, (0, extra["position"], 0))
        return {**extra, "queue": kept, "position": (extra["position"] + new.shape[1]) % queue}

    def embed(params, extra, inputs):
        return branches.features(nets, params, extra["stats"], inputs)

    return Method(init, forward, criterion, embed)
