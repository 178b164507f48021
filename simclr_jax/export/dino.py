"""Checkpoints of DINO (facebookresearch/dino, Apache-2.0: main_dino.py, vision_transformer.py, utils.py, hubconf.py).
Read only.

Released backbones, ViT or ResNet-50, and whole checkpoints {"student", "teacher", "optimizer", "dino_loss"}, of which
the teacher is taken. Its net is evaluated in bicubic pictures of 224 (eval_linear.py, eval_knn.py).
"""
import re

from simclr_jax.errors import UsageError
from simclr_jax.export import found, heads, rows, timm, torch_resnet
from simclr_jax.export.found import Found
from simclr_jax.export.layout import Layout

AHEAD = ("teacher.", "", "student."), ("module.", ""), ("backbone.", "")
IGNORED = (heads.COUNTERS, r"(optimizer|dino_loss|fp16_scaler)\..*")


def read(weights, config: dict, where: str) -> Found:
    """The backbone; of a whole checkpoint also the head as projector, and its last layer beside.

    Raises:
      UsageError: neither a ViT nor a ResNet; XCiT.
    """
    if any(re.match(r"(.*\.)?cls_attn_blocks\.", name) for name in weights):
        raise UsageError(f"{where}: it is an XCiT, which no net here is; take a ViT or the ResNet-50 of DINO")
    at = rows.ahead(weights, ("patch_embed.proj.weight", "conv1.weight"), *AHEAD)
    if at is None:
        raise UsageError(f"{where}: it has no patch_embed.proj.weight and no conv1.weight; wanted a backbone or a "
                         "checkpoint of DINO")
    if at + "conv1.weight" in weights:
        net = torch_resnet.describe(weights, where, at)
        table = torch_resnet.layout("backbone", net, at).rows
    else:
        net = timm.vit(rows.without(at, weights), {}, where) | dict(position_resize="offset")
        table = rows.below(at, timm.layout("backbone", net).rows)
    top = at.removesuffix("backbone.")
    head = heads.sequential("projector", weights, f"{top}head.mlp", "gelu")
    ignored = IGNORED + (r"student\..*",) * at.startswith("teacher.")
    nets, layout = heads.with_head({"backbone": net}, Layout(tuple(table), ignored=ignored), head)
    kept = (r"head\.last_layer\..*",) if head else (r"head\..*",)
    kept = tuple(re.escape(top) + name for name in kept) + (re.escape(at) + r"fc\..*",)
    size = net.get("image", 224)
    return Found(nets, layout._replace(beside=kept), found.view(size, **found.IMAGENET, crop=0.875))
