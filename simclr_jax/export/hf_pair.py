"""transformers' CLIPModel and SiglipModel."""
import json
import math

from simclr_jax.errors import UsageError
from simclr_jax.export import found, hf, open_clip, rows, texts, timm
from simclr_jax.export.found import Found, Package
from simclr_jax.export.layout import Layout, row

BESIDE = (r".*\.position_ids",)
TOWERS = {"text": "text_model", "image": "vision_model"}
# Where configs do not say: the defaults of CLIPConfig and SiglipConfig.
USUAL = {
    ("clip", "text"): dict(num_hidden_layers=12, num_attention_heads=8, hidden_act="quick_gelu", layer_norm_eps=1e-5),
    ("clip", "image"): dict(num_hidden_layers=12, num_attention_heads=12, hidden_act="quick_gelu", layer_norm_eps=1e-5),
    ("siglip", "text"): dict(num_hidden_layers=12, num_attention_heads=12, hidden_act="gelu_pytorch_tanh",
                             layer_norm_eps=1e-6)}
USUAL["siglip", "image"] = USUAL["siglip", "text"]


def read(weights, config: dict, pixels: dict, where: str) -> Found:
    """The nets of a state dict."""
    kind = config["model_type"]
    image = _image(weights, _settings(config, kind, "image"), kind)
    text = _text(weights, _settings(config, kind, "text"), kind)
    nets = {"image": image, "text": text}
    usual, squash = (found.CLIP, False) if kind == "clip" else (found.HALVES, True)
    tokens = dict(name="clip", length=text["length"]) if kind == "clip" and text["vocab"] == texts.CLIP else {}
    return Found(nets, layout(nets, kind), hf.view(image["image"], pixels, usual, squash=squash), tokens)


def _settings(config, kind, role):
    key = "text_config" if role == "text" else "vision_config"
    return USUAL[kind, role] | (config.get(key) or config.get(f"{key}_dict") or {})


def _blocks(weights, settings, role):
    return dict(depth=settings["num_hidden_layers"], heads=settings["num_attention_heads"], gelu=hf.gelu(settings),
                mlp=weights[f"{TOWERS[role]}.encoder.layers.0.mlp.fc1.weight"].shape[0], eps=settings["layer_norm_eps"])


def _image(weights, settings, kind):
    width, _, patch, _ = weights["vision_model.embeddings.patch_embedding.weight"].shape
    side = math.isqrt(weights["vision_model.embeddings.position_embedding.weight"].shape[0])
    net = dict(name="vit", width=width, patch=patch, image=side * patch, **_blocks(weights, settings, "image"))
    if kind == "siglip":
        return net | dict(class_token=False, pool="map")
    return net | dict(pre_norm=True, patch_bias=False, out=weights["visual_projection.weight"].shape[0], init="clip")


def _text(weights, settings, kind):
    vocab, width = weights["text_model.embeddings.token_embedding.weight"].shape
    length = weights["text_model.embeddings.position_embedding.weight"].shape[0]
    net = dict(name="text", vocab=vocab, length=length, width=width, **_blocks(weights, settings, "text"))
    if kind == "siglip":
        out = weights["text_model.head.weight"].shape[0]
        return net | dict(causal=False, pool="last", out=out, out_bias=True, init="vit")
    end = settings.get("eos_token_id", texts.CLIP - 1)
    ends = dict(pool="argmax", eot=vocab - 1) if end == texts.LARGEST else dict(pool="eot", eot=end)
    return net | ends | dict(out=weights["text_projection.weight"].shape[0])


def layout(nets: dict, kind: str) -> Layout:
    """Rows of both towers, and of scale and bias, in the names of CLIPModel or SiglipModel."""
    one = "as is" if kind == "clip" else "inner"  # SigLIP keeps its scalars in a vector of one
    text, image = "text_model.", "vision_model."
    table = [row("logit_scale", one, "logit_scale"),
             *_tower("text", nets["text"]), *_tower("image", nets["image"]),
             row("text/tokens/embedding", "as is", text + "embeddings.token_embedding.weight"),
             row("text/positions/embedding", "as is", text + "embeddings.position_embedding.weight"),
             *rows.norm("text/norm", text + "final_layer_norm"),
             *rows.conv("image/patches", image + "embeddings.patch_embedding", bias=kind == "siglip"),
             row("image/positions/embedding", "as is", image + "embeddings.position_embedding.weight"),
             *rows.norm("image/norm", image + "post_layernorm")]
    if kind == "clip":
        table += [row("image/class_token/embedding", "row", image + "embeddings.class_embedding"),
                  *rows.norm("image/norm_pre", image + "pre_layrnorm"),
                  *rows.dense("image/projection", "visual_projection", bias=False),
                  *rows.dense("text/projection", "text_projection", bias=False)]
    else:
        head = image + "head."
        table += [row("logit_bias", one, "logit_bias"),
                  *rows.dense("text/projection", "text_model.head"),
                  row("image/pool/probe/embedding", "inner", head + "probe"),
                  *rows.thirds("image/pool/q", head + "attention.in_proj", 0, 1),
                  *rows.thirds("image/pool/kv", head + "attention.in_proj", 1, 3),
                  *rows.dense("image/pool/out", head + "attention.out_proj"),
                  *rows.norm("image/pool/norm", head + "layernorm"),
                  *rows.dense("image/pool/mlp/fc1", head + "mlp.fc1"),
                  *rows.dense("image/pool/mlp/fc2", head + "mlp.fc2")]
    return Layout(tuple(table), BESIDE)


def _tower(role, net):
    return rows.blocks(role, timm.sizes(net)[1], TOWERS[role] + ".encoder.layers.{}.",
                       norms=("layer_norm1", "layer_norm2"), qkv=tuple(f"self_attn.{x}_proj" for x in "qkv"),
                       out="self_attn.out_proj", mlp=("mlp.fc1", "mlp.fc2"))


def package(model) -> Package:
    """What `from_pretrained` opens.

    Raises:
      UsageError: nets that transformers has no class for.
    """
    image, text = model.nets["image"], model.nets["text"]
    kind, made = ("siglip", "Siglip") if image.get("pool") == "map" else ("clip", "CLIP")
    _check(kind, model)
    of = {"text": _config(kind, "text", text) | texts.ids(kind, text, model.tokenizer),
          "image": _config(kind, "image", image) | dict(image_size=image["image"], patch_size=image["patch"],
                                                        num_channels=3)}
    config = dict(model_type=kind, architectures=[f"{made}Model"], text_config=of["text"], vision_config=of["image"])
    if kind == "clip":
        for part in (config, of["text"], of["image"]):
            part["projection_dim"] = text["out"]
    else:
        of["text"]["projection_size"] = text["out"]
    files = {"config.json": json.dumps(config, indent=2),
             "preprocessor_config.json": hf.preprocessor(model.image, f"{made}ImageProcessor"),
             **texts.files(text, model.tokenizer)}
    lines = (f"from transformers import {made}Model", f'model = {made}Model.from_pretrained("{{dir}}").eval()')
    # Without a mask, as padding is seen in training. Version 5 returns an object where version 4 returned the tensor.
    call = ('tensor = lambda x: getattr(x, "pooler_output", x)',
            'out = {"image": tensor(model.get_image_features(pixel_values=pixels)),',
            '       "text": tensor(model.get_text_features(input_ids=tokens))}')
    layers = tuple((role, f"stack/block{i + 1}", f"{TOWERS[role]}.encoder.layers.{i}")
                   for role in ("image", "text") for i in range(timm.sizes(model.nets[role])[1]))
    return Package(layout(model.nets, kind), "model.safetensors", files, lines, call, layers)


def _check(kind, model):
    image, text = model.nets["image"], model.nets["text"]
    found.refuse("transformers", image, name="vit")
    if kind == "siglip":
        found.refuse("transformers", image, posemb="learned", class_token=False, registers=0, mask_token=False,
                     pre_norm=False, patch_bias=True, final_norm=True, layer_scale=0.0, mlp_kind=("", "gelu"), out=0)
        found.refuse("transformers", text, name="text", causal=False, pool="last", final_norm=True, out_bias=True)
    else:
        open_clip.check("transformers", model.nets, gelus=tuple(hf.GELUS))
        found.refuse("transformers", text, pool=("eot", "argmax"))
        if text["pool"] == "eot" and text["eot"] == texts.LARGEST:
            raise UsageError(f"--to=transformers: the end token is {texts.LARGEST}, by which transformers means the "
                             "largest id of a text; train with a tokenizer whose end token is another")
    found.refuse_resize("transformers", image, model.image)


def _config(kind, role, net):
    width, depth, heads, mlp = timm.sizes(net)
    return dict(model_type=f"{kind}_{TOWERS[role]}", hidden_size=width, num_hidden_layers=depth,
                num_attention_heads=heads, intermediate_size=mlp, hidden_act=hf.GELUS[net["gelu"]],
                layer_norm_eps=net["eps"])
