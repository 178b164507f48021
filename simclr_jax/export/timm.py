"""timm: its ResNets and vision transformers, by `timm.create_model("local-dir:DIR", pretrained=True)`.

Names and arguments as in timm 1.0 (github.com/huggingface/pytorch-image-models, Apache-2.0): resnet.py,
vision_transformer.py, layers/attention_pool.py.
"""
import json
import math
from typing import NamedTuple

import numpy as np

from simclr_jax.errors import UsageError
from simclr_jax.export import found, rows, torch_resnet
from simclr_jax.export.found import Found, Package
from simclr_jax.export.layout import Layout, row
from simclr_jax.nets import posemb
from simclr_jax.nets.vit import GATED, SIZES

GELUS = {"erf": "gelu", "tanh": "gelu_tanh", "quick": "quick_gelu"}
# What only the names of timm's architectures tell of a net (vision_transformer.py).
NAMED = {"quickgelu": dict(act_layer="quick_gelu"), "so400m_patch16_siglip": dict(act_layer="gelu_tanh"),
         "giantopt_patch16_siglip": dict(act_layer="gelu_tanh", num_heads=16), "gigantic_": dict(num_heads=16),
         "large_patch16_siglip_512": dict(act_layer="gelu_tanh"), "base_patch32_siglip": dict(act_layer="gelu_tanh"),
         "large_patch16_siglip_gap_512": dict(act_layer="gelu_tanh"), "vit_base_patch16_gap_224": dict(num_heads=16)}
BESIDE = (r"head\.(weight|bias)",)


def read(weights, config: dict, where: str) -> Found:
    """The net of a state dict; `config` is that of the directory it came in, or {}."""
    cfg = config.get("pretrained_cfg", {})
    pixels = dict(mean=cfg.get("mean", found.IMAGENET["mean"]), std=cfg.get("std", found.IMAGENET["std"]),
                  crop=cfg.get("crop_pct", 0.875), method=cfg.get("interpolation", "bicubic"),
                  squash=cfg.get("crop_mode") == "squash")
    if "conv1.weight" in weights:
        net = found.said(torch_resnet.describe(weights, where), config)
        size = cfg.get("input_size", (3, *(224 if net["stem"] == "imagenet" else 32,) * 2))[-1]
        return Found({"backbone": net}, torch_resnet.layout("backbone", net), found.view(size, **pixels))
    if "patch_embed.proj.weight" not in weights:
        raise UsageError(f"{where}: neither a ResNet nor a vision transformer of timm: it has no conv1.weight and no "
                         "patch_embed.proj.weight")
    args = _named(config.get("architecture", "")) | config | config.get("model_args", {})
    net = found.said(vit(weights, args, where) | dict(position_resize="antialias"), config)
    size = cfg["input_size"][-1] if args.get("dynamic_img_size") and "input_size" in cfg else net["image"]
    return Found({"backbone": net}, layout("backbone", net), found.view(size, **pixels))


def _named(architecture: str) -> dict:
    args = [args for part, args in NAMED.items() if part in architecture]
    return {k: v for more in args for k, v in more.items()}


def vit(weights, args, where):
    """The nets/vit of a state dict; args: of its constructor, as far as they are known."""
    shape = lambda name: weights[name].shape
    if "blocks.0.mlp.fc1.weight" not in weights or "fc_norm.weight" in weights or "pos_embed" not in weights:
        raise UsageError(f"{where}: its vision transformer has other blocks, no learned positions, or pools before its "
                         "last norm (fc_norm), which no net here does")
    width, _, patch, _ = shape("patch_embed.proj.weight")
    depth, mlp = rows.count(weights, r"blocks\.(\d+)\."), shape("blocks.0.mlp.fc2.weight")[1]
    gate, pre_norm = shape("blocks.0.mlp.fc1.weight")[0] == 2 * mlp, "norm_pre.weight" in weights
    cls, registers = "cls_token" in weights, shape("reg_token")[1] if "reg_token" in weights else 0
    positions = shape("pos_embed")[-2]
    side = math.isqrt(positions)
    on_class = cls and side ** 2 != positions
    if side ** 2 != positions - on_class:
        raise UsageError(f"{where}: pos_embed has {positions} positions, wanted a square of patches and at most one "
                         "for the class token")
    pool = "map" if "attn_pool.latent" in weights else "cls"
    if pool == "cls" and (args.get("global_pool") == "avg" or not cls):
        pool = "mean"
    gelu = {v: k for k, v in GELUS.items()}.get("gelu" if gate else args.get("act_layer", "gelu"))
    if gelu is None:
        raise UsageError(f"{where}: act_layer={args['act_layer']!r}, wanted one of {', '.join(GELUS.values())}")
    return dict(name="vit", width=width, depth=depth, heads=args.get("num_heads") or heads(width, depth, mlp), mlp=mlp,
                patch=patch, image=side * patch, pool=pool, class_token=cls, registers=registers,
                position_on_class=on_class, pre_norm=pre_norm, patch_bias="patch_embed.proj.bias" in weights,
                final_norm="norm.weight" in weights, layer_scale=1.0 if "blocks.0.ls1.gamma" in weights else 0.0,
                mlp_kind="swiglu" if gate else "gelu", gelu=gelu,
                eps=1e-5 if pre_norm else 1e-6)  # those with a norm before the blocks are CLIP's


def heads(width: int, depth: int, mlp: int) -> int:
    """Those of the published size, or one for 64 numbers."""
    known = {(w, d, m): h for w, d, h, m in SIZES.values()}
    return known.get((width, depth, mlp)) or max(1, width // 64)


def layout(role: str, net: dict) -> Layout:
    """Rows of nets/vit in timm's names."""
    table = rows.conv(f"{role}/patches", "patch_embed.proj", bias=net.get("patch_bias", True))
    for ours, theirs, there in (("class_token", "cls_token", net.get("class_token", True)),
                                ("registers", "reg_token", net.get("registers", 0))):
        table += [row(f"{role}/{ours}/embedding", "inner", theirs)] * bool(there)
    filled = {}
    if net.get("posemb", "learned") == "learned":
        table.append(row(f"{role}/positions/embedding", "inner", "pos_embed"))
    else:
        filled["pos_embed"] = _sines(net)
    for ours, there in (("norm_pre", net.get("pre_norm", False)), ("norm", net.get("final_norm", True))):
        table += rows.norm(f"{role}/{ours}", ours) if there else []
    table += rows.blocks(role, sizes(net)[1], "blocks.{}.", norms=("norm1", "norm2"), qkv=("attn.qkv",),
                         out="attn.proj", mlp=("mlp.fc1", "mlp.fc2"),
                         scales=("ls1.gamma", "ls2.gamma") if net.get("layer_scale", 0) else ())
    if net.get("pool", "cls") == "map":
        table.append(row(f"{role}/pool/probe/embedding", "inner", "attn_pool.latent"))
        for ours, theirs in (("q", "q"), ("kv", "kv"), ("out", "proj"), ("mlp/fc1", "mlp.fc1"), ("mlp/fc2", "mlp.fc2")):
            table += rows.dense(f"{role}/pool/{ours}", f"attn_pool.{theirs}")
        table += rows.norm(f"{role}/pool/norm", "attn_pool.norm")
    if net.get("out", 0):
        table += rows.dense(f"{role}/projection", "head", bias=net.get("out_bias", False))
        if not net.get("out_bias", False):
            filled["head.bias"] = np.zeros(net["out"], np.float32)
    return Layout(tuple(table), BESIDE, filled)


def _sines(net):
    """f32[1,N,width]: what timm learns and ours computes."""
    side, width = net["image"] // net["patch"], sizes(net)[0]
    on_class = int(net.get("class_token", True) and net.get("position_on_class", True))
    sines = posemb.sincos(side, side, width, kind=net["posemb"]).astype(np.float32)
    return np.concatenate([np.zeros((on_class, width), np.float32), sines])[None]


def sizes(net: dict):
    """(width, depth, heads, mlp) of a nets/vit, or of another net of `transformer`."""
    width = net.get("width", 0)
    usual = (8 * width // 3 + 7) // 8 * 8 if gated(net) else 4 * width
    of = SIZES.get(net.get("size", ""), (0, 0, 0, usual))
    return tuple(net.get(key) or usual for key, usual in zip(("width", "depth", "heads", "mlp"), of))


def gated(net: dict) -> bool:
    """Whether a nets/vit has gated MLPs."""
    return (net.get("mlp_kind") or ("swiglu" if net.get("size") in GATED else "gelu")) == "swiglu"


def package(model) -> Package:
    """What `timm.create_model("local-dir:DIR")` opens.

    Raises:
      UsageError: a net that timm has none for.
    """
    role = found.only(model.nets, "timm", "resnet", "vit")
    net, side = model.nets[role], found.side(model.image)
    made = _resnet(net, role) if net["name"] == "resnet" else _vit(net, role, model.image)
    # A classifier that came with the weights goes with them, and features are what it is given.
    classifier = model.beside.get(f"{made.classifier}.weight")
    classes = classifier.shape[0] if classifier else made.out
    cfg = dict(input_size=(3, side, side), crop_pct=found.crop(model.image), interpolation=found.method(model.image),
               crop_mode="squash" if found.squashed(model.image) else "center", **found.moments(model.image),
               first_conv=made.first, classifier=made.classifier, num_classes=classes)
    config = dict(architecture=made.name, num_classes=classes, model_args=made.args, pretrained_cfg=cfg,
                  **found.unsaid(net))
    features = "model.forward_head(model.forward_features(pixels), pre_logits=True)" if classifier else "model(pixels)"
    lines = "import timm, torch", 'model = timm.create_model("local-dir:{dir}", pretrained=True).eval()'
    if made.exchanged:
        lines = ("import safetensors.torch, timm, torch",
                 'model = timm.create_model("local-dir:{dir}", pretrained=False)', *made.exchanged,
                 'model.load_state_dict(safetensors.torch.load_file("{dir}/model.safetensors"), strict=True)',
                 "model.eval()")
    return Package(made.layout, "model.safetensors", {"config.json": json.dumps(config, indent=2)}, lines,
                   (f'out = {{"image": {features}}}',), made.layers, left=(rf"{role}/mask_token/embedding",))


class Made(NamedTuple):
    """A net of timm's."""

    name: str  # of its constructor
    args: dict  # for it
    out: int  # width of a last linear layer, 0: none
    first: str  # its first convolution
    classifier: str
    layout: Layout
    layers: tuple  # as in Package
    exchanged: tuple[str, ...]  # Python that changes what arguments cannot


def _resnet(net, role):
    found.refuse("timm", net, layout=torch_resnet.LAYOUTS)
    channels = torch_resnet.widths(net)[1:]
    return Made(f"resnet{net['depth']}", {} if channels == (64, 128, 256, 512) else dict(channels=channels), 0, "conv1",
                "fc", torch_resnet.layout(role, net), torch_resnet.layers(role), torch_resnet.exchanged(net))


def _vit(net, role, image):
    found.refuse_resize("timm", net, image, "antialias")
    if net.get("posemb", "learned") != "learned":  # computed for the pictures at hand
        net = net | dict(image=found.side(image))
    exchanged = ()
    if net["eps"] != 1e-6:
        exchanged = ("for module in model.modules():\n    if isinstance(module, torch.nn.LayerNorm):\n"
                     f"        module.eps = {net['eps']}",)
    args = _arguments(net) | dict(dynamic_img_size=found.side(image) != net["image"])
    # Arguments are all given, but whether the MLP is gated is the architecture's alone.
    name = "vit_giant_patch14_dinov2" if gated(net) else "vit_base_patch16_224"
    layers = tuple((role, f"stack/block{i + 1}", f"blocks.{i}") for i in range(sizes(net)[1]))
    return Made(name, args, net.get("out", 0), "patch_embed.proj", "head", layout(role, net), layers, exchanged)


def _arguments(net):
    found.refuse("timm", net, pool=("cls", "mean", "map"))
    width, depth, heads, mlp = sizes(net)
    cls, pre_norm = net.get("class_token", True), net.get("pre_norm", False)
    if net.get("registers", 0) and cls:
        found.refuse("timm", net, position_on_class=False)
    if pre_norm == net.get("patch_bias", True):
        raise UsageError(f"--to=timm: nets/vit has pre_norm={pre_norm} and patch_bias={not pre_norm}; timm has a "
                         "bias on the patches exactly where it has no norm before the blocks")
    pool = {"cls": "token", "mean": "avg", "map": "map"}[net.get("pool", "cls")]
    args = dict(img_size=net["image"], patch_size=net["patch"], embed_dim=width, depth=depth, num_heads=heads,
                mlp_ratio=(1 + gated(net)) * mlp / width, class_token=cls, reg_tokens=net.get("registers", 0),
                no_embed_class=not cls or not net.get("position_on_class", True), pre_norm=pre_norm,
                final_norm=net.get("final_norm", True), fc_norm=False, global_pool=pool,
                init_values=net["layer_scale"] or None)
    return args if gated(net) else args | dict(act_layer=GELUS[net["gelu"]])
