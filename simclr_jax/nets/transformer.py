"""The transformer that image, text and audio towers share.

Vaswani et al. 2017, arXiv:1706.03762, with normalisation after each sum, as there and in BERT, or before each branch
(as in Dosovitskiy et al. 2021, arXiv:2010.11929, and openai/CLIP clip/model.py); LayerScale (Touvron et al. 2021,
arXiv:2103.17239), gated MLPs (Shazeer 2020, arXiv:2002.05202) and stochastic depth whose rate rises linearly with the
layer.
"""
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax

from simclr_jax.errors import UsageError
from simclr_jax.nets import gelu
from simclr_jax.nets.drop import drop_path
from simclr_jax.nets.linen import SEEN, products, remade, wide

GELU = {
    "erf": gelu.exact,
    "tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "quick": lambda x: x * jax.nn.sigmoid(1.702 * x),  # OpenAI's CLIP
}
MLPS = ("gelu", "swiglu")


class Stds(NamedTuple):
    """Standard deviations of a block's kernels at the start."""

    qkv: float
    out: float
    fc1: float
    fc2: float


def stds(init: str, width: int, mlp: int, depth: int) -> Stds:
    """Of three ways to begin.

    "xavier": sqrt(2 / (fan-in + fan-out)), of q, k and v one by one, as in big_vision.
    "clip": those that openai/CLIP (clip/model.py, initialize_parameters) sets in the text tower.
    "torch": what PyTorch's MultiheadAttention (q, k and v as one matrix) and Linear begin with, which is how
      openai/CLIP leaves the blocks of its image tower.
    """
    if init == "xavier":
        return Stds(width ** -0.5, width ** -0.5, *2 * (math.sqrt(2 / (width + mlp)),))
    if init == "clip":
        deep = (2 * width * depth) ** -0.5
        return Stds(width ** -0.5, deep, (2 * width) ** -0.5, deep)
    return Stds((2 * width) ** -0.5, (3 * width) ** -0.5, (3 * width) ** -0.5, (3 * mlp) ** -0.5)


class Spec(NamedTuple):
    """How the blocks of a tower are made."""

    width: int
    depth: int
    heads: int
    mlp: int
    gelu: str
    eps: float
    stds: Stds
    dtype: Any
    causal: bool = False
    layer_scale: float = 0.0  # 0: none
    drop_path: float = 0.0  # rate of the last block
    remat: bool = False
    scan: bool = False
    mlp_kind: str = "gelu"
    post_norm: bool = False  # normalise after each sum (BERT), and not before each branch

    def check(self, where: str):
        """Raises UsageError for a value that no tower can have."""
        for name in ("width", "depth", "heads", "mlp"):
            if getattr(self, name) < 1:
                raise UsageError(f"{where}: {name}={getattr(self, name)}, wanted a whole number above 0")
        if self.width % self.heads:
            raise UsageError(f"{where}: width={self.width} is no multiple of heads={self.heads}; change either")
        if self.gelu not in GELU:
            raise UsageError(f"{where}: gelu={self.gelu!r}, wanted {', '.join(GELU)}")
        if self.mlp_kind not in MLPS:
            raise UsageError(f"{where}: mlp_kind={self.mlp_kind!r}, wanted {' or '.join(MLPS)}")
        if self.eps <= 0:
            raise UsageError(f"{where}: eps={self.eps}, wanted a number above 0, such as 1e-6")
        if not 0 <= self.drop_path < 1:
            raise UsageError(f"{where}: drop_path={self.drop_path}, wanted a rate from 0 to below 1")
        if self.layer_scale < 0:
            raise UsageError(f"{where}: layer_scale={self.layer_scale}, wanted a number above 0, or 0 for none")
        return self


class Stack(nn.Module):
    """float[b,N,D] -> f32[b,N,D]: all blocks, without a last norm.

    Parameters block1/.., block2/..; with `scan` blocks/.., where each leaf has a leading axis of layers. The sum along
    the residual path is f32, the products in `dtype`.
    """

    spec: Spec

    @nn.compact
    def __call__(self, x, key=None, mask=None):
        """key: one PRNG key a row, or None to drop nothing. mask: bool[b,N], True at positions to look at, or None."""
        s = self.spec
        x = x.astype(wide(x))
        layers = jnp.arange(s.depth, dtype=jnp.uint32)
        rates = jnp.asarray(np.linspace(0, s.drop_path, s.depth), jnp.float32)
        block = remade(Block, s.remat, in_scan=s.scan)
        if s.scan:
            block = nn.scan(block, variable_axes={"params": 0, SEEN: 0}, split_rngs={"params": True}, length=s.depth,
                            in_axes=(0, 0, nn.broadcast, nn.broadcast))
            return block(s, name="blocks")(x, layers, rates, key, mask)[0]
        for i in range(s.depth):
            x, _ = block(s, name=f"block{i + 1}")(x, layers[i], rates[i], key, mask)
        return x


class Block(nn.Module):
    """Parameters norm1, attention/{qkv,out}, norm2, mlp/{fc1,fc2} and, with LayerScale, scale1 and scale2."""

    spec: Spec

    @nn.compact
    def __call__(self, x, layer, rate, key, mask):
        s, dtype = self.spec, products(self.spec.dtype, x)

        attention = Attention(s.heads, s.stds, dtype, s.causal, name="attention")
        x = residual(s, x, 1, lambda y: attention(y, mask), dtype, layer, rate, key)
        x = residual(s, x, 2, mlp(s, dtype, "mlp"), dtype, layer, rate, key)
        return x, None  # what a scan wants: carry and output


def residual(s: Spec, x, i: int, branch, dtype, layer, rate, key):
    """x and what the branch makes of it, 1 of attention or 2 of the MLP, with the norm of either name.

    The sum is of x's dtype, the branch is given `dtype`. Of a row, each branch is dropped one without the other, as in
    timm; arguments are those of `Block`.
    """
    y = branch((x if s.post_norm else norm(s.eps, x, f"norm{i}")(x)).astype(dtype))
    if s.layer_scale:
        y = LayerScale(s.layer_scale, name=f"scale{i}")(y)
    x = x + (y if key is None else drop_path(y, rate, key, 2 * layer + i))
    return norm(s.eps, x, f"norm{i}")(x) if s.post_norm else x


class LayerScale(nn.Module):
    value: float

    @nn.compact
    def __call__(self, x):
        return x * self.param("layer_scale", nn.initializers.constant(self.value), x.shape[-1:], jnp.float32)


class Attention(nn.Module):
    """float[b,N,D] -> dtype[b,N,D]; mask and bias as in `attend`. The columns of qkv are queries, keys, values."""

    heads: int
    stds: Stds
    dtype: Any
    causal: bool = False

    @nn.compact
    def __call__(self, x, mask=None, bias=None):
        b, n, d = x.shape
        # Split before heads are told apart: the other way round XLA for TPU copies all three to another layout.
        qkv = jnp.split(dense(3 * d, self.stds.qkv, self.dtype, "qkv")(x), 3, axis=-1)
        y = attend(*(y.reshape(b, n, self.heads, d // self.heads) for y in qkv), mask=mask, causal=self.causal,
                   bias=bias)
        return dense(d, self.stds.out, self.dtype, "out")(y.reshape(b, n, d))


class Mlp(nn.Module):
    """fc2(gelu(fc1(x))), of x's width unless `out` says another."""

    width: int
    gelu: str
    stds: Stds
    dtype: Any
    out: int = 0

    @nn.compact
    def __call__(self, x):
        y = dense(self.width, self.stds.fc1, self.dtype, "fc1")(x)
        y = nn.relu(y) if self.gelu == "relu" else GELU[self.gelu](y)
        return dense(self.out or x.shape[-1], self.stds.fc2, self.dtype, "fc2")(y)


class SwiGlu(nn.Module):
    """fc2(silu(gate) * up), where fc1 makes gate, then up, each `width` wide (arXiv:2002.05202, equation 6)."""

    width: int
    stds: Stds
    dtype: Any

    @nn.compact
    def __call__(self, x):
        gate, up = jnp.split(dense(2 * self.width, self.stds.fc1, self.dtype, "fc1")(x), 2, axis=-1)
        return dense(x.shape[-1], self.stds.fc2, self.dtype, "fc2")(nn.silu(gate) * up)


def mlp(spec: Spec, dtype, name: str):
    """The MLP of a block."""
    if spec.mlp_kind == "swiglu":
        return SwiGlu(spec.mlp, spec.stds, dtype, name=name)
    return Mlp(spec.mlp, spec.gelu, spec.stds, dtype, name=name)


def attend(q, k, v, *, mask=None, causal: bool = False, bias=None):
    """softmax(q k / sqrt(d) + bias) v over float[b,Q,h,d], float[b,K,h,d] twice; the softmax is f32, or f64 for f64.

    Args:
      mask: bool[b,K] or bool[b,Q,K], True at positions to look at, or None for all.
      causal: position i looks at none after i.
      bias: f32[h,Q,K], or None for 0.
    """
    if mask is not None:
        mask = mask[:, None, None, :] if mask.ndim == 2 else mask[:, None]
    bias = None if bias is None else bias[None]
    if q.dtype != jnp.float64:
        return jax.nn.dot_product_attention(q, k, v, bias, mask, is_causal=causal)
    logits = jnp.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(q.shape[-1])  # there the softmax would be f32 in any case
    logits = logits if bias is None else logits + bias
    seen = jnp.tri(q.shape[1], k.shape[1], dtype=bool) if causal else True
    seen = seen if mask is None else seen & mask
    return jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(jnp.where(seen, logits, -1e300)), v)


def product(x, kernel, dimensions, precision=None, preferred_element_type=None):
    """`lax.dot_general` of float[b,N,D] with a kernel; on CPUs of the rows as one matrix, where XLA's gradient of the
    other form is slow. On TPUs that would cost copies to other layouts."""
    how = dict(precision=precision, preferred_element_type=preferred_element_type)

    def by_rows(x, kernel):
        y = lax.dot_general(x.reshape(-1, x.shape[-1]), kernel, (((1,), (0,)), ((), ())), **how)
        return y.reshape(*x.shape[:-1], -1)
    return lax.platform_dependent(x, kernel, cpu=by_rows, default=lambda x, k: lax.dot_general(x, k, dimensions, **how))


def dense(width: int, std: float, dtype, name: str, bias: bool = True):
    """x @ kernel + bias, the kernel drawn with standard deviation `std`, the bias 0."""
    return nn.Dense(width, use_bias=bias, kernel_init=nn.initializers.constant(std), dtype=dtype, dot_general=product,
                    name=name)


def norm(eps: float, x, name: str):
    """LayerNorm (Ba et al. 2016, arXiv:1607.06450) in f32, or f64 for f64 x, by the mean of squared deviations."""
    return nn.LayerNorm(epsilon=eps, dtype=wide(x), use_fast_variance=False, name=name)
