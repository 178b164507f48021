"""SimCLR: two augmented views of each image, an encoder, a projection head, NT-Xent.

Chen et al. 2020, "A Simple Framework for Contrastive Learning of Visual Representations", arXiv:2002.05709.
"""
import math

import jax
import jax.numpy as jnp

from simclr_jax import dist
from simclr_jax.errors import UsageError
from simclr_jax.losses import nt_xent, spread
from simclr_jax.types import Method


def make(nets, *, temperature: float = 0.1, loss_scale: float = 1.0, comm: str = "gather", block: int = 0) -> Method:
    """SimCLR as a `Method`.

    Args:
      nets: {"backbone": f32[n,H,W,3] -> pooled f32[n,D], "projector": f32[n,D] -> pooled f32[n,P]}.
      temperature: T of the loss; 0.1 in the paper's ImageNet runs, 0.5 for CIFAR-10.
      loss_scale: 1 is the paper's mean over 2N rows; 2 is what the released TensorFlow code returns. LARS does not hide
        the factor: it halves the effective weight decay and doubles the step of what LARS leaves out (norms, biases).
      comm, block: how `losses.nt_xent` meets other devices' rows ("gather" or "ring") and the tile of its similarity
        matrix (0: a good default).

    extra: {"stats": {"backbone", "projector"}}, the running batch statistics.
    """
    if missing := {"backbone", "projector"} - set(nets):
        raise UsageError(f"simclr needs nets 'backbone' and 'projector'; config.nets lacks {', '.join(sorted(missing))}")
    if comm not in ("gather", "ring") or block < 0:
        raise UsageError(f"config.method.comm={comm!r}, block={block}: wanted 'gather' or 'ring', and 0 or more")
    if temperature <= 0:
        raise UsageError(f"config.method.temperature={temperature}, wanted a number above 0 (0.1 to 0.5 are usual)")
    backbone, projector = nets["backbone"], nets["projector"]

    def init(key, batch):
        k1, k2 = jax.random.split(key)
        x = batch["views"][:, 0]
        params_b, stats_b = backbone.init(k1, x)
        h, _ = backbone.apply(params_b, stats_b, x, train=False)
        params_p, stats_p = projector.init(k2, h["pooled"])
        return ({"backbone": params_b, "projector": params_p}, {"stats": {"backbone": stats_b, "projector": stats_p}})

    def forward(params, extra, batch, ctx):
        views = batch["views"]  # [b,2,H,W,3]
        b, v = views.shape[:2]
        if v != 2:
            raise UsageError(f"simclr compares two views of an image; config.augment.views makes {v}")
        x = views.reshape(b * v, *views.shape[2:])  # one pass over both views: batch statistics are over 2N, as in SimCLR
        h, stats_b = backbone.apply(params["backbone"], extra["stats"]["backbone"], x, train=True)
        z, stats_p = projector.apply(params["projector"], extra["stats"]["projector"], h["pooled"], train=True)
        extra = {**extra, "stats": {"backbone": stats_b, "projector": stats_p}}
        return {"z": z["pooled"].reshape(b, v, -1)}, extra  # [b,2,P]

    def criterion(params, extra, outputs, ctx):
        z = outputs["z"]
        loss, metrics = nt_xent(z[:, 0], z[:, 1], temperature=temperature, axis=ctx.axis, comm=comm,
                                block=block or None, metrics=True)
        rows = 2 * len(z) * dist.size(ctx.axis)
        metrics |= {"spread": spread(z[:, 0], axis=ctx.axis),
                    "chance": jnp.float32(loss_scale * math.log(max(rows - 1, 1)))}
        return loss_scale * loss, (extra, metrics)

    def embed(params, extra, inputs):
        h, _ = backbone.apply(params["backbone"], extra["stats"]["backbone"], inputs["image"], train=False)
        return {"image": h["pooled"]}

    return Method(init, forward, criterion, embed)
