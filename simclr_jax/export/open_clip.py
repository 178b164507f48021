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
# What leaves no trace in the arrays, and nets here are not; None is as good as absent.
PLAIN = {"vision_cfg": dict(pool_type="tok", global_average_pool=False, final_ln_after_pool=False, act_kwargs={},
                            norm_kwargs={}, pos_embed_type="learnable"),
         "text_cfg": dict(pool_type="argmax", no_causal_mask=False, proj_type="linear", act_kwargs={}, norm_kwargs={})}


def read(weights, config: dict, where: str) -> Found:
    """The nets of a state dict; `config` is open_clip_config.json, or {}.

    Raises:
      UsageError: another tower of open_clip's, or a setting that nets here have not.
    """
    cfg = config.get("model_cfg", config)
    if "visual.class_embedding" not in weights and "visual.attnpool.c_proj.weight" not in weights:
        raise UsageError(f"{where}: it has no tower `visual` of OpenAI's CLIP; wanted a state dict of openai/CLIP or "
                         "open_clip (other towers of open_clip, such as timm's, are not read)")
    for part, plain in PLAIN.items():
        for key, wanted in plain.items():
            if (value := cfg.get(part, {}).get(key)) is not None and value != wanted:
                raise UsageError(f"{where}: open_clip_config.json has {part}.{key}={value!r}, which no net here does")
    # Files of OpenAI's hold the resolution; open_clip's retrained nets say in their config which GELU they have.
    gelu = "quick" if cfg.get("quick_gelu", "input_resolution" in weights) else "erf"
    text = _text(weights, cfg.get("text_cfg", {}), gelu)
    of = _vit if "visual.class_embedding" in weights else _residual
    nets = {"image": of(weights, cfg.get("vision_cfg", {}), gelu) | dict(out=text["out"]), "text": text}
    tokens = dict(name="clip", length=text["length"]) if text["vocab"] == 49408 else {}
    return Found(nets, layout(nets), _view(nets["image"]["image"], config.get("preprocess_cfg", {}), where), tokens)


def _view(size, pixels, where):
    if pixels.get("resize_mode", "shortest") not in ("shortest", "squash"):
        raise UsageError(f"{where}: open_clip_config.json has resize_mode={pixels['resize_mode']!r}, wanted shortest "
                         "or squash")
    return found.view(size, **{k: pixels.get(k, v) for k, v in found.CLIP.items()},
                      method=pixels.get("interpolation", "bicubic"), squash=pixels.get("resize_mode") == "squash")


def _text(weights, settings, gelu):
    length, width = weights["positional_embedding"].shape
    vocab = weights["token_embedding.weight"].shape[0]
    return dict(name="text", vocab=vocab, length=length, eot=vocab - 1, width=width,
                depth=rows.count(weights, r"transformer\.resblocks\.(\d+)\."),
                heads=settings.get("heads") or max(1, width // 64),
                mlp=weights["transformer.resblocks.0.mlp.c_fc.weight"].shape[0], pool="argmax", gelu=gelu, eps=1e-5,
                out=weights["text_projection"].shape[1])


def _vit(weights, settings, gelu):
    width, _, patch, _ = weights["visual.conv1.weight"].shape
    return dict(name="vit", width=width, depth=rows.count(weights, r"visual\.transformer\.resblocks\.(\d+)\."),
                heads=width // settings.get("head_width", 64),
                mlp=weights["visual.transformer.resblocks.0.mlp.c_fc.weight"].shape[0], patch=patch,
                image=patch * math.isqrt(weights["visual.positional_embedding"].shape[0] - 1), pre_norm=True,
                patch_bias=False, gelu=gelu, eps=1e-5, init="clip")


def _residual(weights, settings, gelu):
    width = weights["visual.layer1.0.conv1.weight"].shape[0]
    return dict(name="modified_resnet", width=width, heads=32 * width // settings.get("head_width", 64),
                layers=tuple(rows.count(weights, rf"visual\.layer{i}\.(\d+)\.") for i in (1, 2, 3, 4)),
                image=32 * math.isqrt(weights["visual.attnpool.positional_embedding"].shape[0] - 1))


def layout(nets: dict) -> Layout:
    """Rows of both towers and the scale in the names of openai/CLIP."""
    image = nets["image"]
    table = [row("logit_scale", "as is", "logit_scale"),
             row("text/tokens/embedding", "as is", "token_embedding.weight"),
             row("text/positions/embedding", "as is", "positional_embedding"), *rows.norm("text/norm", "ln_final"),
             row("text/projection/kernel", "as is", "text_projection"), *_blocks("text", nets["text"], "")]
    if image["name"] == "vit":
        table += [*rows.conv("image/patches", "visual.conv1"),
                  row("image/class_token/embedding", "row", "visual.class_embedding"),
                  row("image/positions/embedding", "as is", "visual.positional_embedding"),
                  row("image/projection/kernel", "as is", "visual.proj"), *rows.norm("image/norm_pre", "visual.ln_pre"),
                  *rows.norm("image/norm", "visual.ln_post"), *_blocks("image", image, "visual.")]
    else:
        table += _modified_resnet(image["layers"])
    norms = [r.parts[0].name for r in table if r.parts[0].name.endswith("running_mean")]
    counters = {name.removesuffix("running_mean") + "num_batches_tracked": np.int64(0) for name in norms}
    return Layout(tuple(table), BESIDE, counters)


def _blocks(role, net, tower):
    table = rows.blocks(role, timm.sizes(net)[1], tower + "transformer.resblocks.{}.", norms=("ln_1", "ln_2"),
                        qkv=("attn.in_proj",), out="attn.out_proj", mlp=("mlp.c_fc", "mlp.c_proj"))
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
    return [*table, row("image/pool/positions/embedding", "as is", pool + "positional_embedding"),
            *rows.dense("image/pool/q", pool + "q_proj"), *rows.dense("image/pool/out", pool + "c_proj"),
            *rows.dense("image/pool/kv", pool + "k_proj", pool + "v_proj")]


def package(model) -> Package:
    """What `open_clip.create_model` opens.

    Raises:
      UsageError: towers that open_clip's CLIP does not have.
    """
    check("open_clip", model.nets, gelus=("quick", "erf"))
    image, text = model.nets["image"], model.nets["text"]
    found.refuse("open_clip", text, pool=("eot", "argmax"), eps=1e-5, mlp=(0, 4 * text["width"]))
    if text["eot"] != text["vocab"] - 1:
        raise UsageError(f"--to=open_clip: texts end with {text['eot']}, and open_clip looks at the largest id, "
                         f"{text['vocab'] - 1}; take --to=transformers")
    found.refuse("open_clip", image, eps=1e-5)
    found.refuse_resize("open_clip", image, model.image)
    vision, inside = _vision(image)
    width, depth, heads, _ = timm.sizes(text)
    words = dict(context_length=text["length"], vocab_size=text["vocab"], width=width, heads=heads, layers=depth)
    cfg = dict(embed_dim=text["out"], quick_gelu=text["gelu"] == "quick", vision_cfg=vision, text_cfg=words)
    pixels = dict(interpolation=found.method(model.image),
                  resize_mode="squash" if found.squashed(model.image) else "shortest", **found.moments(model.image))
    layers = (*inside, *(("text", f"stack/block{i + 1}", f"transformer.resblocks.{i}") for i in range(depth)))
    return Package(layout(model.nets), "open_clip_model.safetensors",
                   {"open_clip_config.json": json.dumps(dict(model_cfg=cfg, preprocess_cfg=pixels), indent=2)},
                   ("import open_clip", 'model = open_clip.create_model("local-dir:{dir}").eval()'),
                   ('out = {"image": model.encode_image(pixels), "text": model.encode_text(tokens)}',), layers)


def _vision(net):
    """(vision_cfg, layers as in Package)."""
    if net["name"] == "vit":
        width, depth, heads, mlp = timm.sizes(net)
        cfg = dict(image_size=net["image"], layers=depth, width=width, head_width=width // heads,
                   patch_size=net["patch"], mlp_ratio=mlp / width)
        inside = [(f"stack/block{i + 1}", f"visual.transformer.resblocks.{i}") for i in range(depth)]
    else:
        cfg = dict(image_size=net["image"], layers=net["layers"], width=net["width"],
                   head_width=32 * net["width"] // net["heads"])
        inside = [(f"stage{i}", f"visual.layer{i}") for i in (1, 2, 3, 4)]
    return cfg, [("image", *names) for names in inside]


def check(target: str, nets: dict, gelus) -> None:
    """Refuses towers that are not those of CLIP.

    Raises:
      UsageError: which says what is another.
    """
    image, text = nets.get("image", {}), nets.get("text", {})
    if image.get("name") not in ("vit", "modified_resnet") or text.get("name") != "text":
        has = ", ".join(f"{r}={n['name']}" for r, n in nets.items())
        raise UsageError(f"--to={target} writes an image tower vit or modified_resnet and a tower text; this run has "
                         f"{has}; take another target (--to=flax and --to=stablehlo take every net)")
    found.refuse(target, text, causal=True, final_norm=True, out_bias=False, gelu=gelus)
    if not text["out"]:
        raise UsageError(f"--to={target}: nets/text has out=0, and CLIP projects; set config.nets.text.out")
    if image["name"] == "vit":
        found.refuse(target, image, posemb="learned", class_token=True, registers=0, mask_token=False, pool="cls",
                     position_on_class=True, pre_norm=True, patch_bias=False, final_norm=True, layer_scale=0.0,
                     mlp_kind=("", "gelu"), gelu=text["gelu"], out_bias=False, out=text["out"])
