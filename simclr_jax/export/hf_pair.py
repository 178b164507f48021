"""transformers' CLIPModel and SiglipModel."""
import json
import math

from simclr_jax.errors import UsageError
from simclr_jax.export import found, hf, open_clip, rows, timm
from simclr_jax.export.found import Found, Package
from simclr_jax.export.layout import Layout, row

BESIDE = (r".*\.position_ids",)
USUAL = {"clip": dict(hidden_act="quick_gelu", layer_norm_eps=1e-5), "siglip": dict(hidden_act="gelu_pytorch_tanh", layer_norm_eps=1e-6)}
HEADS = {("clip", "text"): 8}  # where configs do not say, as in the classes' defaults; 12 elsewhere


def read(weights, config: dict, pixels: dict, where: str) -> Found:
    """The nets of a state dict."""
    kind = config["model_type"]
    nets = _nets(weights, config, kind)
    usual, squash = (found.CLIP, False) if kind == "clip" else (found.HALVES, True)
    text = nets["text"]
    tokens = dict(name="clip", length=text["length"]) if kind == "clip" and text["vocab"] == 49408 else {}
    return Found(nets, layout(nets, kind), hf.view(nets["image"]["image"], pixels, usual, squash), tokens)


def _nets(weights, config, kind):
    text, vision = config["text_config"], config["vision_config"]
    of = lambda name: weights[name].shape

    def shared(role, c):
        c = {**USUAL[kind], **c}
        return dict(depth=c.get("num_hidden_layers", 12), heads=c.get("num_attention_heads", HEADS.get((kind, role), 12)),
                    gelu=hf.gelu(c), eps=c["layer_norm_eps"])

    width, _, patch, _ = of("vision_model.embeddings.patch_embedding.weight")
    positions = of("vision_model.embeddings.position_embedding.weight")[0]
    side = math.isqrt(positions)
    image = dict(name="vit", width=width, mlp=of("vision_model.encoder.layers.0.mlp.fc1.weight")[0], patch=patch, image=side * patch,
                 **shared("image", vision))
    vocab, wide = of("text_model.embeddings.token_embedding.weight")
    words = dict(name="text", vocab=vocab, length=of("text_model.embeddings.position_embedding.weight")[0], width=wide,
                 mlp=of("text_model.encoder.layers.0.mlp.fc1.weight")[0], **shared("text", text))
    if kind == "clip":
        eos = text.get("eos_token_id", 49407)
        # Files from before the end token was right say 2; there the largest id ends a text.
        ends = dict(pool="argmax") if eos == 2 else dict(pool="eot", eot=eos)
        out = of("visual_projection.weight")[0]
        return {"image": image | dict(pre_norm=True, patch_bias=False, out=out, init="clip"), "text": words | ends | dict(out=out)}
    out = of("text_model.head.weight")[0]
    return {"image": image | dict(class_token=False, pool="map"),
            "text": words | dict(causal=False, pool="last", out=out, out_bias=True, init="vit")}


def layout(nets: dict, kind: str) -> Layout:
    """Rows of both towers, and of scale and bias, in the names of CLIPModel or SiglipModel."""
    one = "as is" if kind == "clip" else "inner"  # SigLIP keeps its scalars in a vector of one
    table = [row("logit_scale", one, "logit_scale"), *_tower("text", nets["text"], "text_model."),
             *_tower("image", nets["image"], "vision_model."),
             row("text/tokens/embedding", "as is", "text_model.embeddings.token_embedding.weight"),
             row("text/positions/embedding", "as is", "text_model.embeddings.position_embedding.weight"),
             *rows.norm("text/norm", "text_model.final_layer_norm"),
             *rows.conv("image/patches", "vision_model.embeddings.patch_embedding", bias=kind == "siglip"),
             row("image/positions/embedding", "as is", "vision_model.embeddings.position_embedding.weight"),
             *rows.norm("image/norm", "vision_model.post_layernorm")]
    if kind == "clip":
        table += [row("image/class_token/embedding", "row", "vision_model.embeddings.class_embedding"),
                  *rows.norm("image/norm_pre", "vision_model.pre_layrnorm"),
                  *rows.dense("image/projection", "visual_projection", bias=False),
                  *rows.dense("text/projection", "text_projection", bias=False)]
        return Layout(tuple(table), BESIDE)
    head = "vision_model.head."
    table += [row("logit_bias", one, "logit_bias"), row("image/pool/probe/embedding", "inner", head + "probe"),
              *rows.thirds("image/pool/q", head + "attention.in_proj", 0, 1), *rows.thirds("image/pool/kv", head + "attention.in_proj", 1, 3),
              *rows.dense("image/pool/out", head + "attention.out_proj"), *rows.norm("image/pool/norm", head + "layernorm"),
              *rows.dense("image/pool/mlp/fc1", head + "mlp.fc1"), *rows.dense("image/pool/mlp/fc2", head + "mlp.fc2"),
              *rows.dense("text/projection", "text_model.head")]
    return Layout(tuple(table), BESIDE)


def _tower(role, net, at):
    return rows.blocks(role, timm.sizes(net)[1], at + "encoder.layers.{}.", norms=("layer_norm1", "layer_norm2"),
                       qkv=tuple(f"self_attn.{x}_proj" for x in "qkv"), out="self_attn.out_proj", mlp=("mlp.fc1", "mlp.fc2"))


def package(model) -> Package:
    """What `from_pretrained` opens.

    Raises:
      UsageError: nets that transformers has no class for.
    """
    image, text = model.nets["image"], model.nets["text"]
    kind = "siglip" if image.get("pool") == "map" else "clip"
    if kind == "clip":
        open_clip.check("transformers", model.nets, gelus=tuple(hf.GELUS))
        found.refuse("transformers", image, name="vit", pool="cls")
        found.refuse("transformers", text, pool=("eot", "argmax"))
        if text["pool"] == "eot" and text["eot"] == 2:
            raise UsageError("--to=transformers: the end token is 2, by which transformers means the largest id of a text; train with "
                             "a tokenizer whose end token is another")
    else:
        found.refuse("transformers", image, posemb="learned", class_token=False, registers=0, mask_token=False, pre_norm=False,
                     patch_bias=True, final_norm=True, layer_scale=0.0, out=0)
        found.refuse("transformers", text, causal=False, pool="last", final_norm=True, out_bias=True)
    names = dict(width="hidden_size", depth="num_hidden_layers", heads="num_attention_heads", mlp="intermediate_size")
    towers = {}
    for role, net in (("text", text), ("image", image)):
        towers[role] = {names[k]: v for k, v in zip(("width", "depth", "heads", "mlp"), timm.sizes(net))} | dict(
            hidden_act=hf.GELUS[net["gelu"]], layer_norm_eps=net["eps"], model_type=f"{kind}_{'text' if role == 'text' else 'vision'}_model")
    towers["text"] |= dict(vocab_size=text["vocab"], max_position_embeddings=text["length"])
    towers["image"] |= dict(image_size=image["image"], patch_size=image["patch"], num_channels=3)
    config = dict(model_type=kind, text_config=towers["text"], vision_config=towers["image"])
    if kind == "clip":
        eos = 2 if text.get("pool") == "argmax" else text["eot"]
        towers["text"] |= dict(projection_dim=text["out"], eos_token_id=eos, bos_token_id=max(0, text["vocab"] - 2), pad_token_id=0)
        towers["image"] |= dict(projection_dim=text["out"])
        config |= dict(projection_dim=text["out"], architectures=["CLIPModel"])
        made, processor = "CLIPModel", "CLIPImageProcessor"
    else:
        towers["text"] |= dict(projection_size=text["out"], eos_token_id=min(1, text["vocab"] - 1), bos_token_id=0, pad_token_id=0)
        config |= dict(architectures=["SiglipModel"])
        made, processor = "SiglipModel", "SiglipImageProcessor"
    files = {"config.json": json.dumps(config, indent=2), "preprocessor_config.json": hf.preprocessor(model.image, processor)}
    # Without a mask, as padding is seen in training.
    # Version 5 returns an object with pooler_output where version 4 returned the tensor.
    call = ('tensor = lambda x: getattr(x, "pooler_output", x)',
            'out = {{"image": tensor(model.get_image_features(pixel_values=pixels)), '
            '"text": tensor(model.get_text_features(input_ids=tokens))}}')
    layers = tuple((role, f"stack/block{i + 1}", f"{at}.encoder.layers.{i}") for role, at in (("image", "vision_model"), ("text", "text_model"))
                   for i in range(timm.sizes(model.nets[role])[1]))
    return Package(layout(model.nets, kind), "model.safetensors", files,
                   (f"from transformers import {made}", f'model = {made}.from_pretrained("{{dir}}").eval()'), call, layers)
