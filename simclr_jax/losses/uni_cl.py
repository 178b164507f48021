"""UniCL: CLIP where the texts of all images of a class are positives."""
import jax
import jax.numpy as jnp

from simclr_jax import dist
from simclr_jax.losses.sup_con import classes, to_positives
from simclr_jax.losses.unit import unit


def uni_cl(image, text, labels, *, scale, text_labels=None, normalize=True, axis=None, comm="gather", block=None,
           metrics=False):
    """Contrastive loss in image, text and label space (Yang et al. 2022, arXiv:2204.03610, equations 1 to 3).

    With u_i and v_j the images and texts of the whole batch, P(i) the texts of image i's label, and Q(j) the images of
    text j's label:

        i2t = mean_i 1/|P(i)| sum_{p in P(i)} [ log sum_j exp(scale u_i.v_j) - scale u_i.v_p ]
        t2i = mean_j 1/|Q(j)| sum_{q in Q(j)} [ log sum_i exp(scale u_i.v_j) - scale u_q.v_j ]
        loss = (i2t + t2i) / 2

    The paper adds the directions without halving; half is CLIP's convention, so that with all labels different this is
    CLIP's loss.

    Args:
      image, text: float[b, D], this shard's rows, row i of both from one pair. Any float dtype: everything is computed
        in f32 (in f64 for f64 input).
      labels: int[b], the pairs' classes; below 0 is unlabelled, with only its own pair as positive.
      scale: the inverse temperature, exp of what is learned; a number or scalar array.
      text_labels: int[b], the texts' classes where they are not those of the images; `labels` then are the images'. The
        two of one pair are always positives of each other.
      normalize: make rows unit length first (squared norm clamped at 1e-12).
      axis: mesh axis whose shards hold the other rows of the batch; None if this is all of it.
      comm: how the other shards' rows are met, in both directions: "gather" (all-gathers, O(B D) memory) or "ring"
        (O(b D)). Same value.
      block: candidates in a tile, for O(b * block) memory; tiles are computed again in the backward pass. None: all at
        once where they are few, see `sweep`.
      metrics: also return {"accuracy", "entropy", "positive", "negative"} under `stop_gradient`: how often the nearest
        candidate is a positive, the entropy (nats) of the softmax over candidates, the mean similarity (cosine, if
        normalised) over all positive and over all negative pairs; means of both directions.

    For B rows in all, a shard multiplies O(b B D) in each direction.

    Returns:
      f32[]: the mean over this shard's b rows; its `pmean` over `axis` is the loss of the global batch. With `metrics`,
      (f32[], {name: f32[]}).

    Raises:
      ValueError: shapes that do not fit, labels that are no integers.

    >>> z = jnp.eye(2)
    >>> round(float(uni_cl(z, z, jnp.array([3, 3]), scale=1.0)), 4)  # log(e + 1) - (1 + 0)/2: both texts are positives
    0.8133
    """
    if image.shape != text.shape or image.ndim != 2:
        raise ValueError(f"uni_cl wants image and text of one shape [b, D], got {image.shape} and {text.shape}")
    ids = dist.rows(len(image), axis)

    def tower(x, labels):
        return {"z": unit(x) if normalize else x, "id": ids, "label": classes("uni_cl", labels, ids)}
    image, text = tower(image, labels), tower(text, labels if text_labels is None else text_labels)
    scale = jnp.asarray(scale, jnp.promote_types(image["z"].dtype, jnp.float32))
    ways = [to_positives(rows, keys, scale, own=True, axis=axis, comm=comm, block=block, metrics=metrics)
            for rows, keys in ((image, text), (text, image))]
    loss = sum(jnp.mean(each) for each, _, _ in ways) / 2
    return (loss, jax.tree.map(lambda a, b: (a + b) / 2, *(report for _, _, report in ways))) if metrics else loss
