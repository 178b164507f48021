"""CLIP's ResNets: three convolutions in the stem, average pools in place of strides, attention in place of a mean.

Radford et al. 2021, arXiv:2103.00020, section 2.4; openai/CLIP clip/model.py, ModifiedResNet.
"""
from typing import Any, NamedTuple

from flax import linen as nn

from simclr_jax.errors import UsageError
from simclr_jax.nets.linen import compute_dtype, fan_in, net, products, remade, wide
from simclr_jax.nets.norm import BatchNorm, parse
from simclr_jax.nets.pool import AttentionPool
from simclr_jax.types import Net


def make(*, axis: str | None = None, layers: tuple = (3, 4, 6, 3), width: int = 64, heads: int = 32, out: int = 1024,
         image: int = 224, bn: str = "global", dtype: str = "float32", remat: bool = False) -> Net:
    """float[b,H,W,3] -> {"pooled": f32[b,out], "tokens": f32[b,h*w,32*width]}; tokens are the last feature map.

    The defaults are RN50. RN101: layers (3, 4, 23, 3), out 512. RN50x4: layers (4, 6, 10, 6), width 80, heads 40, out
    640, image 288. RN50x16: (6, 8, 18, 8), 96, 48, 768, 384. RN50x64: (3, 15, 36, 10), 128, 64, 1024, 448.

    H and W are multiples of 32; where they are not `image`, the positions of the pool are interpolated. Parameters:
    stem/{conv1,bn1,..,bn3}, stage{1..4}/block{1..}/{conv1,bn1,..,bn3} and downsample/{conv1,bn1}, pool (see
    `AttentionPool`).

    Initial values are openai/CLIP's: convolutions as PyTorch begins them, uniform of variance 1 / (3 fan-in); the scale
    of each block's last bn 0; the pool's kernels and positions N(0, 1 / (32 width)). Biases are 0 (PyTorch's are
    uniform).

    Args:
      axis: mesh axis of the rows, or None.
      layers: blocks in each of four stages.
      width: channels of the stem; the last map has 32 times as many.
      heads: of the attention pool; width / 2 in CLIP's.
      out: width of the pooled vector.
      image: side in pixels that the positions are for.
      bn: which rows share statistics, as in `norm.parse`.
      dtype: of convolutions and activations, "float32" or "bfloat16".
      remat: make each block's activations again in the backward pass (`linen.remade`).

    Raises:
      UsageError: a value outside these; when called, an image not of four axes or not a multiple of 32.
    """
    where = "nets/modified_resnet"
    if len(layers) != 4 or not all(isinstance(n, int) and n > 0 for n in layers):
        raise UsageError(f"{where}: layers={layers}, wanted four whole numbers above 0, such as (3, 4, 6, 3)")
    if width < 2 or width % 2:
        raise UsageError(f"{where}: width={width}, wanted an even number above 0, such as 64")
    if heads < 1 or 32 * width % heads:
        raise UsageError(f"{where}: heads={heads} does not divide the {32 * width} channels of the pool; CLIP has "
                         "width / 2 heads")
    if out < 1:
        raise UsageError(f"{where}: out={out}, wanted a whole number above 0")
    if image < 32 or image % 32:
        raise UsageError(f"{where}: image={image}, wanted a multiple of 32")
    parse(bn, where)
    return net(ModifiedResNet(tuple(layers), width, heads, out, image // 32, bn, axis, compute_dtype(dtype, where), remat),
               draw=lambda path: "normal" if path[0] == "pool" else "uniform")


class Parts(NamedTuple):
    """How every convolution and normalisation of a net is made."""

    bn: str
    axis: str | None
    dtype: Any

    def unit(self, i, x, train, features, kernel, stride=1, relu=True, zero=False):
        """Convolution i, normalisation i and ReLU."""
        pad = (kernel - 1) // 2
        x = nn.Conv(features, (kernel, kernel), (stride, stride), ((pad, pad), (pad, pad)), use_bias=False,
                    kernel_init=fan_in(1 / 3), dtype=self.dtype, name=f"conv{i}")(x)
        x = BatchNorm(self.bn, self.axis, zero=zero, dtype=self.dtype, name=f"bn{i}")(x, train)
        return nn.relu(x) if relu else x


class ModifiedResNet(nn.Module):
    layers: tuple
    width: int
    heads: int
    out: int
    side: int
    bn: str
    axis: str | None
    dtype: Any
    remat: bool

    @nn.compact
    def __call__(self, x, train: bool):
        if x.ndim != 4:
            raise UsageError(f"nets/modified_resnet wants images [rows, height, width, channels] and got {x.shape}")
        if x.shape[1] % 32 or x.shape[2] % 32:
            raise UsageError(f"nets/modified_resnet: images of {x.shape[1]}x{x.shape[2]}, wanted sides that are "
                             "multiples of 32")
        parts = Parts(self.bn, self.axis, products(self.dtype, x))
        x = Stem(self.width, parts, name="stem")(x.astype(parts.dtype), train)
        for i, blocks in enumerate(self.layers):
            x = Stage(blocks, self.width * 2 ** i, 1 if i == 0 else 2, parts, self.remat, name=f"stage{i + 1}")(x, train)
        pooled = AttentionPool(self.heads, self.side, self.out, parts.dtype, name="pool")(x)
        return {"pooled": pooled, "tokens": x.astype(wide(x)).reshape(x.shape[0], -1, x.shape[-1])}


class Stem(nn.Module):
    width: int
    parts: Parts

    @nn.compact
    def __call__(self, x, train: bool):
        for i, (features, stride) in enumerate(((self.width // 2, 2), (self.width // 2, 1), (self.width, 1)), 1):
            x = self.parts.unit(i, x, train, features, 3, stride)
        return _shrink(x, 2)


class Stage(nn.Module):
    blocks: int
    channels: int
    stride: int
    parts: Parts
    remat: bool

    @nn.compact
    def __call__(self, x, train: bool):
        block = remade(Block, self.remat, static=(2,))
        for j in range(self.blocks):
            x = block(self.channels, self.stride if j == 0 else 1, self.parts, name=f"block{j + 1}")(x, train)
        return x


class Block(nn.Module):
    channels: int
    stride: int
    parts: Parts

    @nn.compact
    def __call__(self, x, train: bool):
        c, unit = self.channels, self.parts.unit
        y = unit(1, x, train, c, 1)
        y = _shrink(unit(2, y, train, c, 3), self.stride)
        y = unit(3, y, train, 4 * c, 1, relu=False, zero=True)
        if self.stride > 1 or x.shape[-1] != 4 * c:
            x = Downsample(4 * c, self.parts, name="downsample")(_shrink(x, self.stride), train)
        return nn.relu(x + y)


class Downsample(nn.Module):
    channels: int
    parts: Parts

    @nn.compact
    def __call__(self, x, train: bool):
        return self.parts.unit(1, x, train, self.channels, 1, relu=False)


def _shrink(x, stride):
    """The mean of stride x stride positions, before which nothing was skipped."""
    return x if stride == 1 else nn.avg_pool(x, (stride, stride), (stride, stride))
