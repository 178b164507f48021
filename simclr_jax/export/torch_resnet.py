"""nets/resnet as timm and torchvision have it: what weights say of a net, and what PyTorch must change to be ours.

Both libraries' own nets are ours with layout="torch" and stem="imagenet". The other forms differ from them in a few
modules, which users of PyTorch exchange after construction, as they do for small images.
"""
import numpy as np

from simclr_jax.errors import UsageError
from simclr_jax.export.layout import Layout
from simclr_jax.export.rows import count, projects, torch_resnet
from simclr_jax.nets.resnet import BLOCKS

BESIDE = (r"fc\..*", r".*num_batches_tracked")
LAYOUTS = "simclr", "torch"  # no convolution of PyTorch pads its two sides by different numbers, as Haiku's do


def describe(weights, where: str, at: str = "") -> dict:
    """The net that a state dict is of, from its names and shapes; `at` stands before each name."""
    names = {n.removeprefix(at) for n in weights if n.startswith(at)}
    shape = lambda name: weights[at + name].shape
    blocks = tuple(count(names, rf"layer{i}\.(\d+)\.") for i in (1, 2, 3, 4))
    deep = "layer1.0.conv3.weight" in names
    depth = next((d for d, b in BLOCKS.items() if b == blocks and (d >= 50) == deep), None)
    if depth is None or "conv1.weight" not in names:
        raise UsageError(f"{where}: no ResNet of depth {', '.join(map(str, BLOCKS))} (its stages have {blocks} blocks)")
    stem, kernel = shape("conv1.weight")[0], shape("conv1.weight")[2]
    if kernel not in (3, 7):
        raise UsageError(f"{where}: its first convolution is {kernel}x{kernel}, wanted 7x7, or 3x3 for small images")
    channels = tuple(shape(f"layer{i}.0.conv1.weight")[0] for i in (1, 2, 3, 4))
    projected = "layer1.0.downsample.0.weight" in names
    net = dict(name="resnet", depth=depth, stem="imagenet" if kernel == 7 else "cifar",
               layout="simclr" if projected and not deep and stem == channels[0] else "torch")
    if stem == channels[0] and channels == tuple(stem * 2 ** i for i in range(4)):
        net["width"] = stem / 64
    else:
        net["widths"] = (stem, *channels)
    return net


def layout(role: str, net: dict, at: str = "") -> Layout:
    rows = torch_resnet(role, net, at)
    counters = {r.parts[0].name.removesuffix("running_mean") + "num_batches_tracked": np.int64(0)
                for r in rows if r.parts[0].name.endswith("running_mean")}
    return Layout(tuple(rows), BESIDE, counters)


def layers(role: str) -> tuple:
    return ((role, "stem/conv", "conv1"), *((role, f"stage{i}", f"layer{i}") for i in (1, 2, 3, 4)))


def widths(net: dict) -> tuple[int, ...]:
    """Channels of the stem and the four stages."""
    return tuple(net.get("widths") or (int(64 * net.get("width", 1)) * 2 ** i for i in (0, 0, 1, 2, 3)))


def exchanged(net: dict) -> tuple[str, ...]:
    """Python that makes the net of a PyTorch ResNet whose stem has 64 channels and whose stages have ours."""
    (stem, first, *_), deep, lines = widths(net), net["depth"] >= 50, []
    small = net.get("stem", "imagenet") == "cifar"
    if small or stem != 64:
        lines.append(f"model.conv1 = torch.nn.Conv2d(3, {stem}, {'3, 1, 1' if small else '7, 2, 3'}, bias=False)")
    if stem != 64:
        lines += [f"model.bn1 = torch.nn.BatchNorm2d({stem})",
                  f"model.layer1[0].conv1 = torch.nn.Conv2d({stem}, {first}, {'1' if deep else '3, 1, 1'}, bias=False)"]
    if small:
        lines.append("model.maxpool = torch.nn.Identity()")
    elif net.get("layout", "simclr") == "simclr":
        # TensorFlow's SAME on even sides. Zeros do no harm, as nothing is below 0 behind a ReLU.
        lines.append("model.maxpool = torch.nn.Sequential(torch.nn.ZeroPad2d((0, 1, 0, 1)), torch.nn.MaxPool2d(3, 2))")
    there, wide = deep or first != 64, first * (4 if deep else 1)
    if projects(net, 1) and (stem != 64 or not there):
        lines.append("model.layer1[0].downsample = torch.nn.Sequential("
                     f"torch.nn.Conv2d({stem}, {wide}, 1, bias=False), torch.nn.BatchNorm2d({wide}))")
    elif there and not projects(net, 1):
        lines.append("model.layer1[0].downsample = None")
    return tuple(lines)
