"""transformers' ViTModel and Dinov2Model.

Files on the Hub, and those that version 5 writes, name their arrays as version 4 did; version 5 has other names in
memory. Both are read; the Hub's are written.
"""
import json
import math
import re

from simclr_jax.errors import UsageError
from simclr_jax.export import found, hf, rows, timm
from simclr_jax.export.found import Found, Package
from simclr_jax.export.layout import Layout, row

BESIDE = (r"pooler\..*", r"classifier\..*")
# Where configs do not say: the defaults of ViTConfig and Dinov2Config.
USUAL = {"vit": dict(num_attention_heads=12, layer_norm_eps=1e-12),
         "dinov2": dict(num_attention_heads=12, layer_norm_eps=1e-6, mlp_ratio=4, layerscale_value=1.0,
                        use_swiglu_ffn=False)}


def read(weights, config: dict, pixels: dict, where: str) -> Found:
    """The net of a state dict, of a checkpoint of the net or of a classifier on it."""
    kind = config["model_type"]
    at = next((p for p in ("vit.", "dinov2.") if any(n.startswith(p) for n in weights)), "")
    net = _net(weights, USUAL[kind] | config, at, kind)
    if kind == "vit":
        image = hf.view(net["image"], pixels, found.HALVES, squash=True, method="bilinear")
    else:
        image = hf.view(net["image"], pixels, found.IMAGENET)
    return Found({"backbone": net}, layout("backbone", net, kind, spelling(weights), at), image)


def spelling(weights) -> str:
    """"hub" or "memory": which of the two namings a file has."""
    return "memory" if any(".attention.q_proj." in n for n in weights) else "hub"


def _net(weights, config, at, kind):
    inner = rows.without(at, weights)
    width, _, patch, _ = inner["embeddings.patch_embeddings.projection.weight"].shape
    side = math.isqrt(inner["embeddings.position_embeddings"].shape[1] - 1)
    net = dict(name="vit", width=width, depth=rows.count(inner, r"(?:encoder\.layer|layers)\.(\d+)\."),
               heads=config["num_attention_heads"], patch=patch, image=side * patch, gelu=hf.gelu(config),
               eps=config["layer_norm_eps"])
    if kind == "vit":
        first = next(n for n in ("encoder.layer.0.intermediate.dense.weight", "layers.0.mlp.fc1.weight") if n in inner)
        return net | dict(mlp=inner[first].shape[0])
    gated = bool(config["use_swiglu_ffn"])
    return net | dict(mlp=_mlp(width, config["mlp_ratio"], gated), mlp_kind="swiglu" if gated else "gelu",
                      layer_scale=config["layerscale_value"] or 1.0, mask_token="embeddings.mask_token" in inner)


def _mlp(width, ratio, gated):
    """The width of Dinov2Model's MLP, behind the gate if it has one."""
    return (int(int(width * ratio) * 2 / 3) + 7) // 8 * 8 if gated else int(width * ratio)


def layout(role: str, net: dict, kind: str, naming: str = "hub", at: str = "") -> Layout:
    """Rows of nets/vit in the names of ViTModel or Dinov2Model.

    Args:
      naming: as `spelling` says. at: what stands before each name.
    """
    table = rows.conv(f"{role}/patches", "embeddings.patch_embeddings.projection", bias=True)
    table += rows.norm(f"{role}/norm", "layernorm")
    table += [row(f"{role}/class_token/embedding", "inner", "embeddings.cls_token"),
              row(f"{role}/positions/embedding", "inner", "embeddings.position_embeddings")]
    table += [row(f"{role}/mask_token/embedding", "as is", "embeddings.mask_token")] * bool(net.get("mask_token"))
    table += rows.blocks(role, timm.sizes(net)[1], **_blocks(kind, naming == "hub", net.get("mlp_kind") == "swiglu"))
    return Layout(tuple(rows.below(at, table)), (re.escape(at) + BESIDE[0], BESIDE[1]))


def _blocks(kind, hub, gated):
    """Names within a block, as `rows.blocks` takes them."""
    names = dict(at="encoder.layer.{}.", qkv=tuple(f"attention.{x}_proj" for x in "qkv"), out="attention.o_proj")
    if hub:
        names |= dict(qkv=tuple(f"attention.attention.{x}" for x in ("query", "key", "value")),
                      out="attention.output.dense")
    if kind == "vit":
        names |= dict(norms=("layernorm_before", "layernorm_after"), mlp=("mlp.fc1", "mlp.fc2"))
        return names | (dict(mlp=("intermediate.dense", "output.dense")) if hub else dict(at="layers.{}."))
    names |= dict(norms=("norm1", "norm2"), scales=("layer_scale1.lambda1", "layer_scale2.lambda1"))
    if not gated:
        return names | dict(mlp=("mlp.fc1", "mlp.fc2"))
    return names | dict(mlp=("mlp.weights_in", "mlp.weights_out") if hub else
                        (("mlp.gate_proj", "mlp.up_proj"), "mlp.down_proj"))


def package(model) -> Package:
    """What `from_pretrained` opens.

    Raises:
      UsageError: a net that transformers has no class for.
    """
    role = found.only(model.nets, "transformers", "vit")
    net = model.nets[role]
    found.refuse("transformers", net, posemb="learned", class_token=True, registers=0, pool="cls",
                 position_on_class=True, pre_norm=False, patch_bias=True, final_norm=True, out=0)
    found.refuse_resize("transformers", net, model.image, "size")
    width, depth, heads, _ = timm.sizes(net)
    config = dict(hidden_size=width, num_hidden_layers=depth, num_attention_heads=heads,
                  hidden_act=hf.GELUS[net["gelu"]], layer_norm_eps=net["eps"], image_size=net["image"],
                  patch_size=net["patch"], num_channels=3, qkv_bias=True)
    kind, made, inside, more, opened = _vit(net, model.beside) if not net["layer_scale"] else _dinov2(net)
    config |= dict(model_type=kind, architectures=[made], **more)
    files = {"config.json": json.dumps(config, indent=2),
             "preprocessor_config.json": hf.preprocessor(model.image, "ViTImageProcessor")}
    lines = f"from transformers import {made}", f'model = {made}.from_pretrained("{{dir}}"{opened}).eval()'
    # Dinov2Model interpolates its positions unasked.
    asked = ", interpolate_pos_encoding=True" if kind == "vit" and found.side(model.image) != net["image"] else ""
    call = f'out = {{"image": model(pixel_values=pixels{asked}).last_hidden_state[:, 0]}}'
    return Package(layout(role, net, kind), "model.safetensors", files, lines, (call,),
                   tuple((role, f"stack/block{i + 1}", inside.format(i)) for i in range(depth)))


def _vit(net, beside):
    """(model_type, class, its name of a block in version 5, its own settings, arguments of from_pretrained)."""
    found.refuse("transformers", net, mask_token=False, mlp_kind=("", "gelu"))
    pooled = "pooler.dense.weight" in beside
    return "vit", "ViTModel", "layers.{}", dict(intermediate_size=timm.sizes(net)[3]), f", add_pooling_layer={pooled}"


def _dinov2(net):
    (width, _, _, mlp), gated = timm.sizes(net), timm.gated(net)
    ratio = next((r for r in range(1, 17) if _mlp(width, r, gated) == mlp), None)
    if ratio is None:
        raise UsageError(f"--to=transformers: nets/vit has an MLP of {mlp} for width {width}, which is no mlp_ratio of "
                         "Dinov2Model")
    settings = dict(mlp_ratio=ratio, layerscale_value=net["layer_scale"], use_swiglu_ffn=gated,
                    use_mask_token=net["mask_token"])
    return "dinov2", "Dinov2Model", "encoder.layer.{}", settings, ""
