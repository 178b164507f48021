"""Optimisers and schedules, with `(regex, value)` rules for what each parameter gets.

A parameter's name is its path in the tree, such as "backbone/stem/conv/kernel". In a list of rules the first regex that
is found in the name (`re.search`) decides.
"""
import math
import re
from typing import Callable, NamedTuple

import jax
import jax.numpy as jnp
import optax

from simclr_jax.errors import UsageError

# Norms' and biases' parameters by the names `nets/` gives them, and those of a loss: no decay, no layer-wise adaptation.
NORMS_AND_BIASES = ((r"(^|/)(bias|scale|layer_scale|logit_scale|logit_bias)$", 0.0), (r".*", 1.0))


class Optimiser(NamedTuple):
    tx: optax.GradientTransformation
    rate: Callable  # step -> learning rate, before `rates`
    report: Callable  # params -> [str], one line for each thing that is left out
    at_bounds: Callable  # params -> [str], one line for each parameter of which a value sits at a bound


def total_steps(examples: int, epochs: float, batch: int) -> int:
    """Steps of a run: examples * epochs // batch + 1, as in SimCLR's released code (tf2/model.py)."""
    return int(examples * epochs // batch) + 1


def peak(lr: float, batch: int, scaling: str) -> float:
    """The rate at a global batch: "linear" lr * batch / 256, "sqrt" lr * sqrt(batch) (SimCLR, B.1), "none" lr."""
    rules = {"linear": batch / 256, "sqrt": math.sqrt(batch), "none": 1.0}
    if scaling not in rules:
        raise UsageError(f"config.optim.scaling={scaling!r}, wanted one of {', '.join(rules)}")
    return lr * rules[scaling]


def warmup_cosine(top: float, warmup: int, total: int, final: float = 0.0) -> Callable:
    """Linear from 0 to `top` over `warmup` steps, then a half cosine to `final` at `total` (SimCLR, tf2/model.py)."""
    def rate(step):
        step = jnp.asarray(step, jnp.float32)
        up = top * step / max(warmup, 1)
        done = jnp.clip((step - warmup) / max(total - warmup, 1), 0.0, 1.0)
        down = final + (top - final) * 0.5 * (1 + jnp.cos(jnp.pi * done))
        return jnp.where(step < warmup, up, down)
    return rate


def make(*, name: str = "lars_simclr", lr: float = 0.3, scaling: str = "linear", schedule: str = "cosine",
         warmup_epochs: float = 10.0, warmup_steps: int = 0, final: float = 0.0, weight_decay: float = 1e-6,
         momentum: float = 0.9, nesterov: bool = False, trust: float = 0.001, b1: float = 0.9, b2: float = 0.999,
         eps: float = 1e-8, clip_norm: float = 0.0, decay: tuple = NORMS_AND_BIASES, adapt: tuple = NORMS_AND_BIASES,
         rates: tuple = (), freeze: tuple = (), bounds: tuple = (), batch: int, steps: int, examples: int) -> Optimiser:
    """An optimiser from a config.

    Args:
      name: "lars_simclr": g + wd p, times trust |p| / |g + wd p|, times the rate, then momentum: the rate lies inside
        the buffer (tf2/lars_optimizer.py). "lars_byol": the rate after the momentum (also MoCo v3's); the two differ as
        soon as the rate moves. "sgd": decay, momentum, rate. "adamw": decoupled decay.
      lr, scaling: base rate and how it grows with the batch (see `peak`).
      schedule: "cosine" or "constant" after a warm-up of `warmup_steps`, or of `warmup_epochs` if that is 0; final: the
        last rate, as a share of the peak.
      weight_decay, momentum, nesterov, trust, b1, b2, eps: as usual; each where it applies.
      clip_norm: longest gradient (all that is trained, as one vector) before anything else; 0: not clipped.
      decay, adapt, rates: rules (regex, factor) on weight decay, on layer-wise adaptation (0 or 1), on the rate.
      freeze: regexes of parameters that do not move; they have no optimiser state.
      bounds: rules (regex, least, most) between which a parameter is brought back after each update, as CLIP's
        temperature is.
      batch, steps, examples: of the run.

    Raises:
      UsageError: an unknown name, a rule that is no (regex, value) pair or no regex.
    """
    if clip_norm < 0 or warmup_steps < 0:
        raise UsageError(f"config.optim.clip_norm={clip_norm} and warmup_steps={warmup_steps}, wanted 0 or more of both")
    frozen = tuple((r, 0.0) for r in freeze)
    for rule_set, rules in (("decay", decay), ("adapt", adapt), ("rates", rates), ("freeze", frozen)):
        _check(rule_set, rules)
    _check("bounds", bounds, numbers=2)
    top = peak(lr, batch, scaling)
    warmup = warmup_steps or int(round(warmup_epochs * examples // batch))
    if schedule == "cosine":
        rate = warmup_cosine(top, warmup, steps, final * top)
    elif schedule == "constant":
        rate = warmup_cosine(top, warmup, steps, top)
    else:
        raise UsageError(f"config.optim.schedule={schedule!r}, wanted 'cosine' or 'constant'")

    decayed = _decay(weight_decay, decay)
    adapted = optax.masked(optax.scale_by_trust_ratio(trust_coefficient=trust, eps=0.0),
                           lambda p: _by_rule(adapt, p, bool))
    rated = optax.scale_by_learning_rate(rate)
    trace = optax.trace(momentum, nesterov)
    chains = {
        "lars_simclr": (decayed, adapted, rated, trace),
        "lars_byol": (decayed, adapted, trace, rated),
        "sgd": (decayed, trace, rated) if momentum else (decayed, rated),
        "adamw": (optax.scale_by_adam(b1, b2, eps), decayed, rated),
    }
    if name not in chains:
        raise UsageError(f"config.optim.name={name!r}, wanted one of {', '.join(chains)}")
    first = (optax.clip_by_global_norm(clip_norm),) if clip_norm else ()
    last = ((_scale(rates),) if rates else ()) + ((_bounded(bounds),) if bounds else ())
    tx = optax.chain(*first, *chains[name], *last)
    if freeze:
        def still(params):
            return _by_rule((*frozen, (".*", 1.0)), params, lambda v: v == 0)
        tx = optax.chain(optax.masked(tx, lambda p: jax.tree.map(lambda held: not held, still(p))),
                         optax.masked(optax.set_to_zero(), still))

    def report(params):
        sets = [("weight decay", decay, lambda v: v == 0)] if weight_decay else []
        sets += [("layer adaptation", adapt, lambda v: v == 0)] if name.startswith("lars") else []
        sets += [("rate of its own", rates, lambda v: True), ("frozen", frozen, lambda v: True)]
        sets += [("bounded", tuple(rule[:2] for rule in bounds), lambda v: True)]
        lines = []
        for label, rules, chosen in sets:
            for regex, value in rules:
                hit = [(n, p.size) for n, p in _named(params) if chosen(value) and _first(rules, n)[0] == regex]
                if hit:
                    what = f"x{value:g}" if label.startswith("rate") else "not applied" if label.startswith(
                        ("weight", "layer")) else ""
                    lines.append(f"{label} {what}".strip() + f": {len(hit)} tensors, {sum(s for _, s in hit):,} "
                                 f"parameters, as {regex!r} (e.g. {hit[0][0]})")
                elif label in ("rate of its own", "frozen", "bounded"):
                    names = ", ".join(n for n, _ in _named(params)[:3])
                    raise UsageError(f"config.optim: {regex!r} ({label}) is found in no parameter's name; "
                                     f"names look like {names}")
        return lines

    def at_bounds(params):
        lines = []
        for regex, least, most in bounds:
            for n, p in _named(params):
                if _first_bounds(bounds, n) != (regex, least, most):
                    continue
                p = jax.device_get(p)
                for end, bound, sits in (("lower", least, p.min() <= least + 1e-6 * abs(least)),
                                         ("upper", most, p.max() >= most - 1e-6 * abs(most))):
                    if sits:
                        lines.append(f"{n} sits at its {end} bound {bound:g} (config.optim.bounds)")
        return lines
    return Optimiser(tx, rate, report, at_bounds)


def _check(rule_set, rules, numbers=1):
    for rule in rules:
        if not (isinstance(rule, (tuple, list)) and len(rule) == 1 + numbers and isinstance(rule[0], str)
                and all(isinstance(v, (int, float)) for v in rule[1:])):
            raise UsageError(f"config.optim.{rule_set}: {rule!r} is no " + (
                "(regex, number) pair" if numbers == 1 else "(regex, least, most)"))
        try:
            re.compile(rule[0])
        except re.error as e:
            raise UsageError(f"config.optim.{rule_set}: {rule[0]!r} is no regular expression ({e})") from e


def _named(params):
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    return [("/".join(str(getattr(k, "key", getattr(k, "idx", k))) for k in path), leaf) for path, leaf in leaves]


def _first(rules, name):
    return next(((r, v) for r, v in rules if re.search(r, name)), (None, 1.0))


def _first_bounds(bounds, name):
    return next((tuple(rule) for rule in bounds if re.search(rule[0], name)), None)


def _bounded(bounds):
    """Shortens updates so that parameters end within their bounds."""
    def update(updates, params):
        flat = [u if found is None else jnp.clip(p + u, *found[1:]) - p for (n, p), u, found in zip(
            _named(params), jax.tree.leaves(updates), (_first_bounds(bounds, n) for n, _ in _named(params)), strict=True)]
        return jax.tree.unflatten(jax.tree.structure(updates), flat)
    return optax.stateless(update)


def _by_rule(rules, params, kind=float):
    values = [kind(_first(rules, name)[1]) for name, _ in _named(params)]
    return jax.tree.unflatten(jax.tree.structure(params), values)


def _decay(weight_decay, rules):
    def update(updates, params):
        return jax.tree.map(lambda u, p, f: u + (weight_decay * f) * p, updates, params, _by_rule(rules, params))
    return optax.stateless(update) if weight_decay else optax.identity()


def _scale(rules):
    return optax.stateless(lambda updates, params: jax.tree.map(jnp.multiply, updates, _by_rule(rules, updates)))
