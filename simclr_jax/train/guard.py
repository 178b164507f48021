"""Which steps are not to be taken, decided within the step, on replicated numbers, so alike on every device.

A step is skipped if its loss, its gradient, its update or anything it would leave in `extra` is not finite, or if the
gradient's norm is more than `spike` times its running mean. Then parameters, the optimiser's moments and `extra` stay
as they were; the step number, and every count in the optimiser that schedules follow, go on, so that a rate stays a
function of the step.
"""
from typing import NamedTuple

import jax
import jax.numpy as jnp

SPAN = 100  # steps that the running mean of gradient norms looks back
FIRST = 20  # steps taken before any is called a spike


class Guard(NamedTuple):
    """Kept in the state, as a resumed run must decide as an unbroken one does."""

    norm: jax.Array  # f32[], the running mean of the gradient norms of steps taken
    taken: jax.Array  # i32[], steps taken
    skipped: jax.Array  # i32[], steps skipped
    in_a_row: jax.Array  # i32[], of them, the latest ones


class Rule(NamedTuple):
    spike: float = 100.0  # a step whose gradient is so many times as long as usual is skipped; 0: never
    stop: int = 10  # after so many skipped steps in a row nothing is taken any more, and the loop stops; 0: never


def new() -> Guard:
    return Guard(jnp.float32(0), jnp.int32(0), jnp.int32(0), jnp.int32(0))


def judge(rule: Rule, guard: Guard, loss, norm, update, extra):
    """(bool[] whether the step is taken, the Guard after it). 

    loss, norm, update: f32[], of this step, its gradient's norm and its update's; extra: as it would be.
    """
    good = jnp.isfinite(loss) & jnp.isfinite(norm) & jnp.isfinite(update)
    for leaf in jax.tree.leaves(extra):
        if jnp.issubdtype(leaf.dtype, jnp.inexact):
            good &= jnp.all(jnp.isfinite(leaf))
    if rule.spike:
        good &= (guard.taken < FIRST) | (guard.norm == 0) | (norm <= rule.spike * guard.norm)
    if rule.stop:  # a step that was under way when the loop learnt of the last one changes nothing
        good &= guard.in_a_row < rule.stop
    share = 1.0 / jnp.minimum(guard.taken + 1, SPAN).astype(jnp.float32)
    bad = 1 - good.astype(jnp.int32)
    return good, Guard(jnp.where(good, guard.norm + share * (norm - guard.norm), guard.norm), guard.taken + 1 - bad,
                       guard.skipped + bad, bad * (guard.in_a_row + 1))


def take(good, new, old, *, counts: bool = False):
    """The tree `new` if the step is good, else `old`. counts: whole numbers, which count steps, are new either way."""
    def either(n, o):
        return n if counts and not jnp.issubdtype(n.dtype, jnp.inexact) else jnp.where(good, n, o)
    return jax.tree.map(either, new, old)
