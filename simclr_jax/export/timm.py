"""timm: its ResNets and vision transformers, by `timm.create_model("local-dir:DIR", pretrained=True)`.

Names and arguments as in timm 1.0 (github.com/huggingface/pytorch-image-models, Apache-2.0): resnet.py,
vision_transformer.py, layers/attention_pool.py.
"""
import json
import math

import numpy as np

from simclr_jax.errors import UsageError
from simclr_jax.export import found, rows, torch_resnet
from simclr_jax.export.found import Found, Package
from simclr_jax.export.layout import Layout, row
from simclr_jax.nets import posemb
from simclr_jax.nets.vit import GATED, SIZES

GELUS = {"erf": "gelu", "tanh": "gelu_tanh", "quick": "quick_gelu"}
BESIDE = (r"head\.(weight|bias)",)


def read(weights, config: dict, where: str) -> Found:
    """The net of a state dict; `config` is that of the directory it came in, or {}."""
    cfg = config.get("pretrained_cfg", {})
    pixels = dict(mean=cfg.get("mean", found.IMAGENET["mean"]), std=cfg.get("std", found.IMAGENET["std"]),
                  crop=cfg.get("crop_pct", 0.875), method=cfg.get("interpolation", "bicubic"),
                  squash=cfg.get("crop_mode") == "squash")
    if "conv1.weight" in weights:
        net = torch_resnet.describe(weights, where)
        size = cfg.get("input_size", (3, 224, 224))[-1] if net["stem"] == "imagenet" else cfg.get("input_size", (3, 32, 32))[-1]
        return Found({"backbone": net}, torch_resnet.layout("backbone", net), found.view(size, **pixels))
    if "patch_embed.proj.weight" not in weights:
        raise UsageError(f"{where}: neither a ResNet nor a vision transformer of timm: it has no conv1.weight and no "
                         "patch_embed.proj.weight")
    net = vit(weights, {**config, **config.get("model_args", {})}, where)
    return Found({"backbone": net}, layout("backbone", net), found.view(net["image"], **pixels))


def vit(weights, args, where):
    """The nets/vit of a state dict; args: of its constructor, as far as they are known."""
    shape = lambda name: weights[name].shape
    width, _, patch, _ = shape("patch_embed.proj.weight")
    depth, mlp = rows.count(weights, r"blocks\.(\d+)\."), shape("blocks.0.mlp.fc2.weight")[1]
    gate = shape("blocks.0.mlp.fc1.weight")[0] == 2 * mlp
    known = {(w, d, m): h for w, d, h, m in SIZES.values()}
    heads = args.get("num_heads") or known.get((width, depth, mlp)) or max(1, width // 64)
    cls, registers = "cls_token" in weights, shape("reg_token")[1] if "reg_token" in weights else 0
    positions = shape("pos_embed")[-2]
    side = math.isqrt(positions)
    on_class = cls and side ** 2 != positions
    if side ** 2 != positions - on_class:
        raise UsageError(f"{where}: pos_embed has {positions} positions, wanted a square of patches and at most one for the "
                         "class token")
    if "fc_norm.weight" in weights:
        raise UsageError(f"{where}: it pools before its last norm (fc_norm), which no net here does")
    pool = "map" if "attn_pool.latent" in weights else "mean" if args.get("global_pool") == "avg" or not cls else "cls"
    gelu = {v: k for k, v in GELUS.items()}.get("gelu" if gate else args.get("act_layer", "gelu"))
    if gelu is None:
        raise UsageError(f"{where}: act_layer={args['act_layer']!r}, wanted one of {', '.join(GELUS.values())}")
    return dict(name="vit", width=width, depth=depth, heads=heads, mlp=mlp, patch=patch, image=side * patch, pool=pool,
                class_token=cls, registers=registers, position_on_class=on_class, pre_norm="norm_pre.weight" in weights,
                patch_bias="patch_embed.proj.bias" in weights, final_norm="norm.weight" in weights,
                layer_scale=1.0 if "blocks.0.ls1.gamma" in weights else 0.0, mlp_kind="swiglu" if gate else "gelu", gelu=gelu, eps=1e-6)


def layout(role: str, net: dict) -> Layout:
    """Rows of nets/vit in timm's names."""
    width, depth, _, _ = sizes(net)
    table = rows.conv(f"{role}/patches", "patch_embed.proj", bias=net.get("patch_bias", True))
    for ours, theirs, there in (("class_token", "cls_token", net.get("class_token", True)),
                                ("registers", "reg_token", net.get("registers", 0))):
        table += [row(f"{role}/{ours}/embedding", "inner", theirs)] * bool(there)
    filled = {}
    if net.get("posemb", "learned") == "learned":
        table.append(row(f"{role}/positions/embedding", "inner", "pos_embed"))
    else:
        side = net["image"] // net["patch"]
        on_class = int(net.get("class_token", True) and net.get("position_on_class", True))
        sines = posemb.sincos(side, side, width, kind=net["posemb"]).astype(np.float32)
        filled["pos_embed"] = np.concatenate([np.zeros((on_class, width), np.float32), sines])[None]
    for ours, there in (("norm_pre", net.get("pre_norm", False)), ("norm", net.get("final_norm", True))):
        table += rows.norm(f"{role}/{ours}", ours) if there else []
    scales = ("ls1.gamma", "ls2.gamma") if net.get("layer_scale", 0) else ()
    table += rows.blocks(role, depth, "blocks.{}.", norms=("norm1", "norm2"), qkv=("attn.qkv",), out="attn.proj",
                         mlp=("mlp.fc1", "mlp.fc2"), scales=scales)
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


def sizes(net: dict):
    """(width, depth, heads, mlp) of a nets/vit."""
    of = SIZES.get(net.get("size", ""), (0, 0, 0, 4 * net.get("width", 0)))
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
    net, mean_std = model.nets[role], found.moments(model.image)
    cfg = dict(input_size=(3, found.side(model.image), found.side(model.image)), crop_pct=found.crop(model.image),
               interpolation=found.method(model.image), crop_mode="squash" if found.squashed(model.image) else "center",
               **mean_std)
    exchanged = ()
    if net["name"] == "resnet":
        name, args, table, exchanged = _resnet(net, role)
        after = torch_resnet.layers(role)
        cfg |= dict(first_conv="conv1", classifier="fc")
    else:
        # The other arguments are all given; but whether the MLP is gated is the architecture's alone.
        name = "vit_giant_patch14_dinov2" if gated(net) else "vit_base_patch16_224"
        args, table = _vit_arguments(net), layout(role, net)
        found.refuse_resize("timm", net, model.image, "antialias")
        args["dynamic_img_size"] = found.side(model.image) != net["image"]
        after = tuple((role, f"stack/block{i + 1}", f"blocks.{i}") for i in range(sizes(net)[1]))
        if net.get("eps", 1e-6) != 1e-6:
            exchanged = (f"for m in model.modules():\n    m.eps = {net['eps']} if isinstance(m, torch.nn.LayerNorm) else "
                         "getattr(m, 'eps', None)",)
        cfg |= dict(first_conv="patch_embed.proj", classifier="head")
    # A classifier that came with the weights goes with them, and features are what it is given.
    classifier = model.beside.get(f"{cfg['classifier']}.weight")
    classes = classifier.shape[0] if classifier else args["num_classes"]
    args.pop("num_classes")
    features = "model.forward_head(model.forward_features(pixels), pre_logits=True)" if classifier else "model(pixels)"
    config = dict(architecture=name, num_classes=classes, model_args=args, pretrained_cfg=cfg | dict(num_classes=classes))
    whole = ("import timm, torch", 'model = timm.create_model("local-dir:{dir}", pretrained=True).eval()')
    if exchanged:
        whole = ("import safetensors.torch, timm, torch", 'model = timm.create_model("local-dir:{dir}", pretrained=False)',
                 *exchanged, 'model.load_state_dict(safetensors.torch.load_file("{dir}/model.safetensors"), strict=True)',
                 "model.eval()")
    return Package(table, "model.safetensors", {"config.json": json.dumps(config, indent=2)}, whole,
                   ('out = {{"image": ' + features + "}}",), after, left=(rf"{role}/mask_token/embedding",))


def _resnet(net, role):
    found.refuse("timm", net, layout=torch_resnet.LAYOUTS)
    channels = torch_resnet.widths(net)[1:]
    args = dict(num_classes=0) | ({} if channels == (64, 128, 256, 512) else dict(channels=channels))
    return f"resnet{net['depth']}", args, torch_resnet.layout(role, net), torch_resnet.exchanged(net)


def _vit_arguments(net):
    found.refuse("timm", net, pool=("cls", "mean", "map"))
    width, depth, heads, mlp = sizes(net)
    cls, pool = net.get("class_token", True), net.get("pool", "cls")
    if net.get("registers", 0) and cls:
        found.refuse("timm", net, position_on_class=False)
    pre_norm = net.get("pre_norm", False)
    if pre_norm == net.get("patch_bias", True):
        raise UsageError(f"--to=timm: nets/vit has pre_norm={pre_norm} and patch_bias={not pre_norm}; timm has a bias on the "
                         "patches exactly where it has no norm before the blocks")
    args = dict(num_classes=net.get("out", 0), img_size=net["image"], patch_size=net["patch"], embed_dim=width, depth=depth,
                num_heads=heads, mlp_ratio=(1 + gated(net)) * mlp / width, class_token=cls, reg_tokens=net.get("registers", 0),
                no_embed_class=not net.get("position_on_class", True) if cls else True, pre_norm=pre_norm,
                final_norm=net.get("final_norm", True), fc_norm=False,
                global_pool={"cls": "token", "mean": "avg", "map": "map"}[pool], init_values=net["layer_scale"] or None)
    if not gated(net):
        args["act_layer"] = GELUS[net["gelu"]]
    return args
