"""Losses of two views that treat negatives otherwise than NT-Xent: decoupled, debiased, hard."""
import jax.numpy as jnp
from jax import lax

from simclr_jax import dist
from simclr_jax.losses.views import entropy, geometry, stack


def dcl(z1, z2, *, temperature, sigma=None, normalize=True, axis=None, comm="gather", block=None, metrics=False):
    """Decoupled contrastive loss: the positive is left out of the denominator (Yeh et al. 2022, arXiv:2110.06848).

        loss = 1/2B sum_i [ log sum_{k not in (i, j(i))} exp(z_i.z_k / T) - w_i z_i.z_j(i) / T ]

    with w_i = 1 or, given sigma, that of DCLW, 2 - exp(z_i.z_j / sigma) / mean_k exp(z_k.z_j(k) / sigma), no gradient.

    Args:
      z1, z2, temperature, normalize, axis, comm, block: as in `nt_xent`, of whose cost this is.
      sigma: of the weights of DCLW, 0.5 in the paper; None: no weights.
      metrics: also return what `nt_xent` does.

    Returns:
      f32[]: the mean over this shard's 2b rows; its `pmean` over `axis` is the loss of the global batch. With
      `metrics`, (f32[], {name: f32[]}).

    Raises:
      ValueError: shapes that differ or are not [b, D], or an unknown comm.

    >>> z = jnp.eye(2)
    >>> round(float(dcl(z, z, temperature=1.0)), 4)  # log 2 - 1: two negatives at 0, the positive at 1
    -0.3069
    """
    views = stack("dcl", z1, z2, temperature, normalize, axis, comm, block, metrics)
    positive, negatives = views.positive, views.negatives()
    weight = 1.0
    if sigma is not None:
        share = jnp.exp(lax.stop_gradient(views.similarity) / sigma)
        weight = jnp.tile(2 - share / dist.pmean(share.mean(), axis), 2)
    loss = jnp.mean(negatives["lse"] - weight * positive)
    if not metrics:
        return loss
    return loss, geometry(views, negatives) | entropy(positive, jnp.logaddexp(negatives["lse"], positive), negatives)


def debiased(z1, z2, *, temperature, tau_plus, normalize=True, axis=None, comm="gather", block=None, metrics=False):
    """Debiased contrastive loss: corrects for negatives that are of the anchor's own class (Chuang et al. 2020,
    arXiv:2007.00224).

        loss = 1/2B sum_i -log e^(s_ij) / (e^(s_ij) + N g_i),    s = z.z / T, j = j(i), N = 2B - 2
        N g_i = max( (sum_{k not in (i, j)} e^(s_ik) - tau_plus N e^(s_ij)) / (1 - tau_plus), N e^(-1/T) )

    Args:
      z1, z2, temperature, normalize, axis, comm, block: as in `nt_xent`, of whose cost this is. The floor e^(-1/T) is the
        least for rows of unit length.
      tau_plus: the chance of a negative being of the anchor's class, 0.1 in the paper; 0 is NT-Xent.
      metrics: also return what `nt_xent` does, but the entropy.

    Returns:
      f32[]: the mean over this shard's 2b rows; its `pmean` over `axis` is the loss of the global batch. With
      `metrics`, (f32[], {name: f32[]}).

    Raises:
      ValueError: shapes that differ or are not [b, D], or an unknown comm.

    >>> z = jnp.eye(2)
    >>> round(float(debiased(z, z, temperature=1.0, tau_plus=0.1)), 4)  # log(1 + (2 - 0.2 e) / 0.9 / e)
    0.4671
    """
    views = stack("debiased", z1, z2, temperature, normalize, axis, comm, block, metrics)
    negatives = views.negatives()
    loss = _corrected(views, negatives["lse"], tau_plus)
    return (loss, geometry(views, negatives)) if metrics else loss


def hard_negative(z1, z2, *, temperature, beta, tau_plus, normalize=True, axis=None, comm="gather", block=None,
                  metrics=False):
    """Hard-negative contrastive loss: negatives weigh by exp(beta s), more the nearer (Robinson et al. 2021,
    arXiv:2010.04592), with the correction of `debiased`, in which the sum over negatives becomes

        sum_k w_k e^(s_ik) / mean_k w_k,    w_k = e^(beta s_ik)

    a quotient of two sums of exponentials at scales (1 + beta) / T and beta / T.

    Args:
      z1, z2, temperature, tau_plus, normalize, axis, comm, block: as in `debiased`. Costs two of it.
      beta: concentration, 1 in the paper (0.5 to 2); 0 is `debiased`.
      metrics: also return what `nt_xent` does, but the entropy.

    Returns:
      f32[]: the mean over this shard's 2b rows; its `pmean` over `axis` is the loss of the global batch. With
      `metrics`, (f32[], {name: f32[]}).

    Raises:
      ValueError: shapes that differ or are not [b, D], or an unknown comm.

    >>> z = jnp.eye(2)
    >>> round(float(hard_negative(z, z, temperature=1.0, beta=1.0, tau_plus=0.0)), 4)  # equal negatives: log(1 + 2 / e)
    0.5514
    """
    views = stack("hard_negative", z1, z2, temperature, normalize, axis, comm, block, metrics)
    sharp, weights = views.negatives(1 + beta), views.negatives(beta)
    count = jnp.log(_count(views))
    loss = _corrected(views, sharp["lse"] - weights["lse"] + count, tau_plus)
    return (loss, geometry(views, sharp | {"max": sharp["max"] / (1 + beta)})) if metrics else loss


def _count(views):
    return max(views.z.shape[0] * dist.size(views.how["axis"]) - 2, 1) * 1.0


def _corrected(views, lse, tau_plus):
    """The loss from lse, the log of the sum over negatives, less what tau_plus says are none."""
    positive, count = views.positive, _count(views)
    # log of what share of the sum to take away; beyond all of it the floor holds, and no gradient may pass here.
    away = positive - lse + jnp.log(tau_plus * count)
    some = away < 0
    left = lse + jnp.where(some, jnp.log1p(-jnp.exp(jnp.where(some, away, -1.0))), 0) - jnp.log(1.0 - tau_plus)
    floor = jnp.log(count) - views.scale
    left = jnp.where(some & (left > floor), left, floor)
    return jnp.mean(jnp.logaddexp(left, positive) - positive)
