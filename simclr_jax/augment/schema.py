"""Op names and their arguments from a config: the signature of a factory is the schema.

A factory is a function with annotated keyword-only arguments that returns a `Spatial` or a `Pixel` (kinds.py). A new op
is one more such function, and nothing else.
"""
import inspect
import typing
from typing import Any, Mapping

from simclr_jax import names
from simclr_jax.augment import color, filters, geometry, spatial
from simclr_jax.augment.kinds import Pixel, Spatial
from simclr_jax.errors import UsageError

OPS = {name: f for family in (spatial, color, filters, geometry) for name, f in vars(family).items()
       if inspect.isfunction(f) and inspect.signature(f).return_annotation in (Spatial, Pixel)}


def make(name: str, kwargs: Mapping[str, Any], where: str) -> Spatial | Pixel:
    """Calls an op's factory with values as they come from a config (lists for tuples).

    Raises:
      UsageError: no such op, no such argument, one missing or of the wrong type, in one line that starts with `where`.
    """
    if name not in OPS:
        raise UsageError(f"{where}: there is no op {name!r}{names.near(name, OPS)}")
    hints = typing.get_type_hints(OPS[name])
    parameters = inspect.signature(OPS[name]).parameters
    for key, value in kwargs.items():
        if key not in parameters:
            raise UsageError(f"{where}: {name} has no {key!r}{names.near(key, parameters)}")
        if not _fits(value, hints[key]):
            raise UsageError(f"{where}: {name}: {key}={value!r}; wanted {_wanted(hints[key])}")
    for key, p in parameters.items():
        if p.default is p.empty and key not in kwargs:
            raise UsageError(f"{where}: {name} needs {key!r}, {_wanted(hints[key])}; set it")
    return OPS[name](**{k: plain(v) for k, v in kwargs.items()})


def _fits(value, hint) -> bool:
    """Whether a value from a config is what a factory's annotation asks for."""
    items = typing.get_args(hint)
    if typing.get_origin(hint) is typing.Literal:
        return value in items
    if typing.get_origin(hint) is tuple:
        return (isinstance(value, (list, tuple)) and len(value) == len(items)
                and all(_fits(v, h) for v, h in zip(value, items)))
    if hint is bool:
        return isinstance(value, bool)
    return isinstance(value, (int, float) if hint is float else hint) and not isinstance(value, bool)


def _wanted(hint) -> str:
    if typing.get_origin(hint) is typing.Literal:
        return " or ".join(repr(v) for v in typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        return f"{len(typing.get_args(hint))} numbers"
    return {int: "a whole number", float: "a number", bool: "True or False"}[hint]


def plain(value):
    """A list as a tuple, anything else as it is."""
    return tuple(value) if isinstance(value, list) else value
