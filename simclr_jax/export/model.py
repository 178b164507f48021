"""Nets with their weights in a directory of ours: what every import makes and every export starts from.

    DIR/config.json         {"format", "nets", "image", "text", "meta"}
    DIR/model.safetensors   "ROLE/leaf" and "ROLE/stats/leaf", f32; "logit_scale", "logit_bias"; "beside/NAME"
    DIR/tokenizer.json      a tokenizer that was trained on the captions of a run, if there was one
"""
import json
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from simclr_jax import names
from simclr_jax.errors import UsageError
from simclr_jax.export import files, found, write as writing
from simclr_jax.export.tensors import Tensor

FORMAT = "simclr_jax nets, 1"
SCALARS = "logit_scale", "logit_bias"
MODALITIES = {"backbone": "image"}  # of a role, if not its own name


class Model(NamedTuple):
    """Nets and their weights, neither built nor read yet.

    Attributes:
      nets: {role: {"name": "vit", ...}}, modules of simclr_jax/nets and their arguments. A single tower is "backbone",
        those of pairs are "image", "text" and "audio".
      weights: "ROLE/leaf", "ROLE/stats/leaf" as in the nets' trees, and what `SCALARS` names.
      beside: their arrays that no net of ours has a place for (a classifier), by their names.
      image: {"eval": [[op, kwargs], ...]}: how a picture is prepared, as in config.augment.eval; {} without pictures.
      text: {} or the tokenizer, as in config.text.
      meta: where it comes from and what it has been through, as JSON has it; "licence" of the weights.
      tokenizer: the tokenizer.json of a run, b"" where the tokenizer needs none.
    """

    nets: dict
    weights: dict[str, Tensor]
    beside: dict[str, Tensor] = {}
    image: dict = {}
    text: dict = {}
    meta: dict = {}
    tokenizer: bytes = b""


def write(out, model: Model) -> None:
    """Writes a model to a new directory, whole or not at all.

    Raises:
      UsageError: the directory is there and not empty, or cannot be written; weights that do not fit the nets.
    """
    check(model, str(out))
    config = {"format": FORMAT, "nets": model.nets, "image": model.image, "text": model.text, "meta": model.meta}
    with writing.directory(out) as folder:
        arrays = model.weights | {f"beside/{name}": t for name, t in model.beside.items()}
        writing.safetensors(folder / "model.safetensors", arrays, {"format": FORMAT})
        (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        if model.tokenizer:
            (folder / "tokenizer.json").write_bytes(model.tokenizer)


def read(directory) -> Model:
    """A model from its directory; arrays are read when asked for.

    Raises:
      UsageError: it is none of ours, or is damaged.
    """
    path = epath.Path(directory).expanduser() / "config.json"
    if not path.exists():
        raise UsageError(f"{directory}: there is no config.json; wanted a directory that `python -m simclr_jax.export` "
                         "made")
    try:
        config = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as e:
        raise UsageError(f"{path} is no JSON ({e}); export it again") from None
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise UsageError(f"{path} is not of format {FORMAT!r}; wanted a directory that `python -m simclr_jax.export` "
                         "made by --from or by --to=flax")
    arrays = files.read(path.parent / "model.safetensors")
    beside = {n.removeprefix("beside/"): t for n, t in arrays.items() if n.startswith("beside/")}
    weights = {n: t for n, t in arrays.items() if not n.startswith("beside/")}
    kept = path.parent / "tokenizer.json"
    model = Model(config["nets"], weights, beside, config["image"], config["text"], config["meta"],
                  kept.read_bytes() if kept.exists() else b"")
    check(model, str(directory))
    return model


def check(model: Model, where: str) -> None:
    """Holds the weights to the nets, by name and shape.

    Raises:
      UsageError: a leaf that is missing, unknown or of another shape; the first is named.
    """
    left = {n: t.shape for n, t in model.weights.items() if n not in SCALARS}
    for role in model.nets:
        for name, leaf in shapes(model, role).items():
            shape = left.pop(name, None)
            if shape is None:
                raise UsageError(f"{where}: the weights have no {name!r} of shape {leaf.shape}, which nets/"
                                 f"{model.nets[role]['name']} wants")
            if tuple(shape) != leaf.shape:
                raise UsageError(f"{where}: {name} has shape {tuple(shape)}, and nets/{model.nets[role]['name']} wants "
                                 f"{leaf.shape}")
    if left:
        raise UsageError(f"{where}: {sorted(left)[0]!r} (and {len(left) - 1} more) is in no place of the nets "
                         f"{', '.join(sorted(model.nets))}")


def shapes(model: Model, role: str) -> dict:
    """{"ROLE/leaf" or "ROLE/stats/leaf": ShapeDtypeStruct} of a net; nothing is computed."""
    net, x = build(model.nets[role]), example(model, role)
    params, stats = jax.eval_shape(lambda key: net.init(key, x), jax.random.key(0))
    return {f"{role}/{n}": leaf for n, leaf in named(params).items()} | {
        f"{role}/stats/{n}": leaf for n, leaf in named(stats).items()}


def filled(spec: dict) -> dict:
    """A net's arguments, with the defaults of those that are not given."""
    return {**names.defaults(names.factory("nets", spec["name"]), ("axis", "remat")), **spec}


def build(spec: dict):
    """The net of a spec, outside any mesh."""
    return names.make("nets", {k: tuple(v) if isinstance(v, list) else v for k, v in spec.items()})


def example(model: Model, role: str):
    """What the net of a role takes, one row of it, as a ShapeDtypeStruct."""
    spec = model.nets[role]
    if "vocab" in spec:
        return jax.ShapeDtypeStruct((1, spec["length"]), jnp.int32)
    if role == "audio":
        return jax.ShapeDtypeStruct((1, spec["side"] ** 2 // spec["mels"], spec["mels"]), jnp.float32)
    if spec["name"] == "mlp":
        first = f"{role}/layer1/dense/kernel"  # which says how wide the features are that the head takes
        if first not in model.weights:
            raise UsageError(f"the weights have no {first!r}, which nets/mlp wants")
        return jax.ShapeDtypeStruct((1, model.weights[first].shape[0]), jnp.float32)
    side = found.side(model.image)
    return jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)


def tree(model: Model, role: str):
    """(params, stats) of a role as nested dicts of arrays, read one by one."""
    return nested({n: jnp.asarray(t.read()) for n, t in model.weights.items() if n.startswith(f"{role}/")}, role)


def embedder(model: Model):
    """(embed, params), as `simclr_jax.export.load` returns; with a tower for audio f32[b,frames,mels], too."""
    return embedding(model), {role: tree(model, role) for role in model.nets}


def embedding(model: Model):
    """The `embed` of `embedder`, which holds no weights."""
    nets = {role: build(spec) for role, spec in model.nets.items()}
    roles = {MODALITIES.get(role, role): role for role in nets}
    mean, std = (np.asarray(m, np.float32) for m in found.moments(model.image).values()) if model.image else (None, None)

    def embed(params, **inputs):
        if strange := set(inputs) - set(roles):
            raise UsageError(f"embed: there is no tower for {sorted(strange)[0]!r}; it has {', '.join(sorted(roles))}")
        out = {}
        for modality, x in inputs.items():
            if modality == "image":
                x = (jnp.asarray(x, jnp.float32) - mean) / std
            of, stats = params[roles[modality]]
            out[modality] = nets[roles[modality]].apply(of, stats, x, train=False)[0]["pooled"]
        return out
    return jax.jit(embed)


def nested(flat: dict, role: str):
    """(params, stats) of a role as nested dicts, of {"ROLE/leaf" or "ROLE/stats/leaf": leaf}."""
    params, stats = {}, {}
    for name, leaf in flat.items():
        of, *path, last = name.split("/")
        if of != role:
            continue
        node, path = (stats, path[1:]) if path[:1] == ["stats"] else (params, path)
        for part in path:
            node = node.setdefault(part, {})
        node[last] = leaf
    return params, stats


def named(nested) -> dict:
    """{"path/leaf": leaf} of nested dicts."""
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf
            for path, leaf in jax.tree_util.tree_leaves_with_path(nested)}
