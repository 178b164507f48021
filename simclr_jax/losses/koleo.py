"""KoLeo: rows that keep their distance from their nearest neighbour, and so spread over the sphere."""
import jax.numpy as jnp
from jax import lax

from simclr_jax import dist
from simclr_jax.losses.running import OUT
from simclr_jax.losses.sweep import check_comm, dot, over, tile_of, wide
from simclr_jax.losses.unit import unit


def koleo(x, *, eps=1e-8, normalize=True, axis=None, comm="gather", block=None, metrics=False):
    """Kozachenko-Leonenko estimate of entropy, negated (KoLeo, Sablayrolles et al. 2019, arXiv:1806.03198).

        loss = -1/B sum_i log(d_i + eps),  d_i = |x_i - x_n(i) + eps|

    with x_n(i) the nearest of the other rows of the global batch, the one with the lowest number if several are. The
    gradient flows through both rows. eps enters as in the code of DINOv2 (arXiv:2304.07193), which takes neighbours
    within one device, the form that `axis=None` gives.

    Args:
      x: float[b, D], this shard's rows. Computed in f32 (f64 for f64).
      eps: positive; keeps logarithm and gradient of equal rows finite, if large.
      normalize: make rows unit length first (squared norm clamped at 1e-12).
      axis: mesh axis whose shards hold the other rows of the batch; None if this is all of it.
      comm: how the other shards' rows are met: "gather" (one all-gather, O(B D) memory) or "ring" (blocks passed from
        device to device, O(b D), twice: to find the neighbours and to fetch them). Same value.
      block: candidates in one tile of the search: O(b * block) memory. None: about as many as make 4 million pairs.
      metrics: also return {"distance"} under `stop_gradient`: the mean distance to the nearest neighbour.

    The search is one product of b x D by D x B and has no backward pass; all else is O(b D).

    Returns:
      f32[]: the mean over this shard's rows; its `pmean` over `axis` is the loss of the global batch. With `metrics`,
      (f32[], {name: f32[]}).

    Raises:
      ValueError: x is not [b, D], or the batch has one row.

    >>> x = jnp.array([[1., 0.], [0., 1.], [-1., 0.]])
    >>> round(float(koleo(x)), 4)  # every row has its nearest at sqrt(2): -log(2) / 2
    -0.3466
    """
    if x.ndim != 2 or x.shape[0] * dist.size(axis) < 2:
        raise ValueError(f"koleo wants two rows or more [b, D], got {x.shape} on {dist.size(axis)} shards")
    check_comm(comm)
    u = unit(x) if normalize else wide(x)
    near = _take(u, _nearest(lax.stop_gradient(u), axis, comm, block), axis, comm)
    distance = jnp.sqrt(jnp.sum((u - near + eps) ** 2, axis=1))
    loss = -jnp.mean(jnp.log(distance + eps))
    return (loss, {"distance": lax.stop_gradient(jnp.mean(distance))}) if metrics else loss


def _nearest(u, axis, comm, block):
    """i32[b], the number of each row's nearest other row of the global batch; the lowest of equals."""
    ids = dist.rows(len(u), axis)
    # x.k - |k|^2 / 2 is largest where |x - k| is smallest, of unit length or not.
    keys = u, jnp.sum(u * u, axis=1) / 2, ids
    if comm == "gather":
        keys, axis = dist.all_gather(keys, axis), None

    def visit(best, keys, valid):
        keys, half, key_ids = keys
        candidate = ids[:, None] != key_ids
        candidate = candidate if valid is None else candidate & valid
        score = jnp.where(candidate, dot(u, keys) - half, OUT)
        at = score.argmax(axis=1)
        score, found = score.max(axis=1), key_ids[at]
        # Blocks come in another order on every device of a ring, so order does not decide between equals.
        better = (score > best[0]) | ((score == best[0]) & (found < best[1]))
        return jnp.where(better, score, best[0]), jnp.where(better, found, best[1])

    best = lax.full_like(u, OUT, shape=ids.shape), lax.full_like(u, jnp.iinfo(ids.dtype).max, ids.dtype, ids.shape)
    return over(keys, visit, best, axis=axis, block=tile_of(block, len(u)))[1]


def _take(x, ids, axis, comm):
    """The rows of the global array that have the numbers `ids`; gradients go back to the shards they came from."""
    if comm == "gather":
        return dist.all_gather(x, axis)[ids]

    def visit(taken, keys, _):
        rows, numbers = keys
        place = ids - numbers[0]
        here = (place >= 0) & (place < len(rows))
        return jnp.where(here[:, None], rows[jnp.clip(place, 0, len(rows) - 1)], taken)
    return over((x, dist.rows(len(x), axis)), visit, jnp.zeros_like(x), axis=axis, block=len(x))
