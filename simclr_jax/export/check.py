"""Whether what was written is the net it was written from: the same pixels through both libraries."""
import ast
import importlib
from typing import NamedTuple

import jax
import numpy as np

from simclr_jax.errors import UsageError
from simclr_jax.export import found, layout, model as models
from simclr_jax.export.found import Package

TOLERANCE = 1e-4  # of the largest absolute value of an output, or of 1


class Difference(NamedTuple):
    """Of one layer's output, or of a tower's ("image", "text")."""

    role: str
    layer: str
    largest: float  # absolute
    scale: float  # the largest absolute value of ours

    @property
    def relative(self) -> float:
        return self.largest / max(1.0, self.scale)


def library(package: Package) -> str:
    """The libraries that a package imports and that are not here, as pip calls them; "" if all are."""
    wanted = {"torch"}
    for node in ast.walk(ast.parse("\n".join(package.lines))):
        if isinstance(node, ast.Import):
            wanted |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            wanted.add(node.module.split(".")[0])
    missing = []
    for name in sorted(wanted):
        try:
            importlib.import_module(name)
        except ImportError:
            missing.append({"open_clip": "open_clip_torch"}.get(name, name))
    return ", ".join(missing)


def same_bytes(package: Package, written, model) -> None:
    """Reads the weights back by the same table and holds each to what was written.

    Raises:
      UsageError: an array that is another.
    """
    back, _ = layout.ours(package.layout, written, "what was written")
    for name, tensor in back.items():
        if not np.array_equal(tensor.read(), model.weights[name].read().astype(np.float32), equal_nan=False):
            raise UsageError(f"export: {name} did not come back as it was written; this is a defect of its layout")


def differences(package: Package, folder, model, rows: int = 2) -> list[Difference]:
    """Runs `rows` random inputs through the library's net and ours, layer by layer.

    Raises:
      UsageError: the library does not open what was written.
    """
    import torch
    random, inputs = np.random.default_rng(0), {}
    scope = {"pixels": None, "tokens": None}
    if model.image:
        mean, std = (np.asarray(m, np.float32) for m in found.moments(model.image).values())
        inputs["image"] = (pictures(rows, found.side(model.image), random) - mean) / std
        scope["pixels"] = torch.from_numpy(np.ascontiguousarray(inputs["image"].transpose(0, 3, 1, 2)))
    if "text" in model.nets:
        inputs["text"] = ids(model.nets["text"], rows, random)
        scope["tokens"] = torch.from_numpy(inputs["text"].astype(np.int64))
    ours = {}  # before the library's net is opened, so that no two nets are in memory at once
    for role in model.nets:
        if (modality := models.MODALITIES.get(role, role)) in inputs:
            ours |= _ours(model, role, inputs[modality], [own for r, own, _ in package.layers if r == role])
    _run("does not open", "\n".join(package.lines).replace("{dir}", str(folder)), scope)
    theirs = {}
    for role, own, name in package.layers:
        def keep(module, given, out, key=(role, own)):
            theirs[key] = out[0] if isinstance(out, tuple) else out
        scope["model"].get_submodule(name).register_forward_hook(keep)
    with torch.no_grad():
        _run("does not run", "\n".join(package.call), scope)
    theirs |= {(role, "output"): scope["out"][models.MODALITIES.get(role, role)] for role, _ in ours}
    return [_difference(*key, x, theirs[key].numpy()) for key, x in ours.items()]


def _run(fails, code, scope):
    try:
        exec(code, scope)
    except Exception as e:
        reason = " ".join(str(e).split())[:300]
        raise UsageError(f"export: the library {fails} what was written: {type(e).__name__}: {reason}; nothing was "
                         "written") from None


def _ours(model, role, x, names) -> dict:
    """{(role, layer): array} of our net's layers, and of its "output"."""
    net, (params, stats) = models.build(model.nets[role]), models.tree(model, role)

    @jax.jit
    def run(params, stats, x):
        layers = net.layers(params, stats, x, names) if names else {}
        return layers | {"output": net.apply(params, stats, x, train=False)[0]["pooled"]}
    out = run(params, stats, x)
    return {(role, name): np.asarray(out[name]) for name in [*names, "output"]}


def pictures(rows: int, size: int, random) -> np.ndarray:
    """f32[rows,size,size,3] in [0, 1]: patches of colour with some noise.

    Of noise alone a deep net makes rows that hardly differ, which batch statistics blow up together with the rounding.
    """
    cells = random.random((rows, 4, 4, 3), np.float32)
    at = np.arange(size) * 4 // size
    return 0.8 * cells[:, at][:, :, at] + 0.2 * random.random((rows, size, size, 3), np.float32)


def hold(measured: list[Difference], tolerance: float = TOLERANCE) -> None:
    """Raises UsageError if a difference is above the tolerance or no number; the first layer is named."""
    for d in measured:
        if not d.relative <= tolerance:
            raise UsageError(f"export: {d.role}/{d.layer} differs by {d.largest:.1e} (values up to {d.scale:.1e}), "
                             f"more than {tolerance:.0e} of it; nothing was written")


def ids(net, rows, random):
    """i32[rows,length] of texts that end with the end token, if there is one."""
    eot = net["eot"] if net.get("pool") == "eot" else net["vocab"] - 1
    ids = random.integers(3 if net["vocab"] > 8 else 0, net["vocab"] - 1, (rows, net["length"]), dtype=np.int32)
    ids[ids == eot] = 3
    ids[:, -1] = eot if eot >= 0 else ids[:, -1]
    return ids


def _difference(role, layer, ours, theirs):
    if ours.ndim == 4 and ours.shape != theirs.shape:
        theirs = theirs.transpose(0, 2, 3, 1)
    if ours.shape != theirs.shape:
        raise UsageError(f"export: {role}/{layer} has shape {ours.shape} here and {theirs.shape} there; nothing was "
                         "written")
    return Difference(role, layer, float(np.max(np.abs(ours - theirs))), float(np.max(np.abs(ours))))
