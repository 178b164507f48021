"""Names in a config resolve to modules: `dict(name="moco", queue=65536)` is `simclr_jax.methods.moco.make(queue=65536)`.

The factory's signature is the schema, so there is no registry to keep in step with the code.
"""
import difflib
import importlib
import inspect
import pkgutil
import typing
from typing import Any, Callable, Mapping

from simclr_jax.errors import UsageError


def available(room: str) -> list[str]:
    """Names of the modules of `simclr_jax.<room>` that have a `make`."""
    package = importlib.import_module(f"simclr_jax.{room}")
    return sorted(m.name for m in pkgutil.iter_modules(package.__path__)
                  if hasattr(_module(room, m.name), "make"))


def make(room: str, spec: Mapping[str, Any], *args, **given):
    """Calls `simclr_jax.<room>.<spec["name"]>.make(*args, **rest of spec, **given)`.

    Args:
      room: package below `simclr_jax`, such as "methods" or "data.sources".
      spec: mapping with a "name"; its other keys are keyword arguments of that module's `make`.
      args, given: what the caller supplies; a spec may not set these.

    Raises:
      UsageError: an unknown name, an unknown key, a missing key or a value of the wrong type, in one line.
    """
    spec = dict(spec)
    name = spec.pop("name", None)
    where = f"simclr_jax/{room.replace('.', '/')}"
    return call(factory(room, name), spec, f"{where}/{name}.py", *args, **given)


def factory(room: str, name) -> Callable:
    """The `make` of `simclr_jax.<room>.<name>`; UsageError if there is none."""
    where = f"simclr_jax/{room.replace('.', '/')}"
    if name is None:
        raise UsageError(f"{where}: no `name` given; choose one of {', '.join(available(room))}")
    module = _module(room, name) if isinstance(name, str) and name.isidentifier() else None
    if not hasattr(module, "make"):
        raise UsageError(f"{where}: there is no {name!r}{near(str(name), available(room))}")
    return module.make


def call(function: Callable, spec: Mapping[str, Any], where: str, *args, **given):
    """Calls `function(*args, **spec, **given)` after holding `spec` to the signature's keyword-only parameters.

    Args:
      spec: values from a config; given: the caller's, passed on as far as the function takes them.
      where: what to name in a message.
    """
    parameters = inspect.signature(function).parameters
    settable = [p for p in parameters.values() if p.kind is p.KEYWORD_ONLY and p.name not in given]
    for key in spec:
        if key not in {p.name for p in settable}:
            raise UsageError(f"{where}: unknown key {key!r}{near(key, [p.name for p in settable])}")
    for p in settable:
        if p.name not in spec and p.default is p.empty:
            raise UsageError(f"{where}: {p.name!r} is missing; set it in the config")
    hints = typing.get_type_hints(function)
    for key, value in spec.items():
        if key in hints and not _fits(value, hints[key]):
            wanted = getattr(hints[key], "__name__", str(hints[key]))
            raise UsageError(f"{where}: {key}={value!r} is of type {type(value).__name__}, wanted {wanted}")
    return function(*args, **spec, **{k: v for k, v in given.items() if k in parameters})


def parameters(function: Callable) -> dict[str, inspect.Parameter]:
    """The keyword-only parameters of a factory, by name."""
    return {p.name: p for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY}


def defaults(function: Callable, given=()) -> dict[str, Any]:
    """The parameters of a factory that have a default, but for those the caller supplies; "" for a text that has none.

    So a text that must be given, such as a folder's path, is a field that a command line can set; its factory refuses "".
    """
    hints = typing.get_type_hints(function)
    return {name: "" if p.default is p.empty else p.default for name, p in parameters(function).items()
            if name not in given and (p.default is not p.empty or hints.get(name) is str)}


def floats(function: Callable, spec: Mapping[str, Any]) -> dict[str, Any]:
    """The spec with whole numbers made floats where the factory wants floats, so that a flag may set a fraction."""
    hints = typing.get_type_hints(function)
    return {k: float(v) if hints.get(k) is float and type(v) is int else v for k, v in spec.items()}


def near(key: str, choices) -> str:
    """The tail of a message about an unknown name: its nearest neighbours, or all there are."""
    choices = sorted(choices)
    close = difflib.get_close_matches(key, choices, n=3, cutoff=0.5)
    if close:
        return "; did you mean " + " or ".join(repr(c) for c in close) + "?"
    return "; there are: " + (", ".join(choices) or "none")


def _module(room: str, name: str):
    full = f"simclr_jax.{room}.{name}"
    try:
        return importlib.import_module(full)
    except ModuleNotFoundError as e:
        if e.name == full:
            return None
        raise


def _fits(value, hint) -> bool:
    """Whether a config value is what a factory's annotation asks for (simple annotations only)."""
    if typing.get_origin(hint) is typing.Union or type(hint).__name__ == "UnionType":
        return any(_fits(value, h) for h in typing.get_args(hint))
    hint = typing.get_origin(hint) or hint
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint is tuple:
        return isinstance(value, (tuple, list))
    if hint in (str, bool, dict, type(None)):
        return isinstance(value, Mapping if hint is dict else hint)
    return True
