"""Checkpoints of DINOv2 (facebookresearch/dinov2, Apache-2.0: dinov2/models/vision_transformer.py, layers/,
hub/backbones.py, train/train.py, data/transforms.py). Read only.

Released backbones, with and without registers, and {"teacher"} of its training, whose heads stay behind. Where it was
trained in chunks, block 12 of 40 is blocks.1.12. The released ones have positions for pictures of 518 and are evaluated
in bicubic ones of 224; those with registers interpolate them with antialiasing, the others do not (hub/backbones.py).
"""
import math
import re

from simclr_jax.errors import UsageError
from simclr_jax.export import found, rows
from simclr_jax.export.found import Found
from simclr_jax.export.layout import Layout, row

AHEAD = ("teacher.", "", "student.", "model."), ("module.", ""), ("backbone.", "")
RELEASED = 518  # side of the pictures that the released nets have positions for
BLOCK = r"blocks\.(?:\d+\.)?(\d+)\.norm1\.weight"


def read(weights, config: dict, where: str) -> Found:
    """The backbone.

    Raises:
      UsageError: it is none of DINOv2's.
    """
    at = rows.ahead(weights, ("patch_embed.proj.weight",), *AHEAD)
    if at is None:
        raise UsageError(f"{where}: it has no patch_embed.proj.weight; wanted a backbone or a teacher of DINOv2")
    inner = rows.without(at, weights)
    if "head.weight" in inner or "mask_token" not in inner:
        raise UsageError(f"{where}: it has no mask_token, as all backbones of DINOv2 have; is it timm's or DINO's?")
    net, places = _net(inner, where)
    table = rows.below(at, _rows("backbone", net, places))
    ignored = (r"(.*\.)?(dino_head|ibot_head)\..*", r"(optimizer|scheduler)\..*")
    ignored += (r"student\..*",) * at.startswith("teacher.")
    size = 224 if net["image"] == RELEASED else net["image"]
    view = found.view(size, **found.IMAGENET, crop=0.875)
    return Found({"backbone": net}, Layout(tuple(table), ignored=ignored), view)


def _net(weights, where):
    """(net, {block: where it is in the file})."""
    width, _, patch, _ = weights["patch_embed.proj.weight"].shape
    places = {int(m[1]): name.removesuffix("norm1.weight") for name in weights if (m := re.fullmatch(BLOCK, name))}
    positions = weights["pos_embed"].shape[1]
    side = math.isqrt(positions - 1)
    if side ** 2 != positions - 1 or sorted(places) != list(range(len(places))) or not places:
        raise UsageError(f"{where}: it has positions for {positions} tokens and blocks {sorted(places)}, wanted a "
                         "class token and a square of patches, and blocks from 0 on")
    gated = places[0] + "mlp.w12.weight" in weights
    mlp = weights[places[0] + ("mlp.w3.weight" if gated else "mlp.fc2.weight")].shape[1]
    registers = weights["register_tokens"].shape[1] if "register_tokens" in weights else 0
    return dict(name="vit", width=width, depth=len(places), heads=max(1, width // 64), mlp=mlp, patch=patch,
                image=side * patch, registers=registers, mask_token=True, mlp_kind="swiglu" if gated else "gelu",
                layer_scale=1.0 if places[0] + "ls1.gamma" in weights else 0.0, eps=1e-6,
                position_resize="antialias" if registers and side * patch == RELEASED else "offset"), places


def _rows(role, net, places):
    table = rows.conv(f"{role}/patches", "patch_embed.proj", bias=True) + rows.norm(f"{role}/norm", "norm")
    table += [row(f"{role}/class_token/embedding", "inner", "cls_token"),
              row(f"{role}/positions/embedding", "inner", "pos_embed"),
              row(f"{role}/mask_token/embedding", "as is", "mask_token")]
    table += [row(f"{role}/registers/embedding", "inner", "register_tokens")] * bool(net["registers"])
    mlp = ("mlp.w12", "mlp.w3") if net["mlp_kind"] == "swiglu" else ("mlp.fc1", "mlp.fc2")
    scales = ("ls1.gamma", "ls2.gamma") if net["layer_scale"] else ()
    blocks = rows.blocks(role, net["depth"], "<{}>", norms=("norm1", "norm2"), qkv=("attn.qkv",), out="attn.proj",
                         mlp=mlp, scales=scales)
    placed = lambda name: re.sub(r"^<(\d+)>", lambda m: places[int(m[1])], name)
    return table + [r._replace(parts=tuple(p._replace(name=placed(p.name)) for p in r.parts)) for r in blocks]
