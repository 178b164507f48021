"""Residual networks, as SimCLR and most contrastive methods use them.

He et al. 2015, arXiv:1512.03385, with the stride on the 3x3 convolution of a bottleneck ("v1.5"). Initial values,
padding and the stem for small images follow google-research/simclr tf2/resnet.py; `layout="torch"` is torchvision's
net, `layout="haiku"` that of BYOL (deepmind-research byol/utils/networks.py, dm-haiku nets/resnet.py).
"""
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from simclr_jax.errors import UsageError
from simclr_jax.nets.conv import Conv, max_pool
from simclr_jax.nets.linen import compute_dtype, fan_in, net, products, remade
from simclr_jax.nets.norm import BatchNorm, parse
from simclr_jax.types import Net

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3),
          200: (3, 24, 36, 3)}
LAYOUTS = "simclr", "torch", "haiku"
SMALLEST = {"imagenet": 32, "cifar": 8}  # how much a stem and three strided stages shrink an image
# Keras' VarianceScaling() as SimCLR calls it: scale 1 and fan-in, not He's scale 2 nor torchvision's fan-out.
INIT = fan_in(1.0)


def make(*, axis: str | None = None, depth: int = 50, width: float = 1, stem: str = "imagenet", bn: str = "global",
         dtype: str = "float32", zero_init: bool = True, layout: str = "simclr", remat: bool = False,
         widths: tuple = ()) -> Net:
    """float[b,H,W,C] -> {"pooled": f32[b,D], "tokens": f32[b,h*w,D]}; tokens are the last feature map, row by row.

    D is the last stage's channels, 512 * width, for depths 18 and 34, and four times that for the others. Parameters:
    stem/{conv,bn}, then stage{1..4}/block{1..}/{conv1,bn1,conv2,bn2,...} and, where the shortcut is not the identity,
    downsample/{conv,bn}.

    Args:
      axis: mesh axis of the rows, or None.
      depth: 18, 34 (two 3x3 a block), 50, 101, 152 or 200 (bottlenecks).
      width: factor on all channels: 1, 2, 4, or a fraction such as 0.25 that keeps 64 * width whole.
      stem: "imagenet": 7x7 stride 2 and a max-pool, sides of at least 32. "cifar": 3x3 stride 1, sides of at least 8.
      bn: which rows share statistics, as in `norm.parse`.
      dtype: of convolutions and activations, "float32" or "bfloat16"; f64 of f64 images.
      zero_init: start the scale of each block's last bn at 0, so that blocks begin as the identity.
      layout: "simclr", "torch" or "haiku". Strided convolutions of the first two are padded alike, by (k-1)/2 on
        either side. SimCLR's max-pool is TensorFlow's SAME, which on even sides pads below and right only, and it
        projects the first shortcut of every stage; PyTorch's max-pool is padded by 1 on either side, and the first
        shortcut of depths 18 and 34 is the identity. Haiku's net, BYOL's, is SimCLR's with SAME for strided
        convolutions, too: on even sides 2 and 3 zeros around the stem's, none and 1 around the 3x3. Weights need the
        layout that they were trained in. Those trained in PyTorch, or to be used there, need "torch".
      remat: make each block's activations again in the backward pass (`linen.remade`).
      widths: channels of the stem and the four stages one by one, in place of `width`; (): 64, 64, 128, 256, 512, times
        width.

    Raises:
      UsageError: a value outside these; when called, an image too small or not of four axes.
    """
    where = "nets/resnet"
    if depth not in BLOCKS:
        raise UsageError(f"{where}: depth={depth}, wanted one of {', '.join(map(str, BLOCKS))}")
    if width <= 0 or (64 * width) % 1:
        raise UsageError(f"{where}: width={width}, wanted a factor above 0 that keeps 64 * width whole, such as 1 or "
                         "0.25")
    if stem not in SMALLEST:
        raise UsageError(f"{where}: stem={stem!r}, wanted {' or '.join(SMALLEST)}")
    if layout not in LAYOUTS:
        raise UsageError(f"{where}: layout={layout!r}, wanted {', '.join(LAYOUTS[:-1])} or {LAYOUTS[-1]}")
    if widths and (len(widths) != 5 or width != 1 or not all(isinstance(n, int) and n > 0 for n in widths)):
        raise UsageError(f"{where}: widths={widths} width={width}, wanted five whole numbers above 0, for the stem "
                         "and four stages, and width 1")
    parse(bn, where)
    channels = tuple(widths) or tuple(int(64 * width) * 2 ** i for i in (0, 0, 1, 2, 3))
    return net(ResNet(depth, channels, stem, zero_init, layout,
                      Parts(bn, axis, compute_dtype(dtype, where), layout == "haiku"), remat))


class Parts(NamedTuple):
    """How every convolution and normalisation of a net is made."""

    bn: str
    axis: str | None
    dtype: Any
    same: bool = False  # strided convolutions are padded as TensorFlow's SAME

    def conv(self, name, features, kernel, stride=1):
        # (k-1)/2 zeros on either side, with any stride. SAME puts the odd one below and right when strided.
        return Conv(features, kernel, stride, INIT, self.dtype, self.same and stride > 1, name=name)

    def norm(self, name, zero=False):
        return BatchNorm(self.bn, self.axis, zero=zero, dtype=self.dtype, name=name)


class ResNet(nn.Module):
    depth: int
    channels: tuple
    stem: str
    zero_init: bool
    layout: str
    parts: Parts
    remat: bool

    @nn.compact
    def __call__(self, x, train: bool):
        if x.ndim != 4:
            raise UsageError(f"nets/resnet wants images [rows, height, width, channels] and got shape {x.shape}")
        if min(x.shape[1:3]) < SMALLEST[self.stem]:
            raise UsageError(f"nets/resnet: images of {x.shape[1]}x{x.shape[2]} are too small for stem={self.stem!r}, "
                             f"which wants sides of at least {SMALLEST[self.stem]}; make the views larger"
                             + (", or set stem='cifar'" if self.stem == "imagenet" else ""))
        parts = self.parts._replace(dtype=products(self.parts.dtype, x))
        x = Stem(self.channels[0], self.stem, self.layout, parts, name="stem")(x, train)
        for i, blocks in enumerate(BLOCKS[self.depth]):
            x = Stage(blocks, self.channels[i + 1], 1 if i == 0 else 2, self.depth >= 50, self.zero_init, self.layout,
                      parts, self.remat, name=f"stage{i + 1}")(x, train)
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        tokens = x.reshape(x.shape[0], -1, x.shape[-1])
        return {"pooled": jnp.mean(tokens, axis=1), "tokens": tokens}


class Stem(nn.Module):
    channels: int
    stem: str
    layout: str
    parts: Parts

    @nn.compact
    def __call__(self, x, train: bool):
        small = self.stem == "cifar"
        x = self.parts.conv("conv", self.channels, 3 if small else 7, 1 if small else 2)(x)
        x = nn.relu(self.parts.norm("bn")(x, train))
        if small:
            return x
        torch = self.layout == "torch"
        return max_pool(x, ((1, 1), (1, 1)) if torch else lax.padtype_to_pads(x.shape[1:3], (3, 3), (2, 2), "SAME"))


class Stage(nn.Module):
    blocks: int
    channels: int
    stride: int
    bottleneck: bool
    zero_init: bool
    layout: str
    parts: Parts
    remat: bool

    @nn.compact
    def __call__(self, x, train: bool):
        block = remade(Block, self.remat, static=(2,))
        for j in range(self.blocks):
            first = j == 0
            stride = self.stride if first else 1
            same = stride == 1 and x.shape[-1] == self.channels * (4 if self.bottleneck else 1)
            project = first and (self.layout != "torch" or not same)
            x = block(self.channels, stride, self.bottleneck, project, self.zero_init, self.parts,
                      name=f"block{j + 1}")(x, train)
        return x


class Block(nn.Module):
    channels: int
    stride: int
    bottleneck: bool
    project: bool
    zero_init: bool
    parts: Parts

    @nn.compact
    def __call__(self, x, train: bool):
        c = self.channels
        if self.bottleneck:
            convs = ((c, 1, 1), (c, 3, self.stride), (4 * c, 1, 1))  # channels, kernel, stride
        else:
            convs = ((c, 3, self.stride), (c, 3, 1))
        y = x
        for i, (features, kernel, stride) in enumerate(convs, 1):
            last = i == len(convs)
            y = self.parts.conv(f"conv{i}", features, kernel, stride)(y)
            y = self.parts.norm(f"bn{i}", zero=last and self.zero_init)(y, train)
            y = y if last else nn.relu(y)
        if self.project:
            x = Downsample(features, self.stride, self.parts, name="downsample")(x, train)
        return nn.relu(x + y)


class Downsample(nn.Module):
    channels: int
    stride: int
    parts: Parts

    @nn.compact
    def __call__(self, x, train: bool):
        return self.parts.norm("bn")(self.parts.conv("conv", self.channels, 1, self.stride)(x), train)
