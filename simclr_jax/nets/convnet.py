"""A small convolutional net for tiny images (8x8 to 64x64) on a laptop's processor."""
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from simclr_jax.errors import UsageError
from simclr_jax.nets.linen import compute_dtype, fan_in, net, remade
from simclr_jax.nets.norm import BatchNorm, parse
from simclr_jax.types import Net


def make(*, axis: str | None = None, channels: tuple = (32, 64, 128), bn: str = "global",
         dtype: str = "float32", remat: bool = False) -> Net:
    """float[b,H,W,C] -> {"pooled": f32[b,D], "tokens": f32[b,h*w,D]} with D = channels[-1].

    One 3x3 convolution, normalisation and ReLU for each of `channels`, then the mean over positions. The first
    convolution has stride 2 for sides of 16 and more; the others while sides are at least 4. So three layers bring 8x8
    and 16x16 to 2x2, 32x32 to 4x4 and 64x64 to 8x8. Strides rather than pooling: 1.4 to 4 times as fast, measured.

    Args:
      axis: mesh axis of the rows, or None.
      channels: of each layer.
      bn: which rows share statistics, as in `norm.parse`.
      dtype: of the products, "float32" or "bfloat16".
      remat: make each layer's activations again in the backward pass (`linen.remade`).

    Raises:
      UsageError: channels are not whole numbers above 0; when called, an image not of four axes.
    """
    where = "nets/convnet"
    if not channels or not all(isinstance(c, int) and c > 0 for c in channels):
        raise UsageError(f"{where}: channels={channels}, wanted whole numbers above 0, such as (32, 64, 128)")
    parse(bn, where)
    return net(ConvNet(tuple(channels), bn, axis, compute_dtype(dtype, where), remat))


class ConvNet(nn.Module):
    channels: tuple
    bn: str
    axis: str | None
    dtype: Any
    remat: bool

    @nn.compact
    def __call__(self, x, train: bool):
        if x.ndim != 4:
            raise UsageError(f"nets/convnet wants images [rows, height, width, channels] and got shape {x.shape}")
        for i in range(1, len(self.channels) + 1):
            x = remade(_layer, self.remat, static=(2, 3))(self, x, i, train)
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        tokens = x.reshape(x.shape[0], -1, x.shape[-1])
        return {"pooled": jnp.mean(tokens, axis=1), "tokens": tokens}


def _layer(net: ConvNet, x, i: int, train: bool):
    """Layer i, whose parameters are the net's own: conv{i} and bn{i}."""
    stride = 2 if min(x.shape[1:3]) >= (16 if i == 1 else 4) else 1
    x = Conv(net.channels[i - 1], stride, net.dtype, name=f"conv{i}", parent=net)(x)
    return nn.relu(BatchNorm(net.bn, net.axis, dtype=net.dtype, name=f"bn{i}", parent=net)(x, train))


class Conv(nn.Module):
    """A 3x3 convolution without bias, padded by 1 on either side, as one matrix product over gathered neighbourhoods.

    XLA's convolutions on processors use one thread a device and are slow on few positions: on two cores a step of the
    net takes a third of the time on images of 8x8 and 16x16, and about the same from 32x32 on.
    """

    channels: int
    stride: int
    dtype: Any

    @nn.compact
    def __call__(self, x):
        b, h, w, c = x.shape
        kernel = self.param("kernel", fan_in(2.0), (3, 3, c, self.channels), jnp.float32)
        s, oh, ow = self.stride, -(-h // self.stride), -(-w // self.stride)
        padded = jnp.pad(x.astype(self.dtype), ((0, 0), (1, 1), (1, 1), (0, 0)))
        taps = [padded[:, i:i + s * (oh - 1) + 1:s, j:j + s * (ow - 1) + 1:s] for i in range(3) for j in range(3)]
        near = jnp.concatenate(taps, axis=-1)  # [b,oh,ow,9c]: rows, then columns, then channels, as in the kernel
        return near @ kernel.astype(self.dtype).reshape(9 * c, self.channels)
