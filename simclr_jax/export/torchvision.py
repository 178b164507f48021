"""torchvision: its ResNets and vision transformers, by their constructors and `load_state_dict(strict=True)`.

Names and arguments as in torchvision 0.2x (github.com/pytorch/vision, BSD-3-Clause): models/resnet.py,
models/vision_transformer.py.
"""
import json
import math

from simclr_jax.errors import UsageError
from simclr_jax.export import found, rows, timm, torch_resnet
from simclr_jax.export.found import Found, Package
from simclr_jax.export.layout import Layout, row

BESIDE = (r"heads\..*",)
BLOCK = "encoder.layers.encoder_layer_{}."


def read(weights, config: dict, where: str) -> Found:
    """The net of a state dict; `config` is that of a directory of ours, or {}."""
    if "conv1.weight" in weights:
        net = torch_resnet.describe(weights, where)
        size, table = 224 if net["stem"] == "imagenet" else 32, torch_resnet.layout("backbone", net)
    elif "conv_proj.weight" in weights:
        net = _vit(weights, config)
        size, table = net["image"], layout("backbone", net)
    else:
        raise UsageError(f"{where}: neither a ResNet nor a vision transformer of torchvision: it has no conv1.weight "
                         "and no conv_proj.weight")
    # Those for larger pictures are of SWAG, which sees whole ones, bicubic (models/vision_transformer.py).
    image = found.view(size, **found.IMAGENET) if size > 224 else found.view(
        size, **found.IMAGENET, crop=0.875, method="bilinear")
    if "preprocessing" in config:
        image = {"eval": config["preprocessing"]}
    return Found({"backbone": found.said(net, config)}, table, image)


def _vit(weights, config):
    width, _, patch, _ = weights["conv_proj.weight"].shape
    depth = rows.count(weights, r"encoder\.layers\.encoder_layer_(\d+)\.")
    mlp = weights[BLOCK.format(0) + "mlp.0.weight"].shape[0]
    side = math.isqrt(weights["encoder.pos_embedding"].shape[1] - 1)
    return dict(name="vit", width=width, depth=depth, heads=config.get("num_heads") or timm.heads(width, depth, mlp),
                mlp=mlp, patch=patch, image=side * patch, eps=1e-6)


def layout(role: str, net: dict) -> Layout:
    """Rows of nets/vit in torchvision's names."""
    table = rows.conv(f"{role}/patches", "conv_proj", bias=True) + rows.norm(f"{role}/norm", "encoder.ln")
    table += [row(f"{role}/class_token/embedding", "inner", "class_token"),
              row(f"{role}/positions/embedding", "inner", "encoder.pos_embedding")]
    blocks = rows.blocks(role, timm.sizes(net)[1], BLOCK, norms=("ln_1", "ln_2"), qkv=("self_attention.in_proj",),
                         out="self_attention.out_proj", mlp=("mlp.0", "mlp.3"))
    return Layout((*table, *rows.joined(blocks, "in_proj")), BESIDE)


def package(model) -> Package:
    """What torchvision's constructors open.

    Raises:
      UsageError: a net that torchvision has none for.
    """
    role = found.only(model.nets, "torchvision", "resnet", "vit")
    net, of = model.nets[role], _resnet if model.nets[role]["name"] == "resnet" else _transformer
    head = "fc" if of is _resnet else "heads"
    make, settings, table, layers, change = of(net, role, model)
    config = {**settings, "preprocessing": model.image["eval"], **found.unsaid(net)}
    # A classifier that came with the weights goes with them, and features are what it is given.
    classifier = next((t for n, t in model.beside.items() if n in ("fc.weight", "heads.head.weight")), None)
    without, call = (f"model.{head} = torch.nn.Identity()",), ()
    if classifier:
        settings |= dict(num_classes=classifier.shape[0])
        without, call = (), without
        if "heads.pre_logits.weight" in model.beside:
            settings |= dict(representation_size=model.beside["heads.pre_logits.weight"].shape[0])
    given = ", ".join(f"{k}={v}" for k, v in settings.items() if k != "model")
    lines = ("import safetensors.torch, torch, torchvision", f"model = torchvision.models.{make}({given})", *without,
             *change, 'model.load_state_dict(safetensors.torch.load_file("{dir}/model.safetensors"), strict=True)',
             "model.eval()")
    return Package(table, "model.safetensors", {"config.json": json.dumps(config, indent=2)}, lines,
                   (*call, 'out = {"image": model(pixels)}'), layers)


def _resnet(net, role, model):
    """(constructor, its arguments, rows, layers, Python that changes what arguments cannot)."""
    found.refuse("torchvision", net, layout=torch_resnet.LAYOUTS, depth=(18, 34, 50, 101, 152))
    if torch_resnet.widths(net) != (64, 64, 128, 256, 512):
        raise UsageError(f"--to=torchvision: nets/resnet has channels {torch_resnet.widths(net)}, and torchvision's "
                         "ResNets are 64, 64, 128, 256, 512 wide; take --to=timm, which can be of any width")
    name = f"resnet{net['depth']}"
    return (name, dict(model=name), torch_resnet.layout(role, net), torch_resnet.layers(role),
            torch_resnet.exchanged(net))


def _transformer(net, role, model):
    """As `_resnet`."""
    found.refuse("torchvision", net, posemb="learned", class_token=True, registers=0, mask_token=False, pool="cls",
                 position_on_class=True, pre_norm=False, patch_bias=True, final_norm=True, layer_scale=0.0,
                 mlp_kind=("", "gelu"), gelu="erf", eps=1e-6, out=0)
    found.refuse_resize("torchvision", net, model.image)
    width, depth, heads, mlp = timm.sizes(net)
    settings = dict(image_size=net["image"], patch_size=net["patch"], num_layers=depth, num_heads=heads,
                    hidden_dim=width, mlp_dim=mlp)
    layers = tuple((role, f"stack/block{i + 1}", f"encoder.layers.encoder_layer_{i}") for i in range(depth))
    return "VisionTransformer", settings, layout(role, net), layers, ()
