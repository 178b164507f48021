"""The multi-layer perceptron of projection heads and predictors.

Chen et al. 2020, arXiv:2002.05709, section 4.2; details as in google-research/simclr tf2/model.py: dense layers without
bias from N(0, 0.01^2), each followed by batch normalisation, ReLU between layers, and a last normalisation that scales
but does not shift.
"""
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from simclr_jax.errors import UsageError
from simclr_jax.nets.linen import compute_dtype, net
from simclr_jax.nets.norm import BatchNorm, parse
from simclr_jax.types import Net


def make(*, axis: str | None = None, layers: int = 3, hidden: int = 0, out: int = 128, bn: str = "global",
         last_bn: bool = True, dtype: str = "float32") -> Net:
    """float[b, D] -> {"pooled": f32[b, out]}.

    Parameters: layer1.. with dense/kernel and bn/scale, bn/bias; the last bn has no bias.

    Args:
      axis: mesh axis of the rows, or None.
      layers: 1 to 3 dense layers. 2 is the head of the SimCLR paper, 3 that of SimCLRv2 and of the released code.
      hidden: width of all layers but the last; 0: as wide as the input.
      bn: which rows share statistics, as in `norm.parse`.
      last_bn: normalise the output too. Without it the last layer is linear, with a bias.
      dtype: of the products, "float32" or "bfloat16".

    Raises:
      UsageError: a value outside these.
    """
    where = "nets/mlp"
    if layers not in (1, 2, 3):
        raise UsageError(f"{where}: layers={layers}, wanted 1, 2 or 3")
    if hidden < 0 or out < 1:
        raise UsageError(f"{where}: hidden={hidden} out={out}, wanted out above 0 and hidden above 0, or 0 for the "
                         "input's width")
    parse(bn, where)
    return net(Mlp(layers, hidden, out, last_bn, bn, axis, compute_dtype(dtype, where)), draw="normal")


class Mlp(nn.Module):
    layers: int
    hidden: int
    out: int
    last_bn: bool
    bn: str
    axis: str | None
    dtype: Any

    @nn.compact
    def __call__(self, x, train: bool):
        if x.ndim != 2:
            raise UsageError(f"nets/mlp wants features [rows, width] and got an array of shape {x.shape}")
        hidden = self.hidden or x.shape[1]
        for i in range(1, self.layers):
            x = nn.relu(self.layer(f"layer{i}", x, hidden, train))
        x = self.layer(f"layer{self.layers}", x, self.out, train, last=True)
        return {"pooled": x.astype(jnp.promote_types(x.dtype, jnp.float32))}

    @nn.nowrap
    def layer(self, name, x, width, train, last=False):
        norm = self.last_bn or not last
        return Layer(width, norm, not last, self.bn, self.axis, self.dtype, name=name)(x, train)


class Layer(nn.Module):
    width: int
    norm: bool
    offset: bool
    bn: str
    axis: str | None
    dtype: Any

    @nn.compact
    def __call__(self, x, train: bool):
        x = nn.Dense(self.width, use_bias=not self.norm, kernel_init=nn.initializers.constant(0.01), dtype=self.dtype,
                     name="dense")(x)
        if not self.norm:
            return x
        return BatchNorm(self.bn, self.axis, offset=self.offset, dtype=self.dtype, name="bn")(x, train)
