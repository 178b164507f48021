"""The parts of an optimiser that optax does not have as recipes want them, as optax transformations."""
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax

from simclr_jax.train import rules

BLOCK = r"(^|.*/)stack/block(\d+)/"  # a block of a transformer, as `nets/transformer` names it
BLOCKS = r"(^|.*/)stack/blocks/"  # all of them, scanned: layers are the leading axis
BEFORE = r"(patches|tokens|types|positions|class_token|mask_token|registers|norm_pre)/"  # what comes before the first block


def decay(weight_decay: float, decay_rules, schedule=None):
    """Adds weight_decay * factor * p. schedule: step -> weight decay in its place."""
    if schedule is None:
        def update(updates, params):
            factors = rules.by_rule(decay_rules, params)
            return jax.tree.map(lambda u, p, f: u + (weight_decay * f) * p, updates, params, factors)
        return optax.stateless(update) if weight_decay else optax.identity()

    def scheduled(updates, count, params):
        now = schedule(count)
        added = jax.tree.map(lambda u, p, f: u + now * f * p, updates, params, rules.by_rule(decay_rules, params))
        return added, count + 1
    return optax.GradientTransformation(lambda params: jnp.int32(0), scheduled)


def scale(rate_rules):
    """Multiplies updates by the factors of the rules."""
    return optax.stateless(lambda updates, params: jax.tree.map(jnp.multiply, updates, rules.by_rule(rate_rules, updates)))


def rated(rate, top: float, steady):
    """Updates times -rate(step), but times -top where a regex of `steady` is found."""
    if not steady:
        return optax.scale_by_learning_rate(rate)
    held = lambda params: rules.by_name(params, lambda name: rules.found(steady, name))
    moving = lambda params: rules.by_name(params, lambda name: not rules.found(steady, name))
    return optax.chain(optax.masked(optax.scale_by_learning_rate(rate), moving),
                       optax.masked(optax.scale_by_learning_rate(top), held))


def layers(factor: float):
    """Multiplies updates in a transformer of L blocks by factor^(L + 1 - l): l is 0 for what comes before the blocks, the
    block's number in it, and L + 1 behind it and elsewhere (BEiT, Bao et al. 2022, arXiv:2106.08254; dinov2
    utils/param_groups.py)."""
    def update(updates, params):
        flat = rules.named(updates)
        depth = {}
        for name, leaf in flat:
            if block := re.match(BLOCK, name):
                depth[block[1]] = max(depth.get(block[1], 0), int(block[2]))
            elif block := re.match(BLOCKS, name):
                depth[block[1]] = len(leaf)

        def of(name, leaf):
            if block := re.match(BLOCK, name):
                return factor ** (depth[block[1]] + 1 - int(block[2]))
            if block := re.match(BLOCKS, name):
                powers = factor ** np.arange(len(leaf), 0.0, -1.0)
                return jnp.asarray(powers.reshape(-1, *[1] * (leaf.ndim - 1)), leaf.dtype)
            tower = next((t for t in depth if re.match(re.escape(t) + BEFORE, name)), None)
            return 1.0 if tower is None else factor ** (depth[tower] + 1)
        return jax.tree.unflatten(jax.tree.structure(updates), [leaf * of(name, leaf) for name, leaf in flat])
    return optax.stateless(update)


def clip_each(limit: float):
    """Shortens each tensor's gradient to `limit` (dino utils.py clip_gradients, with its 1e-6)."""
    def update(updates, params):
        return jax.tree.map(lambda g: g * jnp.minimum(limit / (jnp.linalg.norm(g.ravel()) + 1e-6), 1.0), updates)
    return optax.stateless(update)


def held(tx, until):
    """`tx`, whose state for parameters under the rules `until`, (regex, steps), starts only after so many steps.

    As if these had had no gradient before, so that averages and their corrections begin when they do.
    """
    if not until:
        return tx
    length = lambda name: rules.first((*until, (".*", 0)), name)[1]
    parts = [optax.masked(tx, lambda params: rules.by_name(params, lambda name: length(name) == 0))]
    for n in sorted({n for _, n in until} - {0}):
        now = lambda params, n=n: rules.by_name(params, lambda name: length(name) == n)
        parts.append(optax.masked(_later(tx, n), now))
    return optax.chain(*parts)


def _later(tx, n):
    def update(updates, state, params=None):
        count, inner = state
        new, after = tx.update(updates, inner, params)
        choose = lambda a, b: jax.tree.map(lambda a, b: jnp.where(count >= n, a, b), a, b)
        return choose(new, jax.tree.map(jnp.zeros_like, new)), (count + 1, choose(after, inner))
    return optax.GradientTransformation(lambda params: (jnp.int32(0), tx.init(params)), update)


def still(until):
    """No update for parameters under the rules `until`, (regex, steps), in so many first steps."""
    def update(updates, count, params=None):
        steps = rules.by_rule((*until, (".*", 0)), updates, int)
        return jax.tree.map(lambda u, n: jnp.where(count >= n, u, 0), updates, steps), count + 1
    return optax.GradientTransformation(lambda params: jnp.int32(0), update)


def unit(regexes):
    """Brings rows of the parameters found back to unit length after each update (SwAV's prototypes)."""
    def update(updates, params):
        def row(found, u, p):
            new = p + u
            return new / jnp.maximum(jnp.linalg.norm(new, axis=-1, keepdims=True), 1e-12) - p if found else u
        return jax.tree.map(row, rules.by_name(params, lambda name: rules.found(regexes, name)), updates, params)
    return optax.stateless(update)


def of_bounds(bounds, name):
    """The (regex, least, most) that a parameter is kept by, or None."""
    return next((tuple(rule) for rule in bounds if re.search(rule[0], name)), None)


def bounded(bounds):
    """Shortens updates so that parameters end within their bounds."""
    def update(updates, params):
        limits = (of_bounds(bounds, n) for n, _ in rules.named(params))
        flat = [u if of is None else jnp.clip(p + u, *of[1:]) - p for (_, p), u, of in zip(
            rules.named(params), jax.tree.leaves(updates), limits, strict=True)]
        return jax.tree.unflatten(jax.tree.structure(updates), flat)
    return optax.stateless(update)
