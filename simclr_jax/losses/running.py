"""The log-sum-exp of a matrix that is never whole: a running maximum, and sums of exponentials under it.

A state is (top, total) or, with the mean logit under the softmax, (top, total, weighted), each f32[rows].
"""
import jax.numpy as jnp
from jax import lax

OUT = -jnp.inf  # the logit of what is no candidate


def start(like, shape, means):
    """The state that has seen nothing. New arrays vary over the mesh as `like` does."""
    return tuple(lax.full_like(like, v, shape=shape) for v in ((OUT, 0, 0) if means else (OUT, 0)))


def see(state, x, dim=1):
    """Takes in logits x along `dim` (1: a state of rows; 0: of columns)."""
    top = lax.stop_gradient(jnp.maximum(state[0], x.max(axis=dim, initial=OUT)))
    shift = jnp.where(top == OUT, 0, top)  # cancels in the result, so no gradient need flow through it
    e = jnp.exp(x - jnp.expand_dims(shift, dim))
    shrink = jnp.exp(state[0] - shift)
    new = (top, state[1] * shrink + e.sum(axis=dim))
    if len(state) == 2:
        return new
    weighted = jnp.where(x == OUT, 0, x * e).sum(axis=dim)
    return (*new, lax.stop_gradient(state[2] * shrink + weighted))


def join(a, b):
    """The state that has seen what either has."""
    top = jnp.maximum(a[0], b[0])
    shift = jnp.where(top == OUT, 0, top)
    grow = jnp.exp(a[0] - shift), jnp.exp(b[0] - shift)
    return (top, *(x * grow[0] + y * grow[1] for x, y in zip(a[1:], b[1:])))


def finish(state):
    """(lse, {"max"[, "mean"]}); without candidates -inf, and a mean of 0."""
    top, total, *weighted = state
    empty = top == OUT
    total = jnp.where(empty, 1, total)
    lse = jnp.where(empty, OUT, jnp.where(empty, 0, top) + jnp.log(total))
    return lse, {"max": top} | ({"mean": weighted[0] / lax.stop_gradient(total)} if weighted else {})


def share(x, lse, dim=1):
    """The softmax of logits x under their log-sum-exp: 0 where there is no candidate, in a row or at all."""
    return jnp.exp(x - jnp.expand_dims(jnp.where(lse == OUT, 0, lse), dim))
