"""References of the losses of two views and of image-text pairs: what every row contributes, written out from the paper.

Each `rows_of_*` returns f64[rows], whose mean is the loss of the whole batch.
"""
import jax
import jax.numpy as jnp
import numpy as np

from exactness import BATCH, Case, views
from simclr_jax.losses.clip import clip
from simclr_jax.losses.debiased import dcl, debiased, hard_negative
from simclr_jax.losses.nt_xent import nt_xent
from simclr_jax.losses.siglip import siglip


def unit(z):
    return z / jnp.sqrt(jnp.sum(z ** 2, axis=-1, keepdims=True))


def two_views(z1, z2, temperature):
    """exp(s) of each of the 2B rows with its other view [2B], and with the rows of other examples [2B, 2B - 2]."""
    z = unit(jnp.concatenate([z1, z2]))
    e = jnp.exp(z @ z.T / temperature)
    i = np.arange(2 * BATCH)
    rest = np.array([[k for k in i if k % BATCH != r % BATCH] for r in i])
    return e[i, (i + BATCH) % (2 * BATCH)], e[i[:, None], rest]


def rows_of_nt_xent(z1, z2, temperature):
    positive, negatives = two_views(z1, z2, temperature)
    return -jnp.log(positive / (positive + negatives.sum(axis=1)))


def rows_of_dcl(z1, z2, temperature, sigma=None):
    positive, negatives = two_views(z1, z2, temperature)
    cosine = jax.lax.stop_gradient(jnp.sum(unit(z1) * unit(z2), axis=1))
    weight = 1 if sigma is None else jnp.tile(2 - BATCH * jax.nn.softmax(cosine / sigma), 2)
    return -weight * jnp.log(positive) + jnp.log(negatives.sum(axis=1))


def rows_of_hard_negative(z1, z2, temperature, tau_plus, beta=0.0):
    positive, negatives = two_views(z1, z2, temperature)
    n = negatives.shape[1]
    importance = negatives ** beta
    total = jnp.sum(importance * negatives, axis=1) / importance.mean(axis=1)
    left = jnp.maximum((total - tau_plus * n * positive) / (1 - tau_plus), n * jnp.exp(-1 / temperature))
    return -jnp.log(positive / (positive + left))


def rows_of_clip(image, text, scale):
    e = jnp.exp(scale * unit(image) @ unit(text).T)
    return -(jnp.log(jnp.diag(e) / e.sum(axis=1)) + jnp.log(jnp.diag(e) / e.sum(axis=0))) / 2


def rows_of_siglip(image, text, scale, bias):
    s = scale * unit(image) @ unit(text).T + bias
    return -jnp.sum(jnp.log(jax.nn.sigmoid(s * (2 * jnp.eye(len(image)) - 1))), axis=1)


def case(loss, reference, arrays, shared, **fixed):
    return Case(lambda rows, shared, **how: loss(*rows.values(), **shared, **fixed, **how),
                lambda rows, shared: reference(*rows.values(), **shared, **fixed).mean(), arrays, shared)


pair = dict(zip(("z1", "z2"), views()))
captioned = dict(zip(("image", "text"), views(seed=1)))
T = {"temperature": np.float32(0.2)}
SCALE = {"scale": np.float32(5)}

CASES = {
    "nt_xent": case(nt_xent, rows_of_nt_xent, pair, T),
    "clip": case(clip, rows_of_clip, captioned, SCALE),
    "siglip": case(siglip, rows_of_siglip, captioned, SCALE | {"bias": np.float32(-3)}),
    "dcl": case(dcl, rows_of_dcl, pair, T),
    "dcl weighted": case(dcl, rows_of_dcl, pair, T, sigma=0.5),
    "debiased": case(debiased, rows_of_hard_negative, pair, T, tau_plus=0.1),
    "debiased at its floor": case(debiased, rows_of_hard_negative, pair, {"temperature": np.float32(2)}, tau_plus=0.5),
    "hard_negative": case(hard_negative, rows_of_hard_negative, pair, T, tau_plus=0.1, beta=0.7),
}
