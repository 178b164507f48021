"""Checkpoints of SwAV and DeepCluster-v2 (facebookresearch/swav, CC BY-NC 4.0: src/resnet50.py, main_swav.py,
eval_linear.py). Read only.

A state dict of a DistributedDataParallel, or a checkpoint {"state_dict"}. Its ResNet-50s, 1, 2, 4 or 5 times as wide,
pad the picture by 1 and then in the first convolution by 2, together torchvision's 3. Its deviation of red is .228.
"""
import re

from simclr_jax.errors import UsageError
from simclr_jax.export import found, heads, rows, torch_resnet
from simclr_jax.export.found import Found
from simclr_jax.export.layout import Layout

AHEAD = ("", "state_dict."), ("module.", "")
PIXELS = dict(mean=(0.485, 0.456, 0.406), std=(0.228, 0.224, 0.225))


def read(weights, config: dict, where: str) -> Found:
    """The ResNet, its projection head as projector, and the prototypes beside.

    Raises:
      UsageError: there is no ResNet.
    """
    at = rows.ahead(weights, ("conv1.weight",), *AHEAD)
    if at is None:
        raise UsageError(f"{where}: it has no conv1.weight; wanted a checkpoint of swav")
    net = torch_resnet.describe(weights, where, at)
    table = Layout(torch_resnet.layout("backbone", net, at).rows, ignored=(heads.COUNTERS, r"(optimizer|amp)\..*"))
    head = heads.sequential("projector", weights, at + "projection_head")
    nets, table = heads.with_head({"backbone": net}, table, head)
    kept = ("prototypes",) if head else ("prototypes", "projection_head")
    return Found(nets, table._replace(beside=tuple(re.escape(at + name) + r"\..*" for name in kept)),
                 found.view(224, **PIXELS, crop=0.875, method="bilinear"))
