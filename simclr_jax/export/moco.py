"""Checkpoints of MoCo v1 and v2 (facebookresearch/moco, MIT: main_moco.py, moco/builder.py) and MoCo v3
(facebookresearch/moco-v3, CC BY-NC 4.0: main_moco.py, moco/builder.py, vits.py). Read only.

{"state_dict"} of a DistributedDataParallel. The query encoder is taken: a net of torchvision whose `fc` is the head, or
timm's vision transformer with fixed positions, whose `head` is. Key encoder, queue and predictor stay behind.
"""
import math
import re

import numpy as np

from simclr_jax.errors import UsageError
from simclr_jax.export import found, heads, rows, timm, torch_resnet
from simclr_jax.export.found import Found
from simclr_jax.export.layout import Layout
from simclr_jax.nets import posemb

AHEAD = ("", "state_dict.", "model."), ("module.", ""), ("encoder_q.", "base_encoder.", "")
IGNORED = (r"(.*\.)?(encoder_k|momentum_encoder|predictor)\..*", r"(.*\.)?queue(_ptr)?", r"(optimizer|scaler)\..*",
           heads.COUNTERS)
HEADS = 12  # of both its vision transformers, 32 numbers each in the small one


def read(weights, config: dict, where: str) -> Found:
    """The query encoder, and its head as projector where nets/mlp has one like it.

    Raises:
      UsageError: it has none, or it begins with convolutions (vit_conv_small, vit_conv_base).
    """
    at = rows.ahead(weights, ("conv1.weight", "patch_embed.proj.weight", "patch_embed.proj.0.weight"), *AHEAD)
    if at is None:
        raise UsageError(f"{where}: it has no encoder_q and no base_encoder, neither a ResNet nor a ViT; wanted a "
                         "checkpoint of moco or moco-v3")
    if at + "patch_embed.proj.0.weight" in weights:
        raise UsageError(f"{where}: its vision transformer begins with convolutions (vit_conv_*), which nets/vit has "
                         "not; take vit_small or vit_base")
    resnet = at + "conv1.weight" in weights
    net, table = _resnet(weights, at, where) if resnet else _vit(weights, at, where)
    last = at + ("fc" if resnet else "head")
    head = heads.sequential("projector", weights, last)
    nets, table = heads.with_head({"backbone": net}, table, head)
    beside = () if head else (re.escape(last) + r"\..*",)
    view = found.view(net.get("image", 224), **found.IMAGENET, crop=0.875, method="bilinear")
    return Found(nets, table._replace(beside=beside), view)


def _resnet(weights, at, where):
    net = torch_resnet.describe(weights, where, at)
    return net, Layout(torch_resnet.layout("backbone", net, at).rows, ignored=IGNORED)


def _vit(weights, at, where):
    width, _, patch, _ = weights[at + "patch_embed.proj.weight"].shape
    table = weights[at + "pos_embed"].read()[0]
    side = math.isqrt(len(table) - 1)
    if width % HEADS or len(table) != side ** 2 + 1:
        raise UsageError(f"{where}: {at}pos_embed has shape {table.shape}, wanted a class token, a square of "
                         f"patches and a width that is a multiple of {HEADS}")
    sines = np.concatenate([np.zeros((1, width)), posemb.sincos(side, side, width)])
    fixed = np.allclose(table, sines, atol=1e-4)  # as they leave training, unless someone has trained them
    net = dict(name="vit", width=width, depth=rows.count(weights, re.escape(at) + r"blocks\.(\d+)\."), heads=HEADS,
               mlp=weights[at + "blocks.0.mlp.fc1.weight"].shape[0], patch=patch, image=side * patch,
               posemb="sincos" if fixed else "learned", eps=1e-6)
    positions = (re.escape(at) + "pos_embed",) * fixed
    return net, Layout(tuple(rows.below(at, timm.layout("backbone", net).rows)), ignored=IGNORED + positions)
