"""torchvision: its ResNets and vision transformers, by their constructors and `load_state_dict(strict=True)`.

Names and arguments as in torchvision 0.2x (github.com/pytorch/vision, BSD-3-Clause): models/resnet.py,
models/vision_transformer.py.
"""
import json

from simclr_jax.errors import UsageError
from simclr_jax.export import found, rows, timm, torch_resnet
from simclr_jax.export.found import Found, Package
from simclr_jax.export.layout import Layout, row

BESIDE = (r"heads\..*",)
BLOCK = "encoder.layers.encoder_layer_{}."


def read(weights, config: dict, where: str) -> Found:
    """The net of a state dict."""
    if "conv1.weight" in weights:
        net = torch_resnet.describe(weights, where)
        size = 224 if net["stem"] == "imagenet" else 32
        return Found({"backbone": net}, torch_resnet.layout("backbone", net),
                     found.view(size, **found.IMAGENET, crop=0.875, method="bilinear"))
    if "conv_proj.weight" not in weights:
        raise UsageError(f"{where}: neither a ResNet nor a vision transformer of torchvision: it has no conv1.weight and no "
                         "conv_proj.weight")
    width, _, patch, _ = weights["conv_proj.weight"].shape
    depth, mlp = rows.count(weights, BLOCK.format(r"(\d+)").replace(".", r"\.").replace(r"\d\+", r"\d+")), \
        weights[BLOCK.format(0) + "mlp.0.weight"].shape[0]
    side = round((weights["encoder.pos_embedding"].shape[1] - 1) ** 0.5)
    known = {(w, d, m): h for w, d, h, m in timm.SIZES.values()}
    net = dict(name="vit", width=width, depth=depth, heads=config.get("num_heads") or known.get((width, depth, mlp))
               or max(1, width // 64), mlp=mlp, patch=patch, image=side * patch, eps=1e-6)
    return Found({"backbone": net}, layout("backbone", net),
                 found.view(net["image"], **found.IMAGENET, crop=0.875, method="bilinear"))


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
    net = model.nets[role]
    if net["name"] == "resnet":
        found.refuse("torchvision", net, layout=torch_resnet.LAYOUTS, depth=(18, 34, 50, 101, 152))
        if torch_resnet.widths(net) != (64, 64, 128, 256, 512):
            raise UsageError(f"--to=torchvision: nets/resnet has channels {torch_resnet.widths(net)}, and torchvision's ResNets are "
                             "64, 64, 128, 256, 512 wide; take --to=timm, which can be of any width")
        make, table, after = f"torchvision.models.resnet{net['depth']}()", torch_resnet.layout(role, net), torch_resnet.layers(role)
        change = ("model.fc = torch.nn.Identity()", *torch_resnet.exchanged(net))
        model = model._replace(beside={n: t for n, t in model.beside.items() if not n.startswith("fc.")})
        settings = dict(model=f"resnet{net['depth']}")
    else:
        found.refuse("torchvision", net, posemb="learned", class_token=True, registers=0, mask_token=False, pool="cls",
                     position_on_class=True, pre_norm=False, patch_bias=True, final_norm=True, layer_scale=0.0, gelu="erf",
                     eps=1e-6, out=0)
        width, depth, heads, mlp = timm.sizes(net)
        settings = dict(image_size=net["image"], patch_size=net["patch"], num_layers=depth, num_heads=heads, hidden_dim=width,
                        mlp_dim=mlp)
        make = f"torchvision.models.VisionTransformer({', '.join(f'{k}={v}' for k, v in settings.items())})"
        change, table = ("model.heads = torch.nn.Identity()",), layout(role, net)
        after = tuple((role, f"stack/block{i + 1}", f"encoder.layers.encoder_layer_{i}") for i in range(depth))
    lines = ("import safetensors.torch, torch, torchvision", f"model = {make}", *change,
             'model.load_state_dict(safetensors.torch.load_file("{dir}/model.safetensors"), strict=True)', "model.eval()")
    config = {**settings, "preprocessing": model.image["eval"]}
    return Package(table, "model.safetensors", {"config.json": json.dumps(config, indent=2)}, lines,
                   ('out = {{"image": model(pixels)}}',), after)
