"""What a vision transformer looks at: the attention of its last block, head by head, and a picture of it.

As Caron et al. 2021 draw it (arXiv:2104.14294, figure 1): how much of the class token's attention goes to each patch.
"""
from typing import NamedTuple, Sequence

import jax
import numpy as np

from simclr_jax.evals.pictures import _image, _picture, _unit
from simclr_jax.types import Net


class Look(NamedTuple):
    """Where the pooled vector of each image comes from."""

    query: str  # what looks
    patches: np.ndarray  # f32[n,heads,h,w], the share of the attention that goes to each patch
    others: np.ndarray  # f32[n,heads], the share that goes to class token and registers; with the patches' it makes 1


def look(net: Net, params, stats, x, *, heads: int, pool: str, patch: int, prefix: int) -> Look:
    """softmax(q k / sqrt(d)) of f32[n,H,W,3] where the net of `nets/vit.py` makes one vector of its tokens.

    Args:
      heads, patch: of the net; prefix: tokens before the patches, which take their share but are not in `Look.patches`.
      pool: of the net. "cls", "pooler": what the class token looks at in the last block. "mean": what the patches do,
        on average. "map": what the probe looks at behind it.
    """
    if pool == "map":
        names, query = ["pool/q", "pool/kv"], "probe"
    else:
        names = [f"stack/block{_depth(params['stack'])}/attention/qkv"]
        query = "mean of the patches" if pool == "mean" else "class token"
    made = jax.jit(lambda p, s, x: net.layers(p, s, x, names))(params, stats, x)
    made = [np.asarray(made[name], np.float32) for name in names]
    n = len(x)
    if pool == "map":
        q, k = np.broadcast_to(made[0], (n, *made[0].shape[-2:])), np.split(made[1], 2, axis=-1)[0]
    else:
        q, k, _ = np.split(made[0], 3, axis=-1)
        q = q[:, prefix:] if pool == "mean" else q[:, :1]
    q, k = (y.reshape(n, y.shape[1], heads, -1) for y in (q, k))
    shares = softmax(np.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(q.shape[-1])).mean(axis=2)
    grid = x.shape[1] // patch, x.shape[2] // patch
    return Look(query, shares[:, :, prefix:].reshape(n, heads, *grid), shares[:, :, :prefix].sum(axis=2))


def softmax(x: np.ndarray) -> np.ndarray:
    """Over the last axis."""
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def _depth(stack) -> int:
    """How many blocks a stack has, one by one or in one for a scan."""
    return len(jax.tree.leaves(stack["blocks"])[0]) if "blocks" in stack else len(stack)


@_picture
def maps(figure, images: Sequence[np.ndarray], seen: Look):
    """A line an image: the image, the mean over heads, each head. Bright: looked at; each map from 0 to its largest.

    maps(images, seen, path=...). images: n of one size, u8 or f32, as `look` saw them. Patches are drawn as large as
    they are in the image.
    """
    n, heads, h, w = seen.patches.shape
    shown = np.concatenate([seen.patches.mean(axis=1, keepdims=True), seen.patches], axis=1)
    figure.set_size_inches(1.0 * (heads + 2) + 0.6, 1.04 * n + 0.9)
    at_patches = 100 * (1 - seen.others.mean())
    figure.suptitle(f"What the {seen.query} looks at, {at_patches:.0f}% at patches", x=0.01, ha="left", fontsize=13)
    axes = figure.subplots(n, heads + 2, squeeze=False)
    for i, line in enumerate(axes):
        image = _unit(np.asarray(images[i]))
        _image(line[0], image)
        for j, ax in enumerate(line[1:]):
            _image(ax, np.kron(shown[i, j], np.ones((image.shape[0] // h, image.shape[1] // w))))
            ax.images[0].set_clim(0, shown[i, j].max())
    for j, ax in enumerate(axes[0]):
        ax.set_title(("image", "mean")[j] if j < 2 else f"head {j - 1}", fontsize=10, loc="center", pad=4)
