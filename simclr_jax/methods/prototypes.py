"""The wide last layer that SwAV, DINO and DINOv2 compare with: K directions, and the scores of features with them."""
import jax
import jax.numpy as jnp

from simclr_jax import dist
from simclr_jax.losses.unit import unit


def init(key, count: int, width: int):
    """f32[count,width], rows of unit length in random directions."""
    return unit(jax.random.normal(key, (count, width)))


def scores(z, directions):
    """Inner products of unit features with directions, f32[S,b,K] of float[b,S,P] and float[K,P]: view by view, as
    `losses.dino` takes them."""
    return jnp.einsum("bsp,kp->sbk", unit(z), directions, precision="highest")


def normed(layer):
    """f32[K,P]: the rows of a weight-normalised layer {"direction": f32[K,P], "gain": f32[K], or none for 1}, at the length
    of their gain (Salimans & Kingma 2016, arXiv:1602.07868)."""
    rows = unit(layer["direction"])
    return layer["gain"][:, None] * rows if "gain" in layer else rows


def usage(probabilities, axis):
    """f32[] in [1/K, 1]: the share of the K prototypes in use, exp of the entropy of the mean row over K.

    probabilities: f32[..., K], of this shard's rows; the mean is over all shards'. 1/K: all rows choose the same.
    """
    p = jax.lax.stop_gradient(probabilities)
    mean = dist.pmean(jnp.mean(p.reshape(-1, p.shape[-1]), axis=0), axis)
    return jnp.exp(jnp.sum(jax.scipy.special.entr(mean))) / mean.shape[0]


def warmed(start: float, end: float, epochs: float, step, examples: int, batch: int):
    """A temperature that rises from `start` to `end` over `epochs`, epoch by epoch, and stays there.

    As numpy.linspace(start, end, epochs) has it (dino main_dino.py): `start` in the first epoch, `end` in the last.
    """
    epoch = step // max(examples // batch, 1)
    return start + (end - start) * jnp.clip(epoch / max(epochs - 1, 1), 0.0, 1.0) if epochs >= 1 else jnp.float32(end)
