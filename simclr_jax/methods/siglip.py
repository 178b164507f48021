"""SigLIP: an image tower, a text tower, and for every image and text the question whether they belong together.

Zhai et al. 2023, "Sigmoid Loss for Language Image Pre-Training", arXiv:2303.15343.
"""
import jax.numpy as jnp

from simclr_jax import losses
from simclr_jax.errors import UsageError
from simclr_jax.methods import towers
from simclr_jax.types import Method


def make(nets, *, scale: float = 10.0, bias: float = -10.0, locked: tuple = (), comm: str = "ring",
         block: int = 0) -> Method:
    """SigLIP as a `Method`. Batch: "views" f32[b,1,H,W,3], "text" i32[b,L].

    Args:
      nets: {"image", "text"}, each to pooled f32[b,D].
      scale, bias: at the start; what is learned is "logit_scale" = log(scale) and "logit_bias". -10 suits any batch from
        some hundreds on: nearly all of the B^2 questions have the answer no (section 3.2).
      locked: towers that are not trained, see `towers.pair`; ("image",) is SigLiT.
      comm, block: how the other devices' texts are met and the tile of the similarity matrix; see `losses.siglip`.

    Metrics: accuracy, positive and negative similarity, the scale exp(logit_scale) and the bias.

    Raises:
      UsageError: a missing net or a value outside these.
    """
    if comm not in ("gather", "ring") or block < 0:
        raise UsageError(f"config.method.comm={comm!r}, block={block}: wanted 'gather' or 'ring', and 0 or more")
    if scale <= 0:
        raise UsageError(f"config.method.scale={scale}, wanted a number above 0 (10 is SigLIP's)")
    both = towers.pair(nets, locked=locked, method="siglip")

    def init(key, batch):
        params, extra = both.init(key, batch)
        return {**params, "logit_scale": jnp.log(jnp.float32(scale)), "logit_bias": jnp.float32(bias)}, extra

    def criterion(params, extra, outputs, ctx):
        t, b = jnp.exp(params["logit_scale"]), params["logit_bias"]
        loss, metrics = losses.siglip(outputs["image"], outputs["text"], scale=t, bias=b, axis=ctx.axis, comm=comm,
                                      block=block or None, metrics=True)
        return loss, (extra, {**metrics, "scale": t, "bias": b, "spread": losses.spread(outputs["image"], axis=ctx.axis)})

    return Method(init, both.forward, criterion, both.embed)
