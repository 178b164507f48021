"""Runs of ours, opened by PyTorch's libraries: features, a probe's accuracy and similarities, theirs beside ours.

    python benchmarks/export_runs.py [--steps=60] [--keep=DIR]

Trains a SimCLR ResNet-18 (a quarter as wide, stem for small images), a CLIP and a SigLIP with ViT towers on the
embedded digits for a few steps each, exports them by the command, opens them as the card beside the weights says, and
compares: features of all test images, the accuracy of a linear probe fitted by torch on torch's features with that of
ours on ours (l2 0.01 on features of unit root mean square), and the logits of 64 images with as many captions. Needs
torch, timm and transformers.
"""
import contextlib
import io
import pathlib
import sys
import tempfile

import jax
import numpy as np
import torch

from simclr_jax import build, config as configs, embed, export
from simclr_jax.evals import linear
from simclr_jax.export import __main__ as command, model as models
from simclr_jax.train.__main__ import main as train

COMMON = ["--config.optim.name=adamw", "--config.optim.lr=0.003", "--config.evals.every=0", "--config.pictures=false",
          "--config.checkpoint.every=1000"]
RESNET = ["--config=configs/simclr_digits.py", "--config.nets.backbone.name=resnet", "--config.nets.backbone.depth=18",
          "--config.nets.backbone.width=0.25", "--config.nets.backbone.stem=cifar"]
VIT = ["--config.nets.image.name=vit", "--config.nets.image.width=64", "--config.nets.image.depth=2",
       "--config.nets.image.heads=4", "--config.nets.image.patch=2", "--config.nets.image.image=8"]
CLIP = ["--config=configs/clip_digits.py:loss=clip", *VIT, "--config.nets.image.pre_norm=true",
        "--config.nets.image.patch_bias=false",
        "--config.nets.image.gelu=quick", "--config.nets.image.out=128", "--config.nets.image.eps=1e-5"]
SIGLIP = ["--config=configs/clip_digits.py:loss=siglip", *VIT, "--config.nets.image.class_token=false",
          "--config.nets.image.pool=map",
          "--config.nets.text.causal=false", "--config.nets.text.pool=last", "--config.nets.text.out=64",
          "--config.nets.text.out_bias=true"]


def main(argv):
    flags = configs.options(argv, steps=60, keep="")
    with contextlib.ExitStack() as stack:
        folder = pathlib.Path(flags["keep"] or stack.enter_context(tempfile.TemporaryDirectory()))
        print("| run | library | what | largest difference | values up to |\n|---|---|---|---|---|")
        _simclr(folder, flags["steps"])
        for name, given in (("clip", CLIP), ("siglip", SIGLIP)):
            _pairs(folder, name, given, flags["steps"])


def _made(folder, name, given, steps, target):
    """Trains, exports for `target` and for ourselves, opens; (config, (embed, params), the library's net)."""
    workdir = folder / name
    with contextlib.redirect_stdout(io.StringIO()):
        train(["train", *given, *COMMON, f"--config.steps={steps}", f"--workdir={workdir}"])
        for to in ("flax", target):
            command.main(["export", f"--workdir={workdir}", f"--to={to}", f"--out={folder / f'{name}_{to}'}"])
    card = (folder / f"{name}_{target}" / "README.md").read_text()
    lines = card.split("```python\n")[1].split("```")[0].replace("DIR", str(folder / f"{name}_{target}"))
    scope = {}
    exec(lines, scope)
    config = configs.from_plain(models.read(folder / f"{name}_flax").meta["config"])
    return config, export.load(folder / f"{name}_flax"), scope["model"]


def _simclr(folder, steps):
    config, (apply, params), net = _made(folder, "simclr", RESNET, steps, "timm")
    kinds = {"ours": lambda x: np.asarray(apply(params, image=x)["image"]), "theirs": lambda x: net(_pixels(x)).numpy()}
    with torch.no_grad():
        parts = {kind: [embed.features(config, of, 1, split=split)[:2] for split in ("train", "test")]
                 for kind, of in kinds.items()}
    ours, theirs = (parts[kind][1][0] for kind in kinds)
    _line("SimCLR ResNet-18", "timm, strict=True", "features of 500 test images", ours, theirs)
    (x, y), (test, labels) = parts["ours"]
    a = np.mean(linear.predict(linear.path(x, y, classes=10, l2s=(0.01,), tol=1e-7, max_iter=5000)[0], test) == labels)
    (x, y), (test, labels) = parts["theirs"]
    b = _torch_probe(x, y, test, labels)
    print(f"\nLinear probe, all labels: {100 * a:.1f} % by us on ours, {100 * b:.1f} % by torch on timm's.\n")


def _torch_probe(x, y, test, labels):
    """The same problem as `linear.path` solves, in torch's float64."""
    x, test = (torch.from_numpy(a).double() for a in (x, test))
    mean = x.mean(0)
    scale = (x - mean).square().mean().sqrt()
    weight, bias = (torch.zeros(*shape, dtype=torch.float64, requires_grad=True) for shape in ((x.shape[1], 10), (10,)))
    solver = torch.optim.LBFGS([weight, bias], max_iter=2000, tolerance_grad=1e-6, line_search_fn="strong_wolfe")

    def closure():
        solver.zero_grad()
        loss = torch.nn.functional.cross_entropy((x - mean) / scale @ weight + bias,
                                                 torch.from_numpy(y).long()) + 0.005 * weight.square().sum()
        loss.backward()
        return loss
    solver.step(closure)
    with torch.no_grad():
        found = ((test - mean) / scale @ weight + bias).argmax(1).numpy()
    return np.mean(found == labels)


def _pairs(folder, name, given, steps):
    config, (apply, params), net = _made(folder, name, given, steps, "transformers")
    model = models.read(folder / f"{name}_flax")
    source = build.source(config, "test")
    tokens = build.tokenizer(config, source, folder / name).encode([source.captions(i)[0] for i in range(64)])
    pixels = embed.images(config, "test", range(64))
    out = jax.tree.map(np.asarray, apply(params, image=pixels, text=tokens))
    image, text = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (out["image"], out["text"]))
    bias = model.weights["logit_bias"].read() if name == "siglip" else 0
    ours = np.exp(model.weights["logit_scale"].read()) * image @ text.T + bias
    with torch.no_grad():
        theirs = net(pixel_values=_pixels(pixels), input_ids=torch.from_numpy(tokens).long()).logits_per_image.numpy()
    _line({"clip": "CLIP", "siglip": "SigLIP"}[name], "transformers", "logits, 64 x 64", ours, theirs)


def _pixels(x):
    return torch.from_numpy(np.ascontiguousarray(np.asarray(x).transpose(0, 3, 1, 2), np.float32))


def _line(run, library, what, ours, theirs):
    print(f"| {run} | {library} | {what} | {np.max(np.abs(ours - theirs)):.1e} | {np.max(np.abs(ours)):.3g} |",
          flush=True)


if __name__ == "__main__":
    main(sys.argv)
