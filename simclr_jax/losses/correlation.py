"""Losses of the correlations between features rather than between rows: Barlow Twins and VICReg."""
import jax.numpy as jnp

from simclr_jax import dist
from simclr_jax.losses.sweep import wide


def barlow_twins(z1, z2, *, off_diagonal=0.005, axis=None, metrics=False):
    """Makes the correlation of two views' features the identity (Zbontar et al. 2021, arXiv:2103.03230, equation 1).

        loss = sum_i (1 - C_ii)^2 + off_diagonal sum_{i != j} C_ij^2

    with C the correlation of feature i of one view with feature j of the other over the global batch (biased variances,
    1e-5 added to each, as in the released code's batch normalisation).

    Args:
      z1, z2: float[b, D], this shard's rows of the two views. Computed in f32 (f64 for f64).
      off_diagonal: the paper's lambda.
      axis: mesh axis whose shards hold the other rows. One reduction of f32[D, D].
      metrics: also return {"diagonal"}: the mean of C_ii, without a gradient of its own.

    Returns:
      f32[]: that of the global batch, the same on every shard; so its `pmean` is itself, with the exact gradient. With
      `metrics`, (f32[], {name: f32[]}).

    Raises:
      ValueError: the shapes are not one [b, D].

    >>> z = jnp.array([[1., 1.], [1., -1.], [-1., 1.], [-1., -1.]])
    >>> round(float(barlow_twins(z, -z)), 3)  # C = -1 on the diagonal, 0 off it
    8.0
    """
    _check("barlow_twins", z1, z2)
    rows = z1.shape[0] * dist.size(axis)
    one, other = (_standard(wide(z), axis) for z in (z1, z2))
    c = dist.psum(jnp.einsum("bi,bj->ij", one, other, precision="highest"), axis) / rows
    diagonal = jnp.diagonal(c)
    loss = jnp.sum((1 - diagonal) ** 2) + off_diagonal * (jnp.sum(c ** 2) - jnp.sum(diagonal ** 2))
    return (loss, {"diagonal": jnp.mean(diagonal)}) if metrics else loss


def vicreg(z1, z2, *, invariance=25.0, variance=25.0, covariance=1.0, eps=1e-4, axis=None, metrics=False):
    """Invariance, variance, covariance (Bardes et al. 2022, arXiv:2105.04906, equation 6).

        loss = invariance mean (z1 - z2)^2
             + variance   mean over features and views of max(0, 1 - sqrt(var + eps)), half of each view's
             + covariance sum over views of 1/D sum_{i != j} cov_ij^2

    with unbiased variances and covariances over the global batch, as in the released code.

    Args:
      z1, z2: float[b, D], this shard's rows of the two views. Computed in f32 (f64 for f64).
      invariance, variance, covariance: the paper's lambda, mu and nu.
      eps: under the root.
      axis: mesh axis whose shards hold the other rows. Two reductions of f32[D, D].
      metrics: also return {"invariance", "variance", "covariance"}, the three terms before their weights.

    Returns:
      f32[]: that of the global batch, the same on every shard; so its `pmean` is itself, with the exact gradient. With
      `metrics`, (f32[], {name: f32[]}).

    Raises:
      ValueError: the shapes are not one [b, D], or the batch has one row.

    >>> z = jnp.array([[1., 1.], [1., -1.], [-1., 1.], [-1., -1.]])
    >>> float(vicreg(z, z))  # variances of 4/3 and no covariance
    0.0
    """
    _check("vicreg", z1, z2)
    rows, width = z1.shape[0] * dist.size(axis), z1.shape[1]
    if rows < 2:
        raise ValueError("vicreg wants two rows or more")
    z1, z2 = wide(z1), wide(z2)
    near = dist.pmean(jnp.mean((z1 - z2) ** 2), axis)
    small, shared = 0.0, 0.0
    for z in (z1, z2):
        z = z - dist.pmean(jnp.mean(z, axis=0), axis)
        c = dist.psum(jnp.einsum("bi,bj->ij", z, z, precision="highest"), axis) / (rows - 1)
        var = jnp.diagonal(c)
        small = small + jnp.mean(jnp.maximum(1 - jnp.sqrt(var + eps), 0)) / 2
        shared = shared + (jnp.sum(c ** 2) - jnp.sum(var ** 2)) / width
    loss = invariance * near + variance * small + covariance * shared
    return (loss, {"invariance": near, "variance": small, "covariance": shared}) if metrics else loss


def _standard(z, axis):
    """Each feature with mean 0 and variance 1 over the global batch."""
    z = z - dist.pmean(jnp.mean(z, axis=0), axis)
    return z / jnp.sqrt(dist.pmean(jnp.mean(z ** 2, axis=0), axis) + 1e-5)


def _check(name, z1, z2):
    if z1.shape != z2.shape or z1.ndim != 2:
        raise ValueError(f"{name} wants two arrays of one shape [b, D], got {z1.shape} and {z2.shape}")
