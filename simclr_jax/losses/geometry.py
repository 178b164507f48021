"""Where an encoder puts its rows: how close those of one example are, and how evenly all lie on the sphere."""
import jax.numpy as jnp
from jax import lax

from simclr_jax import dist
from simclr_jax.losses.running import OUT
from simclr_jax.losses.sweep import dot, sweep, wide
from simclr_jax.losses.unit import unit


def alignment(z1, z2, *, alpha=2, normalize=True):
    """How far apart rows of one example are (Wang & Isola 2020, arXiv:2005.10242, section 4.1).

        1/b sum_i |z1_i - z2_i|^alpha

    A figure to watch, and differentiable: a loss together with `uniformity`.

    Args:
      z1, z2: float[b, D], this shard's rows of the two views, row i of both from one example. Computed in f32 (f64 for
        f64), in O(b D).
      alpha: the exponent, a number or scalar array. Equal rows get no gradient.
      normalize: make rows unit length first (squared norm clamped at 1e-12).

    Returns:
      f32[]: the mean over this shard's rows; its `pmean` is that of the global batch.

    Raises:
      ValueError: the shapes are not one [b, D].

    >>> z1, z2 = jnp.array([[1., 0.], [0., 3.]]), jnp.array([[2., 0.], [1., 0.]])
    >>> float(alignment(z1, z2))  # the squared distances are 0 and 2
    1.0
    """
    if z1.shape != z2.shape or z1.ndim != 2:
        raise ValueError(f"alignment wants two arrays of one shape [b, D], got {z1.shape} and {z2.shape}")
    z1, z2 = (unit(z) if normalize else wide(z) for z in (z1, z2))
    squared = jnp.sum((z1 - z2) ** 2, axis=1)
    apart = squared > 0  # a power below 1 has no finite gradient at 0
    half = jnp.asarray(alpha, squared.dtype) / 2
    return jnp.mean(jnp.where(apart, jnp.where(apart, squared, 1) ** half, 0))


def uniformity(z, *, t=2, normalize=True, axis=None, comm="gather", block=None):
    """How evenly rows lie on the sphere (Wang & Isola 2020, arXiv:2005.10242, section 4.1); lower is more even.

        log 1/(B (B - 1)) sum_{i != j} exp(-t |z_i - z_j|^2)

    A figure to watch, and differentiable: a loss together with `alignment`.

    Args:
      z: float[b, D], this shard's rows. Computed in f32 (f64 for f64).
      t: a number or scalar array.
      normalize: make rows unit length first (squared norm clamped at 1e-12).
      axis: mesh axis whose shards hold the other rows of the batch; None if this is all of it.
      comm: how the other shards' rows are met: "gather" (one all-gather, O(B D) memory) or "ring" (blocks passed from
        device to device, O(b D)). Same value.
      block: candidates in one tile: O(b * block) memory, tiles recomputed in the backward pass. None: the
        whole matrix where it is small, else tiles of about 4 million pairs.

    Returns:
      f32[]: that of the global batch, the same on every shard, since the logarithm of a mean is no mean of logarithms;
      so its `pmean` over `axis` is itself, with the exact gradient.

    Raises:
      ValueError: z is not [b, D], or the batch has one row.

    >>> z = jnp.array([[1., 0.], [-1., 0.]])
    >>> float(uniformity(z))  # one squared distance, 4, and t = 2
    -8.0
    """
    if z.ndim != 2 or z.shape[0] * dist.size(axis) < 2:
        raise ValueError(f"uniformity wants two rows or more [b, D], got {z.shape} on {dist.size(axis)} shards")
    b = z.shape[0]
    z = unit(z) if normalize else wide(z)
    here = z, jnp.sum(z * z, axis=1), dist.rows(b, axis)
    near = sweep(_nearness, here, here, jnp.asarray(t, z.dtype), axis=axis, comm=comm, block=block)["lse"]["all"]  # [b]
    # Rows far apart have tiny terms, so those of all shards are added under the largest.
    top = lax.stop_gradient(jnp.max(near))
    top = top if axis is None else lax.pmax(top, axis)
    return top + jnp.log(dist.pmean(jnp.mean(jnp.exp(near - top)), axis)) - jnp.log(b * dist.size(axis) - 1)


def spread(z, *, axis=None):
    """Standard deviation of a coordinate of the unit-length rows, averaged over coordinates, times sqrt(D).

    0 if all rows are one, about 1 if directions are even. The figure by which SimSiam shows a collapse (Chen & He 2021,
    arXiv:2011.10566, section 4.1; there without the factor). A figure to watch, and differentiable.

    Args:
      z: float[b, D], this shard's rows; axis: mesh axis whose shards hold the others.

    Returns:
      f32[]: that of the global batch, the same on every shard.

    >>> float(spread(jnp.array([[2., 0.], [2., 0.]])))
    0.0
    """
    z = unit(z)
    mean = dist.pmean(jnp.mean(z, axis=0), axis)
    var = dist.pmean(jnp.mean((z - mean) ** 2, axis=0), axis)
    apart = var > 0  # the root has no finite gradient at 0
    return jnp.mean(jnp.where(apart, jnp.sqrt(jnp.where(apart, var, 1)), 0)) * z.shape[1] ** 0.5


def _nearness(rows, keys, t):
    (x, x_squared, x_id), (y, y_squared, y_id) = rows, keys
    squared = jnp.maximum(x_squared[:, None] + y_squared - 2 * dot(x, y), 0)
    return {"lse": {"all": jnp.where(x_id[:, None] == y_id, OUT, -t * squared)}}
