"""NT-Xent, the loss of SimCLR: the other view of an example among all other views of the batch."""
import jax.numpy as jnp

from simclr_jax.losses.views import entropy, geometry, stack


def nt_xent(z1, z2, *, temperature, normalize=True, axis=None, comm="gather", block=None, metrics=False):
    """Normalised temperature-scaled cross entropy (Chen et al. 2020, arXiv:2002.05709, equation 1 and algorithm 1).

    With z_1..z_2B the rows of both views of the whole batch and j(i) the other view of i's example:

        loss = 1/2B sum_i [ log sum_{k != i} exp(z_i.z_k / T) - z_i.z_j(i) / T ]

    This is the paper's mean over the 2B rows. The released TensorFlow code returns twice that.

    Args:
      z1, z2: float[b, D], this shard's rows of the two views, row i of both from one example. Computed in f32 (f64 for
        f64).
      temperature: T, a number or scalar array; differentiated if traced.
      normalize: make rows unit length first (squared norm clamped at 1e-12).
      axis: mesh axis whose shards hold the other rows of the batch; None if this is all of it.
      comm: how the other shards' rows are met: "gather" (one all-gather, O(B D) memory) or "ring" (blocks passed from
        device to device, O(b D)). Same value.
      block: side of a tile of the similarity matrix on one device, candidates in a tile on several; None: a good
        default. Tiles are made again in the backward pass. Memory and arithmetic: see `losses.others`.
      metrics: also return {"accuracy", "entropy", "positive", "negative", "alignment", "uniformity"}, from the same pass
        and without gradient: how often the positive is the nearest, the entropy (nats) of the softmax over candidates,
        the mean similarity (cosine, if normalised) of positives and of negatives, the mean squared distance of
        positives, and log mean exp(-2 |z_i - z_k|^2) over negatives (Wang and Isola 2020); `pmean` of each is that of
        the batch.

    Returns:
      f32[]: the mean over this shard's 2b rows; its `pmean` over `axis` is the loss of the global batch. With `metrics`,
      (f32[], {name: f32[]}).

    Raises:
      ValueError: shapes that differ or are not [b, D], or an unknown comm.

    >>> z = jnp.eye(4)
    >>> round(float(nt_xent(z, z, temperature=1.0)), 4)  # log(e + 6) - 1: one positive at 1, six negatives at 0
    1.1654
    """
    views = stack("nt_xent", z1, z2, temperature, normalize, axis, comm, block, metrics)
    positive, negatives = views.positive, views.negatives()
    lse = jnp.logaddexp(negatives["lse"], positive)
    loss = jnp.mean(lse - positive)
    return (loss, geometry(views, negatives) | entropy(positive, lse, negatives)) if metrics else loss
