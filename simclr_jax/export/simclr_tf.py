"""Checkpoints of SimCLR v1 and v2 (google-research/simclr, Apache-2.0: resnet.py, model.py, model_util.py of TensorFlow
1, tf2/resnet.py, tf2/model.py, tf2/run.py). Read only.

TensorFlow 1 numbers its layers as they are made: base_model/conv2d, conv2d_1, ..., in a block the shortcut first. The
checkpoints of tf2/run.py name them by place: model/resnet_model/block_groups/0/layers/0/... The SavedModels published
for TensorFlow 2 name them by numbers in lists that Keras makes, so they are not read; the same weights are published
for TensorFlow 1. Pictures stay in [0, 1].
"""
import re

from simclr_jax.errors import UsageError
from simclr_jax.export.found import Found
from simclr_jax.export.heads import Head, with_head
from simclr_jax.export.layout import Layout, row
from simclr_jax.export.rows import count
from simclr_jax.nets.resnet import BLOCKS

VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"
TF1 = "base_model/conv2d/kernel"
TF2 = "model/resnet_model/initial_conv_relu_max_pool/0/conv2d/kernel" + VALUE
NORM = {"{}/scale": "gamma", "{}/bias": "beta", "stats/{}/mean": "moving_mean", "stats/{}/var": "moving_variance"}
IGNORED = (r".*/(Momentum|Adam|Adam_1)", "global_step", r"beta[12]_power", r".*/\.OPTIMIZER_SLOT/.*",
           r"(optimizer|save_counter|global_step)(/.*)?" + re.escape(VALUE))


def read(weights, config: dict, where: str) -> Found:
    """The ResNet, its head as projector, and a classifier beside.

    Raises:
      UsageError: it is none of SimCLR's, a SavedModel, or a net with selective kernels.
    """
    old = TF1 in weights
    if not old and TF2 not in weights:
        saved = any(name.startswith("trainable_variables_list/") for name in weights)
        raise UsageError(f"{where}: " + (
            "it is a SavedModel, whose names do not say which array is which; give the checkpoint of TensorFlow 1 of "
            "the same net (gs://simclr-checkpoints)" if saved else
            "it has neither base_model/conv2d nor model/resnet_model; wanted a checkpoint of SimCLR"))
    if _selective(weights, old):
        raise UsageError(f"{where}: its ResNet has selective kernels (sk_ratio above 0), which no net here has; take "
                         "one with sk0 in its name")
    kernel = weights[TF1 if old else TF2].shape
    depth = _depth(weights, old, where)
    small = kernel[0] == 3
    net = dict(name="resnet", depth=depth, width=kernel[3] / 64, stem="cifar" if small else "imagenet", layout="simclr")
    rows = []
    for ours, conv, norm in _units(depth, _numbered if old else _placed):
        rows.append(row(f"backbone/{ours.format('conv')}/kernel", "as is", conv))
        rows += _norm("backbone", ours.format("bn"), norm, old)
    layout = Layout(tuple(rows), (r"head_supervised/.*", r"model/supervised_head/.*"), ignored=IGNORED)
    nets, layout = with_head({"backbone": net}, layout, _head(weights, old))
    resize = ["resize", dict(size=32 if small else 224)]
    return Found(nets, layout, {"eval": [resize] if small else [["center_crop", dict(proportion=0.875)], resize]})


def _selective(weights, old) -> bool:
    if not old:
        return any("/initial_conv_relu_max_pool/1/bn/" in name for name in weights)
    second = weights.get("base_model/conv2d_1/kernel")  # the first shortcut, 1x1, if the stem is one convolution
    return second is not None and second.shape[0] == 3


def _depth(weights, old, where) -> int:
    """By the number of convolutions, or of blocks; the numbers of no two depths are the same."""
    if old:
        there = count(weights, r"base_model/conv2d_(\d+)/kernel$")
        of = {5 + sum(blocks) * (3 if depth >= 50 else 2): depth for depth, blocks in BLOCKS.items()}
    else:
        deep = any("/conv_relu_dropblock_layers/" in name for name in weights)
        there = tuple(count(weights, rf"model/resnet_model/block_groups/{i}/layers/(\d+)/") for i in range(4))
        of = {blocks: depth for depth, blocks in BLOCKS.items() if (depth >= 50) == deep}
    if there not in of:
        raise UsageError(f"{where}: no ResNet of depth {', '.join(map(str, BLOCKS))} (it has {there} "
                         f"{'convolutions' if old else 'blocks'})")
    return of[there]


def _units(depth, named):
    """(ours with {} for conv or bn, their convolution, their norm) in the order that TensorFlow 1 makes them.

    named: as `_numbered`.
    """
    n, k = (3 if depth >= 50 else 2), 0
    yield "stem/{}", *named(depth, 0, None, 0, 0)
    for stage, blocks in enumerate(BLOCKS[depth], 1):
        for j in range(blocks):
            for i in range(0 if j == 0 else 1, n + 1):  # 0 is the shortcut
                k += 1
                ours = f"stage{stage}/block{j + 1}/" + (f"{{}}{i}" if i else "downsample/{}")
                yield ours, *named(depth, k, stage - 1, j, i)


def _numbered(depth, k, stage, j, i):
    """The k-th convolution and its norm: of block j of a stage the i-th, or of the stem, where stage is None."""
    end = f"_{k}" if k else ""
    return f"base_model/conv2d{end}/kernel", f"base_model/batch_normalization{end}"


def _placed(depth, k, stage, j, i):
    """As `_numbered`."""
    deep, at = depth >= 50, "model/resnet_model/"
    if stage is None:
        at, conv, norm = at + "initial_conv_relu_max_pool", 0, 2
    elif i == 0:
        at, conv, norm = f"{at}block_groups/{stage}/layers/{j}/{'projection' if deep else 'shortcut'}_layers", 0, 1
    else:
        between = 3 if deep else 2  # bottlenecks have a DropBlock behind each norm
        at = f"{at}block_groups/{stage}/layers/{j}/{'conv_relu_dropblock' if deep else 'conv2d_bn'}_layers"
        conv, norm = between * (i - 1), between * (i - 1) + 1
    return f"{at}/{conv}/conv2d/kernel{VALUE}", f"{at}/{norm}/bn"


def _norm(role, ours, theirs, old, centred=True):
    end = "" if old else VALUE
    return [row(f"{role}/{mine.format(ours)}", "as is", f"{theirs}/{name}{end}") for mine, name in NORM.items()
            if centred or name != "beta"]


def _head(weights, old) -> Head | None:
    """Layers without bias and with norms, of which the last does not shift; None if nets/mlp has no such head."""
    linear, norm = (("head_contrastive/nl_{}/dense/kernel", "head_contrastive/nl_{}/batch_normalization") if old else
                    ("model/_projection_head/linear_layers/{}/dense/kernel" + VALUE,
                     "model/_projection_head/linear_layers/{}/bn_relu/bn"))
    out = []
    while linear.format(len(out)) in weights:
        out.append(weights[linear.format(len(out))].shape[1])
    if not 1 <= len(out) <= 3 or len(set(out[:-1])) > 1:
        return None
    rows = []
    for i in range(len(out)):
        rows.append(row(f"projector/layer{i + 1}/dense/kernel", "as is", linear.format(i)))
        rows += _norm("projector", f"layer{i + 1}/bn", norm.format(i), old, centred=i + 1 < len(out))
    return Head(dict(name="mlp", layers=len(out), hidden=out[0] if len(out) > 1 else 0, out=out[-1]), tuple(rows))
