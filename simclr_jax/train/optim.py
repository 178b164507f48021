"""Optimisers and schedules, with `(regex, value)` rules for what each parameter gets: see rules.py."""
import math
from typing import Callable, NamedTuple

import jax
import jax.numpy as jnp
import optax

from simclr_jax.errors import UsageError
from simclr_jax.train import transforms
from simclr_jax.train.rules import by_rule, check, first, named

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


def warmup_cosine(top: float, warmup: int, total: int, final: float = 0.0, start: float = 0.0, last: int = 0) -> Callable:
    """Linear from `start` to `top` over `warmup` steps, then a half cosine to `final` at `total` (SimCLR, tf2/model.py).

    last: 1 reaches `top` a step earlier and stays there for one, as NumPy's linspace makes it (DINO, SwAV).
    """
    def rate(step):
        step = jnp.asarray(step, jnp.float32)
        up = start + (top - start) * step / max(warmup - last, 1)
        done = jnp.clip((step - warmup) / max(total - warmup, 1), 0.0, 1.0)
        down = final + (top - final) * 0.5 * (1 + jnp.cos(jnp.pi * done))
        return jnp.where(step < warmup, up, down)
    return rate


def _dropping(rate, at):
    return lambda step: rate(step) * 0.1 ** sum(jnp.asarray(step >= n, jnp.float32) for n in at)


def make(*, name: str = "lars_simclr", lr: float = 0.3, scaling: str = "linear", schedule: str = "cosine",
         warmup_epochs: float = 10.0, warmup_steps: int = 0, warmup_start: float = 0.0, final: float = 0.0,
         drops: tuple = (0.6, 0.8), weight_decay: float = 1e-6, weight_decay_final: float = -1.0,
         momentum: float = 0.9, nesterov: bool = False, trust: float = 0.001, b1: float = 0.9, b2: float = 0.999,
         eps: float = 1e-8, clip_norm: float = 0.0, clip_each: float = 0.0, decay: tuple = NORMS_AND_BIASES,
         adapt: tuple = NORMS_AND_BIASES, rates: tuple = (), layer_decay: float = 1.0, steady: tuple = (), hold: tuple = (),
         freeze: tuple = (), unit: tuple = (), bounds: tuple = (), batch: int, steps: int, examples: int) -> Optimiser:
    """An optimiser from a config.

    Args:
      name: "lars_simclr": g + wd p, times trust |p| / |g + wd p|, times the rate, then momentum: the rate lies inside
        the buffer (tf2/lars_optimizer.py). "lars_byol": the rate after the momentum (also MoCo v3's); the two differ as
        soon as the rate moves. "sgd": decay, momentum, rate. "adamw": decoupled decay.
      lr, scaling: base rate and how it grows with the batch (see `peak`).
      schedule: "cosine" or "constant" after a warm-up of `warmup_steps`, or of `warmup_epochs` if that is 0; "dino": as
        "cosine", with a warm-up that is at the peak in its last step; "steps": a tenth of it after each of `drops`, shares
        of the run (MoCo v1: 0.6 and 0.8). warmup_start, final: the first rate of the warm-up and the last of all, as
        shares of the peak.
      weight_decay, momentum, nesterov, trust, b1, b2, eps: as usual; each where it applies.
      weight_decay_final: where a half cosine over the run brings the weight decay (DINO: 0.4); below 0: it stays.
      clip_norm: longest gradient (all that is trained, as one vector) before anything else; clip_each: of each tensor
        by itself, as in DINO. 0: not clipped.
      decay, adapt, rates: rules (regex, factor) on weight decay, on layer-wise adaptation (0 or 1), on the rate.
      layer_decay: factor on the rate from each layer of a transformer to the one before it, see `transforms.layers`.
      steady: regexes of parameters whose rate is the peak at every step (SimSiam's predictor).
      hold: rules (regex, epochs) of parameters that wait so long before they move, as if they had no gradient till then
        (DINO's last layer, SwAV's prototypes).
      freeze: regexes of parameters that do not move; they have no optimiser state.
      unit: regexes of parameters whose rows are brought back to unit length after each update (SwAV's prototypes).
      bounds: rules (regex, least, most) between which a parameter is brought back after each update, as CLIP's
        temperature is.
      batch, steps, examples: of the run.

    Raises:
      UsageError: an unknown name, a rule that is no (regex, value) pair or no regex, a value out of range.
    """
    if min(clip_norm, warmup_steps, clip_each) < 0 or not 0 < layer_decay <= 1:
        raise UsageError(f"config.optim.clip_norm={clip_norm}, clip_each={clip_each}, warmup_steps={warmup_steps} and "
                         f"layer_decay={layer_decay}, wanted 0 or more of the first three and a factor above 0, at most 1")
    frozen, steadied, unity = (tuple((r, v) for r in regexes) for regexes, v in ((freeze, 0.0), (steady, 1.0), (unit, 1.0)))
    for rule_set, of_set in (("decay", decay), ("adapt", adapt), ("rates", rates), ("freeze", frozen), ("hold", hold),
                             ("steady", steadied), ("unit", unity)):
        check(rule_set, of_set)
    check("bounds", bounds, numbers=2)
    top = peak(lr, batch, scaling)
    warmup = warmup_steps or int(round(warmup_epochs * examples // batch))
    if schedule not in ("cosine", "constant", "dino", "steps"):
        raise UsageError(f"config.optim.schedule={schedule!r}, wanted 'cosine', 'constant', 'dino' or 'steps'")
    rate = warmup_cosine(top, warmup, steps, top if schedule in ("constant", "steps") else final * top, warmup_start * top,
                         last=int(schedule == "dino"))
    if schedule == "steps":
        rate = _dropping(rate, [int(round(share * steps)) for share in drops])
    falling = warmup_cosine(weight_decay, 0, steps, weight_decay_final) if weight_decay_final >= 0 else None
    until = tuple((regex, int(round(epochs * examples / batch))) for regex, epochs in hold)

    decayed = transforms.decay(weight_decay, decay, falling)
    adapted = optax.masked(optax.scale_by_trust_ratio(trust_coefficient=trust, eps=0.0),
                           lambda p: by_rule(adapt, p, bool))
    rated = transforms.rated(rate, top, steady)
    trace = transforms.held(optax.trace(momentum, nesterov), until)
    chains = {
        "lars_simclr": (decayed, adapted, rated, trace),
        "lars_byol": (decayed, adapted, trace, rated),
        "sgd": (decayed, trace, rated) if momentum else (decayed, rated),
        "adamw": (transforms.held(optax.scale_by_adam(b1, b2, eps), until), decayed, rated),
    }
    if name not in chains:
        raise UsageError(f"config.optim.name={name!r}, wanted one of {', '.join(chains)}")
    first_of_all = [make(limit) for make, limit in ((optax.clip_by_global_norm, clip_norm),
                                                    (transforms.clip_each, clip_each)) if limit]
    last = [make(given) for make, given in ((transforms.scale, rates), (transforms.still, until), (transforms.unit, unit),
                                            (transforms.bounded, bounds)) if given]
    slowed = [transforms.layers(layer_decay)] if layer_decay < 1 else []
    tx = optax.chain(*first_of_all, *chains[name], *slowed, *last)
    if freeze:
        def still(params):
            return by_rule((*frozen, (".*", 1.0)), params, lambda v: v == 0)
        tx = optax.chain(optax.masked(tx, lambda p: jax.tree.map(lambda held: not held, still(p))),
                         optax.masked(optax.set_to_zero(), still))

    def report(params):
        sets = [("weight decay", decay, lambda v: v == 0)] if weight_decay else []
        sets += [("layer adaptation", adapt, lambda v: v == 0)] if name.startswith("lars") else []
        sets += [("rate of its own", rates, lambda v: True), ("frozen", frozen, lambda v: True)]
        sets += [("held", hold, lambda v: True), ("at the peak rate", steadied, lambda v: True),
                 ("of unit length", unity, lambda v: True), ("bounded", tuple(rule[:2] for rule in bounds), lambda v: True)]
        lines = []
        for label, rules, chosen in sets:
            for regex, value in rules:
                hit = [(n, p.size) for n, p in named(params) if chosen(value) and first(rules, n)[0] == regex]
                if hit:
                    what = {"rate of": f"x{value:g}", "held": f"for {value:g} epochs", "weight d": "not applied",
                            "layer ad": "not applied"}.get(label[:7] if label[:4] == "rate" else label[:8], "")
                    lines.append(f"{label} {what}".strip() + f": {len(hit)} tensors, {sum(s for _, s in hit):,} "
                                 f"parameters, as {regex!r} (e.g. {hit[0][0]})")
                elif not label.startswith(("weight", "layer")):
                    names = ", ".join(n for n, _ in named(params)[:3])
                    raise UsageError(f"config.optim: {regex!r} ({label}) is found in no parameter's name; "
                                     f"names look like {names}")
        return lines

    def at_bounds(params):
        lines = []
        for regex, least, most in bounds:
            for n, p in named(params):
                if transforms.of_bounds(bounds, n) != (regex, least, most):
                    continue
                p = jax.device_get(p)
                for end, bound, sits in (("lower", least, p.min() <= least + 1e-6 * abs(least)),
                                         ("upper", most, p.max() >= most - 1e-6 * abs(most))):
                    if sits:
                        lines.append(f"{n} sits at its {end} bound {bound:g} (config.optim.bounds)")
        return lines
    return Optimiser(tx, rate, report, at_bounds)
