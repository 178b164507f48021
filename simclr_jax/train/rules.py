"""Rules by name: `(regex, value)` lists that say what each parameter gets.

A parameter's name is its path in the tree, such as "backbone/stem/conv/kernel". In a list of rules the first regex that
is found in the name (`re.search`) decides.
"""
import re

import jax

from simclr_jax.errors import UsageError


def check(rule_set: str, rules, numbers: int = 1) -> None:
    """Refuses what is no list of (regex, number, ...); `rule_set` names it in config.optim."""
    for rule in rules:
        if not (isinstance(rule, (tuple, list)) and len(rule) == 1 + numbers and isinstance(rule[0], str)
                and all(isinstance(v, (int, float)) for v in rule[1:])):
            raise UsageError(f"config.optim.{rule_set}: {rule!r} is no " + (
                "regex" if numbers == 0 else "(regex, number) pair" if numbers == 1 else "(regex, least, most)"))
        try:
            re.compile(rule[0])
        except re.error as e:
            raise UsageError(f"config.optim.{rule_set}: {rule[0]!r} is no regular expression ({e})") from e


def named(params):
    """[(name, leaf)] in the tree's order."""
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    return [("/".join(str(getattr(k, "key", getattr(k, "idx", k))) for k in path), leaf) for path, leaf in leaves]


def first(rules, name):
    """The rule that decides, as (regex, value); (None, 1.0) if none does."""
    return next(((r, v) for r, v in rules if re.search(r, name)), (None, 1.0))


def found(regexes, name) -> bool:
    """Whether any is found in the name."""
    return any(re.search(r, name) for r in regexes)


def by_rule(rules, params, kind=float):
    """The tree of what each parameter gets."""
    return by_name(params, lambda name: kind(first(rules, name)[1]))


def by_name(params, value):
    """The tree of value(name)."""
    return jax.tree.unflatten(jax.tree.structure(params), [value(name) for name, _ in named(params)])
