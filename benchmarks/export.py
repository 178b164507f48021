"""How far a net is from itself in another library: each family out and in, as the table of docs/export.md.

    python benchmarks/export.py [--only=ResNet]

Both directions use the libraries' own classes with random weights. In: the library's net is saved by its own means and
read by `--from`. Out: what was read, or a net of ours, is written by `--to` and opened strictly. The figure is the
largest absolute difference of the features of two random images or texts, in f32 on a CPU; beside it how far the
library is from itself in f64, and the largest feature. Needs torch, torchvision, timm, transformers and open_clip_torch.
"""
import copy
import json
import pathlib
import sys
import tempfile

import jax
import numpy as np
import torch

from simclr_jax import config as configs
from simclr_jax.export import __main__ as command, check, found, model as models, tensors


def main(argv):
    flags = configs.options(argv, only="")
    print("| family | library | in | out | the library from its f64 | values up to |\n|---|---|---|---|---|---|")
    for name, (library, make, net) in FAMILIES.items():
        if flags["only"] in name:
            with tempfile.TemporaryDirectory() as folder:
                folder = pathlib.Path(folder)
                came = _in(folder, library, make) if make else ("", "")
                went, scale = _out(folder, library, net or json.loads((folder / "in/config.json").read_text()))
                print(f"| {name} | {library} | {came[0]} | {went} | {came[1]} | {scale} |", flush=True)


def _in(folder, library, make):
    """Largest differences of a net of the library's, saved by itself and read by us: from ours, from itself in f64."""
    torch.manual_seed(0)
    theirs, save, call = make()
    theirs.eval()
    norms = [module for module in theirs.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for module in norms:  # untrained scales and statistics would hide a wrong row
        torch.nn.init.uniform_(module.weight, 0.8, 1.2), torch.nn.init.normal_(module.bias, 0, 0.2)
        module.momentum = 1.0
    if norms:
        with torch.no_grad():
            call(theirs.train(), pixels=_torch(check.pictures(8, 224, np.random.default_rng(1)) / 0.225 - 2))
        theirs.eval()
    save(folder / "theirs")
    _quiet(command.main, ["export", f"--from={library}", f"--weights={folder / 'theirs'}", f"--out={folder / 'in'}"])
    model = models.read(folder / "in")
    exact = copy.deepcopy(theirs).double()
    return _differences(model, lambda **x: call(theirs, **x), lambda **x: call(exact, **x))


def _out(folder, library, config):
    """The largest difference of a net of ours, or of what was read, written for the library and opened there; its scale."""
    if not (folder / "in").exists():
        models.write(folder / "in", _fresh(models.Model(config["nets"], {}, {}, config["image"])))
    said = _quiet(command.main, ["export", f"--from-dir={folder / 'in'}", f"--to={library}", f"--out={folder / 'out'}"])
    lines = [line.split("difference ")[1].split(", values up to ") for line in said if "/output:" in line]
    worst = max(lines, key=lambda line: float(line[0]))
    return worst[0], f"{float(worst[1]):.2g}"


def _fresh(model):
    """With the weights that training begins with, scales apart, and the batch statistics of noise."""
    random, weights = np.random.default_rng(0), {}
    for role in model.nets:
        net, x = models.build(model.nets[role]), models.example(model, role)
        params, stats = net.init(jax.random.key(0), x)
        draw = lambda path, a: random.uniform(0.8, 1.2, a.shape).astype(np.float32) if path[-1].key == "scale" else a
        params = jax.tree_util.tree_map_with_path(draw, params)
        if stats:  # what a pass leaves is nine parts of what was and one of the batch's
            run = jax.jit(lambda p, s, x: net.apply(p, s, x, train=True)[1])
            left = run(params, stats, check.pictures(8, x.shape[1], random))
            stats = jax.tree.map(lambda new, old: (new - 0.9 * old) / 0.1, left, stats)
        weights |= {f"{role}/{n}": tensors.of(a) for n, a in models.named(params).items()}
        weights |= {f"{role}/stats/{n}": tensors.of(a) for n, a in models.named(stats).items()}
    return model._replace(weights=weights)


def _differences(model, call, exact):
    random, worst, own = np.random.default_rng(0), 0.0, 0.0
    mean, std = (np.asarray(m, np.float32) for m in found.moments(model.image).values()) if model.image else (0, 1)
    for role, spec in model.nets.items():
        if role == "audio":
            continue
        if "vocab" in spec:
            x = check.ids(spec, 2, random)
            given = dict(tokens=torch.from_numpy(x.astype(np.int64)))
        else:
            side = found.side(model.image)
            x = (check.pictures(2, side, random) - mean) / std
            given = dict(pixels=_torch(x))
        net, (params, stats) = models.build(spec), models.tree(model, role)
        ours = jax.jit(lambda p, s, x: net.apply(p, s, x, train=False)[0]["pooled"])(params, stats, x)
        with torch.no_grad():
            theirs = call(**given).numpy()
            wide = exact(**{k: v.double() if v.is_floating_point() else v for k, v in given.items()}).numpy()
        worst = max(worst, float(np.max(np.abs(np.asarray(ours) - theirs))))
        own = max(own, float(np.max(np.abs(wide - theirs))))
    return f"{worst:.1e}", f"{own:.1e}"


def _torch(x):
    return torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2), np.float32))


def _quiet(function, *args):
    import contextlib
    import io
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        function(*args)
    return out.getvalue().splitlines()


def _save(net, config=None):
    def save(folder):
        import safetensors.torch
        folder.mkdir()
        safetensors.torch.save_file({k: v.contiguous() for k, v in net.state_dict().items()},
                                    folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(config or {}))
    return save


def timm(name, **how):
    def make():
        import timm as library
        net = library.create_model(name, num_classes=0, **how)
        args = {k: v for k, v in how.items()}
        heads = net.blocks[0].attn.num_heads if hasattr(net, "blocks") else 0
        config = dict(architecture=name, model_args=args | (dict(num_heads=heads) if heads else {}),
                      pretrained_cfg={k: v for k, v in net.pretrained_cfg.items()
                                      if k in ("mean", "std", "input_size", "crop_pct")})
        return net, _save(net, config), lambda net, pixels: net(pixels)
    return make


def torchvision(name):
    def make():
        import torchvision as library
        net = getattr(library.models, name)()
        for head in ("fc", "heads"):
            if hasattr(net, head):
                setattr(net, head, torch.nn.Identity())
        return net, _save(net), lambda net, pixels: net(pixels)
    return make


def transformers(kind, **how):
    def make():
        import transformers as library
        config = {"vit": "ViT", "dinov2": "Dinov2", "clip": "CLIP", "siglip": "Siglip", "bert": "Bert",
                  "roberta": "Roberta"}[kind]
        net = getattr(library, config + "Model")(getattr(library, config + "Config")(**how)).eval()
        tensor = lambda x: getattr(x, "pooler_output", x)

        def call(net, pixels=None, tokens=None):
            if kind in ("clip", "siglip"):
                return tensor(net.get_image_features(pixel_values=pixels) if tokens is None
                              else net.get_text_features(input_ids=tokens))
            given = {"pixel_values": pixels} if tokens is None else {"input_ids": tokens}
            return net(**given).last_hidden_state[:, 0]
        return net, net.save_pretrained, call
    return make


def open_clip(name):
    def make():
        import open_clip as library
        net = library.create_model(name)
        config = {"model_cfg": library.get_model_config(name)}

        def call(net, pixels=None, tokens=None):
            return net.encode_image(pixels) if tokens is None else net.encode_text(tokens)
        return net, _save(net, config), call
    return make


def ours(side=224, **net):
    """A recipe's own net, that only goes out."""
    return dict(nets={"backbone": net}, image={"eval": [["resize", {"size": side}]]})


FAMILIES = {
    "ResNet-18": ("timm", timm("resnet18"), None),
    "ResNet-50": ("timm", timm("resnet50"), None),
    "ResNet-50, torchvision's": ("torchvision", torchvision("resnet50"), None),
    "ResNet-50, SimCLR's pool": ("timm", None, ours(name="resnet", depth=50)),
    "ResNet-18, CIFAR stem, SimCLR's shortcuts": ("torchvision", None, ours(32, name="resnet", depth=18, stem="cifar")),
    "ResNet-50 2x, SimCLR's": ("timm", None, ours(name="resnet", depth=50, width=2)),
    "ViT-S/16": ("timm", timm("vit_small_patch16_224"), None),
    "ViT-B/16, torchvision's": ("torchvision", torchvision("vit_b_16"), None),
    "ViT-S/14 DINOv2": ("timm", timm("vit_small_patch14_dinov2", img_size=224), None),
    "ViT-S/14 DINOv2, 4 registers": ("timm", timm("vit_small_patch14_reg4_dinov2", img_size=224), None),
    "ViT-B/16 SigLIP's image tower": ("timm", timm("vit_base_patch16_siglip_224"), None),
    "ViT-S/16, MoCo v3's sines": ("timm", None, ours(name="vit", size="S", posemb="sincos")),
    "ViT-S/16, ViTModel": ("transformers", transformers("vit", hidden_size=384, num_attention_heads=6,
                                                        intermediate_size=1536), None),
    "ViT-S/14, Dinov2Model": ("transformers", transformers("dinov2", hidden_size=384, num_attention_heads=6,
                                                           image_size=224), None),
    "ViT, SwiGLU, Dinov2Model": ("transformers", transformers("dinov2", hidden_size=192, num_hidden_layers=4,
                                                              num_attention_heads=3,
                                                              image_size=224, use_swiglu_ffn=True), None),
    "CLIP ViT-B/32": ("transformers", transformers("clip"), None),
    "SigLIP ViT-B/16": ("transformers", transformers("siglip"), None),
    "BERT-base": ("transformers", transformers("bert"), None),
    "RoBERTa-base": ("transformers", transformers("roberta", vocab_size=50265, pad_token_id=1,
                                                  max_position_embeddings=514, type_vocab_size=1), None),
    "CLIP ViT-B/32, open_clip": ("open_clip", open_clip("ViT-B-32"), None),
    "CLIP RN50, open_clip": ("open_clip", open_clip("RN50"), None),
}

if __name__ == "__main__":
    main(sys.argv)
