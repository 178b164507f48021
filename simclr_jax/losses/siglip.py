"""SigLIP: every image with every text is a yes-or-no question of its own."""
import functools

import jax
import jax.numpy as jnp
from jax import lax

from simclr_jax import dist
from simclr_jax.losses.pairs import cut, everyone, meet
from simclr_jax.losses.running import OUT
from simclr_jax.losses.sweep import check_comm, dot, wide
from simclr_jax.losses.unit import unit


def siglip(image, text, *, scale, bias, normalize=True, axis=None, comm="ring", block=None, metrics=False):
    """Sigmoid loss of image-text pairs (Zhai et al. 2023, arXiv:2303.15343, algorithm 1).

    With x_i, y_k the B pairs of the whole batch and s_ik = scale x_i.y_k + bias:

        loss = 1/B [ sum_i softplus(-s_ii) + sum_{i != k} softplus(s_ik) ]

    so a sum over texts and a mean over images. The sign of the bias is that of the paper's algorithm 1 and of released
    code, not of its equation.

    Args:
      image, text: float[b, D], this shard's pairs, row by row. Computed in f32 (f64 for f64).
      scale: the inverse temperature, exp of the parameter that SigLIP learns (10 at first); bias: -10 at first. Numbers or
        scalar arrays, differentiated.
      normalize: make rows unit length first (squared norm clamped at 1e-12).
      axis: mesh axis whose shards hold the other pairs of the batch; None if this is all of it.
      comm: how the other shards' texts are met: "ring" (passed from device to device, O(b D) memory; their gradient comes
        home by a second round) or "gather" (one all-gather, O(B D), and a reduce-scatter). Images stay. Same value.
      block: side of a tile of the similarity matrix; None: a good default. Beyond embeddings and gradients memory is
        O(block^2). Arithmetic, in products of b x B x D: three in all on one device, where the gradient needs no
        normaliser and is made in the forward pass; one, and three for the gradient, on several, whose cotangents may differ.
      metrics: also return {"accuracy", "positive", "negative"} under `stop_gradient`: how often an image's own text is the
        nearest, the mean similarity (cosine, if normalised) of pairs and of what is no pair; means over this shard's rows.

    Returns:
      f32[]: the mean over this shard's images; its `pmean` over `axis` is the loss of the global batch. With `metrics`,
      (f32[], {name: f32[]}).

    Raises:
      ValueError: shapes that differ or are not [b, D], or an unknown comm.

    >>> z = jnp.eye(2)
    >>> round(float(siglip(z, z, scale=1.0, bias=0.0)), 4)  # log(1 + 1/e) for the pair and log 2 for the other text
    1.0064
    """
    if image.shape != text.shape or image.ndim != 2:
        raise ValueError(f"siglip wants two arrays of one shape [b, D], got {image.shape} and {text.shape}")
    check_comm(comm)
    image, text = (unit(x) if normalize else wide(x) for x in (image, text))
    scale, bias = dist.varying((jnp.asarray(scale, image.dtype), jnp.asarray(bias, image.dtype)), axis)
    negatives, top = _negatives(axis, comm, block, metrics, image, text, scale, bias)
    b = image.shape[0]
    similarity = jnp.sum(image * text, axis=1)
    loss = (jnp.sum(jax.nn.softplus(-(scale * similarity + bias))) + negatives) / b
    if not metrics:
        return loss
    image, text, top, similarity = lax.stop_gradient((image, text, top, similarity))
    every = jnp.sum(image.sum(axis=0) * dist.psum(text.sum(axis=0), axis))  # by the sum of all texts, no matrix
    return loss, {
        "accuracy": jnp.mean((similarity > top).astype(jnp.float32)),
        "positive": jnp.mean(similarity),
        "negative": (every - jnp.sum(similarity)) / max(b * (b * dist.size(axis) - 1), 1)}


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def _negatives(axis, comm, block, metrics, image, text, scale, bias):
    """Sum of softplus(s) over this shard's images and all texts but their own; the largest similarity [b] of those."""
    rows, (text, ids, ring) = _rows(image, axis, block), everyone(text, axis, comm)

    def tile(rows, seen, keys, found, out):
        s = dot(rows["z"], keys["z"])
        x = scale * s + bias
        return _see(seen, s, x, jnp.exp(-abs(x)), out), found
    seen = _seen(rows["z"], metrics)
    seen, _ = meet(tile, rows, seen, {"z": text, "id": ids}, lambda n: (), lambda a, b: (), axis=ring, block=block)
    return _done(seen, image.shape[0])


def _forward(axis, comm, block, metrics, image, text, scale, bias):
    if axis is not None:
        out = _negatives(axis, comm, block, metrics, image, text, scale, bias)
        return out, (image, text, scale, bias)
    seen, grads = _gradients(axis, comm, block, metrics, image, text, scale, bias)
    return _done(seen, image.shape[0]), grads


def _backward(axis, comm, block, metrics, saved, g):
    if axis is None:
        return jax.tree.map(lambda x: g[0] * x, saved)
    # Texts meet cotangents of other shards, so their gradients could not be made before these are known.
    return _gradients(axis, comm, block, False, *saved, g[0])[1]


_negatives.defvjp(_forward, _backward)


def _gradients(axis, comm, block, metrics, image, text, scale, bias, g=1.0):
    """(what images have seen, g times the gradients of the sum)"""
    rows, (text, ids, ring) = _rows(image, axis, block), everyone(text, axis, comm)
    z = rows["z"]
    rows["turned"] = jnp.swapaxes(z, 1, 2)

    def tile(rows, state, keys, d_keys, out):
        seen, d_rows, d_bias = state
        s = dot(rows["z"], keys["z"])
        x = scale * s + bias
        e = jnp.exp(-abs(x))  # one exponential for loss and gradient
        p = jnp.where(out, 0, g * jnp.where(x >= 0, 1, e) / (1 + e))
        seen = _see(seen, s, x, e, out)
        state = seen, d_rows + jnp.matmul(p, keys["z"], precision="highest"), d_bias + p.sum()
        # Keys' gradients are kept turned, [D, keys]: on CPUs the product p.T @ z is three times as slow.
        return state, d_keys + jnp.matmul(rows["turned"], p, precision="highest")
    state = _seen(z, metrics), jnp.zeros_like(z), jnp.zeros_like(z[:, 0, 0])
    (seen, d_image, d_bias), d_text = meet(
        tile, rows, state, {"z": text, "id": ids}, lambda n: lax.full_like(z, 0, shape=(z.shape[2], *n)), jnp.add,
        axis=ring, block=block, home=jnp.transpose)
    if comm == "gather":
        d_text = dist.psum_scatter(d_text, axis)
    d_image = d_image.reshape(-1, z.shape[2])[:image.shape[0]]
    return seen, (scale * d_image, scale * d_text, jnp.sum(d_image * image), jnp.sum(d_bias))


def _rows(image, axis, block):
    return {"z": cut(image, block), "id": cut(dist.rows(image.shape[0], axis), block)}


def _seen(z, metrics):
    """Per image, the sum of softplus and, for metrics, the largest similarity; [tiles, side] as `cut` makes of [b]."""
    return {"sum": jnp.zeros_like(z[..., 0])} | ({"top": jnp.full_like(z[..., 0], OUT)} if metrics else {})


def _see(seen, s, x, e, out):
    """Takes in a tile of similarities s and logits x, with e = exp(-|x|): softplus(x) = max(x, 0) + log(1 + e)."""
    new = {"sum": seen["sum"] + jnp.where(out, 0, jnp.maximum(x, 0) + jnp.log1p(e)).sum(axis=1)}
    return new | ({"top": jnp.maximum(seen["top"], jnp.where(out, OUT, s).max(axis=1))} if "top" in seen else {})


def _done(seen, b):
    return jnp.sum(seen["sum"].reshape(-1)[:b]), seen["top"].reshape(-1)[:b] if "top" in seen else ()
