"""The multi-layer perceptron of projection heads and predictors.

Chen et al. 2020, arXiv:2002.05709, section 4.2; details as in google-research/simclr tf2/model.py: dense layers without
bias from N(0, 0.01^2), each followed by batch normalisation, ReLU between layers, and a last normalisation that scales
but does not shift. By arguments also the heads of BYOL, SimSiam, MoCo, SwAV and DINO.
"""
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import linen as nn

from simclr_jax.errors import UsageError
from simclr_jax.nets import gelu
from simclr_jax.nets.linen import compute_dtype, fan_in, net
from simclr_jax.nets.norm import BatchNorm, parse
from simclr_jax.types import Net

ACTIVATIONS = {"relu": nn.relu, "gelu": gelu.exact}


def make(*, axis: str | None = None, layers: int = 3, hidden: int = 0, out: int = 128, bn: str = "global",
         hidden_bn: bool = True, last_bn: bool = True, last_scale: bool = True, last_bias: bool = True,
         activation: str = "relu", std: float = 0.01, dtype: str = "float32") -> Net:
    """float[b, D] -> {"pooled": f32[b, out]}.

    Parameters: layer1.. with dense/kernel and bn/scale, bn/bias; the last bn has no bias.

    Args:
      axis: mesh axis of the rows, or None.
      layers: 1 to 3 dense layers. 2 is the head of the SimCLR paper, 3 that of SimCLRv2 and of the released code.
      hidden: width of all layers but the last; 0: as wide as the input.
      bn: which rows share statistics, as in `norm.parse`.
      hidden_bn: normalise after each layer but the last. Without it these have biases (MoCo v2, DINO).
      last_bn: normalise the output too. Without it the last layer is linear.
      last_scale: whether the last normalisation scales; SimSiam's and MoCo v3's do not.
      last_bias: whether a last layer that is not normalised has a bias; BYOL's has none.
      activation: between layers, "relu" or "gelu" (DINO; with the error function).
      std: of the kernels at the start; 0: fan-in^(-1/2). DINO has 0.02.
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
    if activation not in ACTIVATIONS or std < 0:
        raise UsageError(f"{where}: activation={activation!r} std={std}, wanted {' or '.join(ACTIVATIONS)} and 0 or more")
    parse(bn, where)
    form = Form(layers, hidden, out, hidden_bn, last_bn, last_scale, last_bias, activation, std, bn, axis,
                compute_dtype(dtype, where))
    return net(Mlp(form), draw="normal")


class Form(NamedTuple):
    layers: int
    hidden: int
    out: int
    hidden_bn: bool
    last_bn: bool
    last_scale: bool
    last_bias: bool
    activation: str
    std: float
    bn: str
    axis: str | None
    dtype: Any


class Mlp(nn.Module):
    form: Form

    @nn.compact
    def __call__(self, x, train: bool):
        f = self.form
        if x.ndim != 2:
            raise UsageError(f"nets/mlp wants features [rows, width] and got an array of shape {x.shape}")
        hidden = f.hidden or x.shape[1]
        for i in range(1, f.layers):
            x = ACTIVATIONS[f.activation](Layer(f, hidden, last=False, name=f"layer{i}")(x, train))
        x = Layer(f, f.out, last=True, name=f"layer{f.layers}")(x, train)
        return {"pooled": x.astype(jnp.promote_types(x.dtype, jnp.float32))}


class Layer(nn.Module):
    form: Form
    width: int
    last: bool

    @nn.compact
    def __call__(self, x, train: bool):
        f = self.form
        norm = f.last_bn if self.last else f.hidden_bn
        kernel = nn.initializers.constant(f.std) if f.std else fan_in(1.0)
        bias = not norm and (f.last_bias or not self.last)
        x = nn.Dense(self.width, use_bias=bias, kernel_init=kernel, dtype=f.dtype, name="dense")(x)
        if not norm:
            return x
        return BatchNorm(f.bn, f.axis, offset=not self.last, scaled=f.last_scale or not self.last, dtype=f.dtype,
                         name="bn")(x, train)
