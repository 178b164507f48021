"""CLIP: an image tower, a text tower, and each pair against all others of the batch, under a learned temperature.

Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision", arXiv:2103.00020.
"""
import jax.numpy as jnp

from simclr_jax import dist, losses
from simclr_jax.errors import UsageError
from simclr_jax.methods import towers
from simclr_jax.types import Method


def make(nets, *, temperature: float = 0.07, locked: tuple = (), comm: str = "gather", block: int = 0) -> Method:
    """CLIP as a `Method`. Batch: "views" f32[b,1,H,W,3], "text" i32[b,L].

    Args:
      nets: {"image", "text"}, each to pooled f32[b,D].
      temperature: T at the start; what is learned is "logit_scale" = log(1/T). The paper keeps it from going over
        log(100) by clipping after each update, here `config.optim.bounds`.
      locked: towers that are not trained, see `towers.pair`; ("image",) is LiT (Zhai et al. 2022, arXiv:2111.07991).
      comm, block: how the other devices' rows are met and the tile of the similarity matrix; see `losses.clip`.

    Metrics: accuracy, entropy, positive and negative similarity, and the scale exp(logit_scale).

    Raises:
      UsageError: a missing net or a value outside these.
    """
    if comm not in ("gather", "ring") or block < 0:
        raise UsageError(f"config.method.comm={comm!r}, block={block}: wanted 'gather' or 'ring', and 0 or more")
    if temperature <= 0:
        raise UsageError(f"config.method.temperature={temperature}, wanted a number above 0 (0.07 is CLIP's)")
    both = towers.pair(nets, locked=locked, method="clip")

    def init(key, batch):
        params, extra = both.init(key, batch)
        return {**params, "logit_scale": jnp.log(1 / jnp.float32(temperature))}, extra

    def criterion(params, extra, outputs, ctx):
        scale = jnp.exp(params["logit_scale"])
        loss, metrics = losses.clip(outputs["image"], outputs["text"], scale=scale, axis=ctx.axis, comm=comm,
                                    block=block or None, metrics=True)
        return loss, (extra, {**metrics, "scale": scale, "spread": losses.spread(outputs["image"], axis=ctx.axis),
                              "chance": jnp.log(1.0 * len(outputs["image"]) * dist.size(ctx.axis))})

    return Method(init, both.forward, criterion, both.embed)
