"""Checkpoints of BYOL (google-deepmind/deepmind-research, Apache-2.0: byol/byol_experiment.py, utils/networks.py,
utils/checkpointing.py, utils/dataset.py), in dm-haiku's names (Apache-2.0: haiku/_src/nets/resnet.py, batch_norm.py,
moving_averages.py). Read only.

The online net is taken: experiment_state/online_params/MODULE/LEAF and online_state. Haiku pads strided convolutions as
TensorFlow's SAME, so the net has layout="haiku". Averages of its norms are those without the bias of their beginning
("average", not "hidden"); norms keep the rank of what they normalise, [1,1,1,C] or [1,C].
"""
import re

from simclr_jax.errors import UsageError
from simclr_jax.export import found
from simclr_jax.export.found import Found
from simclr_jax.export.heads import Head, with_head
from simclr_jax.export.layout import Layout, Row, row
from simclr_jax.export.rows import count
from simclr_jax.nets.resnet import BLOCKS

FIRST = re.compile(r"((?:experiment_state/)?)online_params/(res_net\d+)/~/initial_conv/w")
IGNORED = (r"(experiment_state/)?(target_params|target_state|opt_state)/.*",
           r"(experiment_state/)?(online_params|online_state)/predictor/.*", r".*/(mean_ema|var_ema)/(hidden|counter)",
           "rng", "step")
CROP = dict(proportion=224 / (224 + 32), floor=True)  # dataset.py, _decode_and_center_crop


def read(weights, config: dict, where: str) -> Found:
    """The online ResNet, and its projector; the classifier that was trained on it is kept beside.

    Raises:
      UsageError: there is no such net, or one of the second kind (resnet_v2).
    """
    match = next(filter(None, map(FIRST.fullmatch, weights)), None)
    if match is None:
        raise UsageError(f"{where}: it has no experiment_state/online_params/res_net*/~/initial_conv/w; wanted a "
                         "checkpoint of BYOL's pretraining, such as pretrain_res50x1.pkl")
    at, net = match[1], match[2]
    if any("/final_batchnorm/" in name for name in weights):
        raise UsageError(f"{where}: its ResNet normalises before each convolution (resnet_v2), which no net here does")
    params, state = at + "online_params/", at + "online_state/"
    spec = _describe(weights, f"{params}{net}/~/", where)
    table = _resnet(spec, f"{net}/~/", params, state)
    layout = Layout(tuple(table), (re.escape(params) + "classifier/.*",), ignored=IGNORED)
    nets, layout = with_head({"backbone": spec}, layout, _head(weights, params, state))
    view = {"eval": [["center_crop", CROP], ["resize", dict(size=224)], ["normalize", found.IMAGENET]]}
    return Found(nets, layout, view)


def _describe(weights, at, where) -> dict:
    names = [n.removeprefix(at) for n in weights if n.startswith(at)]
    blocks = tuple(count(names, rf"block_group_{i}/~/block_(\d+)/") for i in range(4))
    deep = "block_group_0/~/block_0/~/conv_2/w" in names
    depth = next((d for d, b in BLOCKS.items() if b == blocks and (d >= 50) == deep), None)
    if depth is None:
        raise UsageError(f"{where}: no ResNet of depth {', '.join(map(str, BLOCKS))} (its groups have {blocks} blocks)")
    return dict(name="resnet", depth=depth, width=weights[at + "initial_conv/w"].shape[3] / 64, layout="haiku")


def _resnet(net, at, params, state):
    units = [("stem/{}", f"{at}initial_{{}}")]
    for stage, blocks in enumerate(BLOCKS[net["depth"]], 1):
        for j in range(blocks):
            ours, theirs = f"stage{stage}/block{j + 1}", f"{at}block_group_{stage - 1}/~/block_{j}/~/"
            units += [(f"{ours}/{{}}{k + 1}", f"{theirs}{{}}_{k}") for k in range(3 if net["depth"] >= 50 else 2)]
            units += [(f"{ours}/downsample/{{}}", f"{theirs}shortcut_{{}}")] * (j == 0)  # of every group, networks.py
    rows = []
    for ours, theirs in units:
        rows.append(row(f"backbone/{ours.format('conv')}/kernel", "as is", f"{params}{theirs.format('conv')}/w"))
        rows += _norm("backbone", ours.format("bn"), theirs.format("batchnorm"), params, state, "inner3")
    return rows


def _norm(role, ours, norm, params, state, way, *bias) -> list[Row]:
    """bias: of the layer before it, which its mean is less by."""
    return [row(f"{role}/{ours}/scale", way, f"{params}{norm}/scale"),
            row(f"{role}/{ours}/bias", way, f"{params}{norm}/offset"),
            row(f"{role}/stats/{ours}/mean", "less" if bias else way, f"{state}{norm}/~/mean_ema/average", *bias),
            row(f"{role}/stats/{ours}/var", way, f"{state}{norm}/~/var_ema/average")]


def _head(weights, params, state) -> Head | None:
    """Two layers, the first with a bias and a norm, the last with neither."""
    if f"{params}projector/linear/w" not in weights:
        return None
    hidden, out = (weights[f"{params}projector/{name}/w"].shape[1] for name in ("linear", "linear_1"))
    rows = [row(f"projector/layer{i}/dense/kernel", "as is", f"{params}projector/{name}/w")
            for i, name in ((1, "linear"), (2, "linear_1"))]
    bias = f"{params}projector/linear/b"
    rows += _norm("projector", "layer1/bn", "projector/batch_norm", params, state, "inner", bias)
    return Head(dict(name="mlp", layers=2, hidden=hidden, out=out, last_bn=False, last_bias=False), tuple(rows))
