"""open_clip and OpenAI's CLIP: pairs of an image and a text tower, by `open_clip.create_model("local-dir:DIR")`.

Names and arguments as in openai/CLIP clip/model.py (MIT) and open_clip 3 (github.com/mlfoundations/open_clip, MIT):
model.py, transformer.py, modified_resnet.py.
"""
import json
import math

import numpy as np

from simclr_jax.errors import UsageError
from simclr_jax.export import found, rows, timm
from simclr_jax.export.found import Found, Package
from simclr_jax.export.layout import Layout, row

BESIDE = (r"(visual\.)?.*num_batches_tracked", "attn_mask", "input_resolution", "context_length", "vocab_size")


def read(weights, config: dict, where: str) -> Found:
    """The nets of a state dict; `config` is open_clip_config.json, or {}."""
    cfg = config.get("model_cfg", config)
    vision, text = cfg.get("vision_cfg", {}), cfg.get("text_cfg", {})
    if "visual.class_embedding" not in weights and "visual.attnpool.c_proj.weight" not in weights:
        raise UsageError(f"{where}: it has no tower `visual` of OpenAI's CLIP; wanted a state dict of openai/CLIP or open_clip "
                         "(other towers of open_clip, such as timm's, are not read)")
    # Files of OpenAI's hold the resolution; open_clip's retrained nets say in their config which GELU they have.
    gelu = "quick" if cfg.get("quick_gelu", "input_resolution" in weights) else "erf"
    pixels = {k: config.get("preprocess_cfg", {}).get(k, v) for k, v in found.CLIP.items()}
    width, length = weights["positional_embedding"].shape[1], weights["positional_embedding"].shape[0]
    out, vocab = weights["text_projection"].shape[1], weights["token_embedding.weight"].shape[0]
    tower = dict(name="text", vocab=vocab, length=length, eot=vocab - 1, width=width,
                 depth=rows.count(weights, r"transformer\.resblocks\.(\d+)\."), heads=text.get("heads") or max(1, width // 64),
                 mlp=weights["transformer.resblocks.0.mlp.c_fc.weight"].shape[0], pool="argmax", gelu=gelu, eps=1e-5, out=out)
    if "visual.class_embedding" in weights:
        wide, _, patch, _ = weights["visual.conv1.weight"].shape
        side = math.isqrt(weights["visual.positional_embedding"].shape[0] - 1)
        image = dict(name="vit", width=wide, depth=rows.count(weights, r"visual\.transformer\.resblocks\.(\d+)\."),
                     heads=wide // vision.get("head_width", 64), mlp=weights["visual.transformer.resblocks.0.mlp.c_fc.weight"].shape[0],
                     patch=patch, image=side * patch, pre_norm=True, patch_bias=False, gelu=gelu, eps=1e-5, out=out, init="clip")
        size = side * patch
    else:
        blocks = tuple(rows.count(weights, rf"visual\.layer{i}\.(\d+)\.") for i in (1, 2, 3, 4))
        wide = weights["visual.layer1.0.conv1.weight"].shape[0]
        size = 32 * math.isqrt(weights["visual.attnpool.positional_embedding"].shape[0] - 1)
        image = dict(name="modified_resnet", layers=blocks, width=wide, heads=32 * wide // vision.get("head_width", 64), image=size,
                     out=out)
    nets = {"image": image, "text": tower}
    return Found(nets, layout(nets), found.view(size, **pixels), dict(name="clip", length=length) if vocab == 49408 else {})


def layout(nets: dict) -> Layout:
    """Rows of both towers and the scale in the names of openai/CLIP."""
    table = [row("logit_scale", "as is", "logit_scale"), row("text/tokens/embedding", "as is", "token_embedding.weight"),
             row("text/positions/embedding", "as is", "positional_embedding"), *rows.norm("text/norm", "ln_final"),
             row("text/projection/kernel", "as is", "text_projection"), *_blocks("text", timm.sizes(nets["text"])[1], "")]
    image = nets["image"]
    if image["name"] == "vit":
        table += [*rows.conv("image/patches", "visual.conv1"), row("image/class_token/embedding", "row", "visual.class_embedding"),
                  row("image/positions/embedding", "as is", "visual.positional_embedding"),
                  row("image/projection/kernel", "as is", "visual.proj"), *rows.norm("image/norm_pre", "visual.ln_pre"),
                  *rows.norm("image/norm", "visual.ln_post"), *_blocks("image", timm.sizes(image)[1], "visual.")]
    else:
        table += _modified_resnet(image["layers"])
    counters = {r.parts[0].name.removesuffix("running_mean") + "num_batches_tracked": np.int64(0) for r in table
                if r.parts[0].name.endswith("running_mean")}
    return Layout(tuple(table), BESIDE, counters)


def _blocks(role, depth, tower):
    table = rows.blocks(role, depth, tower + "transformer.resblocks.{}.", norms=("ln_1", "ln_2"), qkv=("attn.in_proj",),
                        out="attn.out_proj", mlp=("mlp.c_fc", "mlp.c_proj"))
    return rows.joined(table, "in_proj")


def _modified_resnet(layers):
    units = [(f"stem/{{}}{i}", f"visual.conv{i}", f"visual.bn{i}") for i in (1, 2, 3)]
    for stage, blocks in enumerate(layers, 1):
        for j in range(blocks):
            ours, theirs = f"stage{stage}/block{j + 1}", f"visual.layer{stage}.{j}"
            units += [(f"{ours}/{{}}{i}", f"{theirs}.conv{i}", f"{theirs}.bn{i}") for i in (1, 2, 3)]
            units += [(f"{ours}/downsample/{{}}1", f"{theirs}.downsample.0", f"{theirs}.downsample.1")] * (j == 0)
    table = []
    for ours, conv, bn in units:
        table += rows.conv("image/" + ours.format("conv"), conv) + rows.batch_norm("image", ours.format("bn"), bn)
    pool = "visual.attnpool."
    table.append(row("image/pool/positions/embedding", "as is", pool + "positional_embedding"))
    return table + rows.dense("image/pool/q", pool + "q_proj") + rows.dense("image/pool/out", pool + "c_proj") + rows.dense(
        "image/pool/kv", pool + "k_proj", pool + "v_proj")


def package(model) -> Package:
    """What `open_clip.create_model` opens.

    Raises:
      UsageError: towers that open_clip's CLIP does not have.
    """
    check("open_clip", model.nets, gelus=("quick", "erf"))
    image, text = model.nets["image"], model.nets["text"]
    found.refuse("open_clip", text, pool=("eot", "argmax"), eps=1e-5)
    width, depth, heads, _ = timm.sizes(text)
    cfg = dict(embed_dim=text["out"], quick_gelu=text.get("gelu", "quick") == "quick",
               text_cfg=dict(context_length=text["length"], vocab_size=text["vocab"], width=width, heads=heads, layers=depth))
    if image["name"] == "vit":
        found.refuse("open_clip", image, eps=1e-5)
        wide, deep, many, mlp = timm.sizes(image)
        cfg["vision_cfg"] = dict(image_size=image["image"], layers=deep, width=wide, head_width=wide // many,
                                 patch_size=image["patch"], mlp_ratio=mlp / wide)
        after = tuple(("image", f"stack/block{i + 1}", f"visual.transformer.resblocks.{i}") for i in range(deep))
    else:
        cfg["vision_cfg"] = dict(image_size=image["image"], layers=image["layers"], width=image["width"],
                                 head_width=32 * image["width"] // image["heads"])
        after = tuple(("image", f"stage{i}", f"visual.layer{i}") for i in (1, 2, 3, 4))
    after += tuple(("text", f"stack/block{i + 1}", f"transformer.resblocks.{i}") for i in range(depth))
    config = dict(model_cfg=cfg, preprocess_cfg=found.moments(model.image) | dict(interpolation=found.method(model.image)))
    return Package(layout(model.nets), "open_clip_model.safetensors", {"open_clip_config.json": json.dumps(config, indent=2)},
                   ("import open_clip", 'model = open_clip.create_model("local-dir:{dir}").eval()'),
                   ('out = {{"image": model.encode_image(pixels), "text": model.encode_text(tokens)}}',), after)


def check(target: str, nets: dict, gelus) -> None:
    """Refuses towers that are not those of CLIP.

    Raises:
      UsageError: which says what is another.
    """
    if not {"image", "text"} <= set(nets) or nets["image"]["name"] not in ("vit", "modified_resnet") or nets["text"]["name"] != "text":
        has = ", ".join(f"{r}={n['name']}" for r, n in nets.items())
        raise UsageError(f"--to={target} writes an image tower vit or modified_resnet and a tower text; this run has {has}; take "
                         "another target (--to=flax and --to=stablehlo take every net)")
    found.refuse(target, nets["text"], causal=True, final_norm=True, out_bias=False, gelu=gelus)
    if not nets["text"].get("out"):
        raise UsageError(f"--to={target}: nets/text has out=0, and CLIP projects; set config.nets.text.out")
    if nets["image"]["name"] == "vit":
        found.refuse(target, nets["image"], posemb="learned", class_token=True, registers=0, mask_token=False, pool="cls",
                     position_on_class=True, pre_norm=True, patch_bias=False, final_norm=True, layer_scale=0.0,
                     gelu=(nets["text"].get("gelu", "quick"),), out_bias=False, out=nets["text"]["out"])
