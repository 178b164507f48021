"""CLIP: each image's text among all texts of the batch, and each text's image among all images."""
import functools

import jax
import jax.numpy as jnp
from jax import lax

from simclr_jax import dist
from simclr_jax.losses import running
from simclr_jax.losses.pairs import cut, everyone, meet
from simclr_jax.losses.running import OUT
from simclr_jax.losses.sweep import DENSE, check_comm, dot, wide
from simclr_jax.losses.unit import unit
from simclr_jax.losses.views import entropy


def clip(image, text, *, scale, normalize=True, axis=None, comm="gather", block=None, metrics=False):
    """Symmetric contrastive loss of image-text pairs (Radford et al. 2021, arXiv:2103.00020, figure 3).

    With x_i, y_i the B pairs of the whole batch and s_ik = scale x_i.y_k:

        loss = 1/2B sum_i [ log sum_k exp(s_ik) + log sum_k exp(s_ki) - 2 s_ii ]

    Both directions come from one pass over the tiles of s; the texts' results go home to their shards.

    Args:
      image, text: float[b, D], this shard's pairs, row by row. Computed in f32 (f64 for f64).
      scale: the inverse temperature, exp of the parameter that CLIP learns; a number or scalar array, differentiated.
      normalize: make rows unit length first (squared norm clamped at 1e-12).
      axis: mesh axis whose shards hold the other pairs of the batch; None if this is all of it.
      comm: how the other shards' texts are met: "gather" (one all-gather, O(B D) memory, and a reduce-scatter of their
        gradient) or "ring" (passed from device to device with what is found for them, O(b D)). Images stay. Same value.
      block: side of a tile of the similarity matrix; None: a good default. Beyond embeddings and gradients memory is
        O(block^2). Arithmetic, in products of b x B x D: one, and three for the gradient, which makes tiles again.
      metrics: also return {"accuracy", "entropy", "positive", "negative"} under `stop_gradient`: how often the other
        half of the pair is the nearest, the entropy (nats) of the softmax (both means of the two directions), the mean
        similarity (cosine, if normalised) of pairs and of what is no pair; means over this shard's rows.

    Returns:
      f32[]: the mean over this shard's pairs; its `pmean` over `axis` is the loss of the global batch. With `metrics`,
      (f32[], {name: f32[]}).

    Raises:
      ValueError: shapes that differ or are not [b, D], or an unknown comm.

    >>> z = jnp.eye(2)
    >>> round(float(clip(z, z, scale=1.0)), 4)  # log(e + 1) - 1: the pair at 1, one rival at 0, both ways
    0.3133
    """
    if image.shape != text.shape or image.ndim != 2:
        raise ValueError(f"clip wants two arrays of one shape [b, D], got {image.shape} and {text.shape}")
    check_comm(comm)
    image, text = (unit(x) if normalize else wide(x) for x in (image, text))
    scale = dist.varying(jnp.asarray(scale, image.dtype), axis)
    if axis is None and block is None and image.shape[0] ** 2 <= DENSE:
        rivals, extra = _whole(metrics, image, text, scale)
    else:
        rivals, extra = _rivals(axis, comm, block, metrics, image, text, scale)
    similarity = jnp.sum(image * text, axis=1)
    positive = scale * similarity
    lse = jnp.logaddexp(rivals, positive)  # [2, b]: of images over texts, of texts over images
    loss = jnp.mean(lse - positive)
    if not metrics:
        return loss
    image, text, extra, similarity = lax.stop_gradient((image, text, extra, similarity))
    b = len(image)
    every = jnp.sum(image.sum(axis=0) * dist.psum(text.sum(axis=0), axis))  # by the sum of all texts, no matrix
    return loss, entropy(positive, lse, extra) | {
        "accuracy": jnp.mean((scale * similarity > extra["max"]).astype(jnp.float32)),
        "positive": jnp.mean(similarity),
        "negative": (every - jnp.sum(similarity)) / max(b * (b * dist.size(axis) - 1), 1)}


def _whole(metrics, image, text, scale):
    """`_rivals` with the matrix kept for the gradient: quicker while it fits caches."""
    b = image.shape[0]
    s = jnp.where(jnp.eye(b, dtype=bool), OUT, scale * dot(image, text))
    done = [running.finish(running.see(running.start(s, (b,), metrics), s, dim=dim)) for dim in (1, 0)]
    extra = {k: jnp.stack([extra[k] for _, extra in done]) for k in done[0][1]}
    return jnp.stack([lse for lse, _ in done]), extra if metrics else {}


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def _rivals(axis, comm, block, metrics, image, text, scale):
    """Log-sum-exp over all that is not the pair, f32[2, b]; metrics: {"max", "mean"} of the same, without gradient."""
    return _forward(axis, comm, block, metrics, image, text, scale)[0]


def _forward(axis, comm, block, metrics, image, text, scale):
    b = image.shape[0]

    def tile(rows, seen, keys, found, out):
        s = jnp.where(out, OUT, dot(rows["z"], keys["z"]))
        return running.see(seen, s, dim=1), running.see(found, s, dim=0)
    rows = {"z": cut(scale * image, block), "id": cut(dist.rows(b, axis), block)}
    start = lambda shape: running.start(rows["z"], shape, metrics)
    text, ids, ring = everyone(text, axis, comm)
    seen, found = meet(tile, rows, start(rows["id"].shape), {"z": text, "id": ids}, start, running.join, axis=ring,
                       block=block)
    if comm == "gather" and axis is not None:
        parts = dist.exchange(jnp.stack(found), axis)  # [shards, 2 or 3, b]: what each shard found for this one's texts
        found = functools.reduce(running.join, [tuple(p) for p in parts])
    seen = tuple(x.reshape(-1)[:b] for x in seen)
    (lse_image, of_image), (lse_text, of_text) = running.finish(seen), running.finish(found)
    lse = jnp.stack([lse_image, lse_text])
    extra = {k: jnp.stack([of_image[k], of_text[k]]) for k in of_image} if metrics else {}
    return (lse, extra), (image, text, scale, lse)


def _backward(axis, comm, block, metrics, saved, g):
    image, text, scale, lse = saved
    b = image.shape[0]
    g = jnp.where(lse == OUT, 0, g[0])
    lse = jnp.where(lse == OUT, 0, lse)

    def tile(rows, d_rows, keys, d_keys, out):
        s = scale * dot(rows["z"], keys["z"])
        p = jnp.exp(s - rows["lse"][:, None]) * rows["g"][:, None] + jnp.exp(s - keys["lse"]) * keys["g"]
        p = jnp.where(out, 0, p)
        # Keys' gradients are kept turned, [D, keys]: on CPUs the product p.T @ z is three times as slow.
        return (d_rows + jnp.matmul(p, keys["z"], precision="highest"),
                d_keys + jnp.matmul(rows["turned"], p, precision="highest"))
    z = cut(image, block)
    rows = {"z": z, "turned": jnp.swapaxes(z, 1, 2), "id": cut(dist.rows(b, axis), block), "lse": cut(lse[0], block),
            "g": cut(g[0], block)}
    of_text, ids, ring = everyone(jnp.stack([lse[1], g[1]], axis=1), axis, comm)
    keys = {"z": text, "id": ids, "lse": of_text[:, 0], "g": of_text[:, 1]}
    d_image, d_text = meet(tile, rows, jnp.zeros_like(z), keys, lambda n: lax.full_like(z, 0, shape=(z.shape[2], *n)),
                           jnp.add, axis=ring, block=block, home=jnp.transpose)
    if comm == "gather":
        d_text = dist.psum_scatter(d_text, axis)
    d_image = d_image.reshape(-1, z.shape[2])[:b]
    return scale * d_image, scale * d_text, jnp.sum(d_image * image)


_rivals.defvjp(_forward, _backward)
