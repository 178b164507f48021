"""transformers' ViTModel and Dinov2Model.

Files on the Hub, and those that version 5 writes, name their arrays as version 4 did; version 5 has other names in memory.
Both are read; the Hub's are written.
"""
import json
import math
import re

from simclr_jax.errors import UsageError
from simclr_jax.export import found, hf, rows, timm
from simclr_jax.export.found import Found, Package
from simclr_jax.export.layout import Layout, row

BESIDE = (r"pooler\..*", r"classifier\..*")


def read(weights, config: dict, pixels: dict, where: str) -> Found:
    """The net of a state dict, of a checkpoint of the net or of a classifier on it."""
    kind = config["model_type"]
    at = next((p for p in ("vit.", "dinov2.") if any(n.startswith(p) for n in weights)), "")
    net = _net(weights, config, at, kind)
    usual = found.HALVES if kind == "vit" else found.IMAGENET
    return Found({"backbone": net}, layout("backbone", net, kind, spelling(weights), at), hf.view(net["image"], pixels, usual))


def spelling(weights) -> str:
    """"hub" or "memory": which of the two namings a file has."""
    return "memory" if any(".attention.q_proj." in n for n in weights) else "hub"


def _net(weights, config, at, kind):
    width, _, patch, _ = weights[at + "embeddings.patch_embeddings.projection.weight"].shape
    blocks = r"(?:encoder\.layer|layers)\.(\d+)\."
    depth = rows.count([n.removeprefix(at) for n in weights], blocks)
    side = math.isqrt(weights[at + "embeddings.position_embeddings"].shape[1] - 1)
    net = dict(name="vit", width=width, depth=depth, heads=config["num_attention_heads"], patch=patch, image=side * patch,
               gelu=hf.gelu(config), eps=config.get("layer_norm_eps", 1e-6))
    if kind == "vit":
        return net | dict(mlp=config["intermediate_size"])
    mlp = int(width * config.get("mlp_ratio", 4))
    gated = bool(config.get("use_swiglu_ffn"))
    return net | dict(mlp=(int(mlp * 2 / 3) + 7) // 8 * 8 if gated else mlp, mlp_kind="swiglu" if gated else "gelu",
                      layer_scale=config.get("layerscale_value", 1.0), mask_token=at + "embeddings.mask_token" in weights)


def layout(role: str, net: dict, kind: str, naming: str = "hub", at: str = "") -> Layout:
    """Rows of nets/vit in the names of ViTModel or Dinov2Model.

    Args:
      naming: as `spelling` says. at: what stands before each name.
    """
    depth = timm.sizes(net)[1]
    table = rows.conv(f"{role}/patches", "embeddings.patch_embeddings.projection", bias=True) + rows.norm(f"{role}/norm", "layernorm")
    table += [row(f"{role}/class_token/embedding", "inner", "embeddings.cls_token"),
              row(f"{role}/positions/embedding", "inner", "embeddings.position_embeddings")]
    table += [row(f"{role}/mask_token/embedding", "as is", "embeddings.mask_token")] * bool(net.get("mask_token"))
    hub = naming == "hub"
    block = "layers.{}." if kind == "vit" and not hub else "encoder.layer.{}."
    heads = tuple(f"attention.attention.{x}" for x in ("query", "key", "value")) if hub else tuple(f"attention.{x}_proj" for x in "qkv")
    out = "attention.output.dense" if hub else "attention.o_proj"
    if kind == "vit":
        mlp = ("intermediate.dense", "output.dense") if hub else ("mlp.fc1", "mlp.fc2")
        norms, scales = ("layernorm_before", "layernorm_after"), ()
    else:
        mlp, norms, scales = ("mlp.fc1", "mlp.fc2"), ("norm1", "norm2"), ("layer_scale1.lambda1", "layer_scale2.lambda1")
        if net.get("mlp_kind") == "swiglu":
            mlp = ("mlp.weights_in", "mlp.weights_out") if hub else (("mlp.gate_proj", "mlp.up_proj"), "mlp.down_proj")
    table += rows.blocks(role, depth, block, norms=norms, qkv=heads, out=out, mlp=mlp, scales=scales)
    table = [r._replace(parts=tuple(p._replace(name=at + p.name) for p in r.parts)) for r in table]
    return Layout(tuple(table), (re.escape(at) + BESIDE[0], BESIDE[1]))


def package(model) -> Package:
    """What `from_pretrained` opens.

    Raises:
      UsageError: a net that transformers has no class for.
    """
    role = found.only(model.nets, "transformers", "vit")
    net = model.nets[role]
    found.refuse("transformers", net, posemb="learned", class_token=True, registers=0, pool="cls", position_on_class=True,
                 pre_norm=False, patch_bias=True, final_norm=True, out=0)
    found.refuse_resize("transformers", net, model.image, "size")
    width, depth, heads, mlp = timm.sizes(net)
    kind = "dinov2" if net["layer_scale"] else "vit"
    if kind == "vit":
        found.refuse("transformers", net, mask_token=False, mlp_kind=("", "gelu"))
    config = dict(model_type=kind, hidden_size=width, num_hidden_layers=depth, num_attention_heads=heads,
                  hidden_act=hf.GELUS[net["gelu"]], layer_norm_eps=net["eps"], image_size=net["image"], patch_size=net["patch"],
                  num_channels=3, qkv_bias=True)
    pooled = "pooler.dense.weight" in model.beside
    if kind == "vit":
        made, inside = "ViTModel", "layers.{}"
        config |= dict(architectures=[made], intermediate_size=mlp)
        lines = f'model = {made}.from_pretrained("{{dir}}", add_pooling_layer={pooled}).eval()'
    else:
        made, inside = "Dinov2Model", "encoder.layer.{}"
        gated = timm.gated(net)
        config |= dict(architectures=[made], mlp_ratio=_ratio(mlp, width, gated), layerscale_value=net["layer_scale"],
                       use_swiglu_ffn=gated, use_mask_token=net["mask_token"])
        lines = f'model = {made}.from_pretrained("{{dir}}").eval()'
    files = {"config.json": json.dumps(config, indent=2),
             "preprocessor_config.json": hf.preprocessor(model.image, "ViTImageProcessor")}
    return Package(layout(role, net, kind), "model.safetensors", files, (f"from transformers import {made}", lines),
                   ('out = {{"image": model(pixel_values=pixels).last_hidden_state[:, 0]}}',),
                   tuple((role, f"stack/block{i + 1}", inside.format(i)) for i in range(depth)))


def _ratio(mlp, width, gated):
    ratio = next((r for r in range(1, 17) if ((int(width * r * 2 / 3) + 7) // 8 * 8 if gated else width * r) == mlp), None)
    if ratio is None:
        raise UsageError(f"--to=transformers: nets/vit has an MLP of {mlp} for width {width}, which is no mlp_ratio of Dinov2Model")
    return ratio
