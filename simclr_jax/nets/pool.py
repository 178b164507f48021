"""One vector from a sequence, by attention."""
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from simclr_jax.nets import posemb
from simclr_jax.nets.linen import Embedding, wide
from simclr_jax.nets.transformer import Mlp, Spec, attend, dense, norm


class MapHead(nn.Module):
    """Multihead attention pooling: a learned probe looks at all tokens, then LayerNorm and MLP with a residual.

    Lee et al. 2019, "Set Transformer", arXiv:1810.00825; Zhai et al. 2022, arXiv:2106.04560; big_vision's models/vit.py
    and the vision head of SigLIP. float[b,N,D] -> f32[b,D]. Parameters probe/embedding [1,D], q, kv, out, norm, mlp;
    kv's columns are keys, then values.
    """

    spec: Spec
    dtype: Any

    @nn.compact
    def __call__(self, x, mask=None):
        s, d = self.spec, x.shape[-1]
        probe = Embedding((1, d), (2 / (1 + d)) ** 0.5, name="probe")()
        q = dense(d, s.stds.out, self.dtype, "q")(probe).reshape(1, 1, s.heads, -1)
        q = jnp.broadcast_to(q, (x.shape[0], *q.shape[1:]))
        y = _look(self, q, x, s.heads, s.stds.out, mask)
        y = dense(d, s.stds.out, self.dtype, "out")(y)
        y = y.astype(wide(y))
        y = y + Mlp(s.mlp, s.gelu, s.stds, self.dtype, name="mlp")(norm(s.eps, y, "norm")(y).astype(self.dtype))
        return y.astype(wide(y))


def pooler(x, std: float, dtype):
    """float[b,D] -> f32[b,D] in [-1, 1]: tanh of a dense layer named "pool", with which BERT was trained to tell from
    the first token whether two sentences belong together (Devlin et al. 2019, arXiv:1810.04805, section 3.1)."""
    return jnp.tanh(dense(x.shape[-1], std, dtype, "pool")(x).astype(wide(x)))


def mean(x, mask=None):
    """float[b,D]: the mean of float[b,N,D] over all tokens, or over those where bool[b,N] is True; 0 where none is."""
    weight = jnp.ones(x.shape[:2], x.dtype) if mask is None else mask.astype(x.dtype)
    return jnp.einsum("bl,bld->bd", weight, x) / jnp.maximum(jnp.sum(weight, axis=1, keepdims=True), 1)


class AttentionPool(nn.Module):
    """CLIP's attention pooling of a feature map: the query is the mean of all positions, which is looked at too.

    Radford et al. 2021, arXiv:2103.00020, section 2.4; openai/CLIP clip/model.py, AttentionPool2d. float[b,h,w,C] ->
    f32[b,out]. Parameters positions/embedding [1 + side^2, C], the mean's first, q, kv, out. Grids other than
    side x side get interpolated positions.
    """

    heads: int
    side: int
    out: int
    dtype: Any

    @nn.compact
    def __call__(self, x):
        b, h, w, c = x.shape
        std = c ** -0.5
        x = x.reshape(b, h * w, c).astype(wide(x))
        x = jnp.concatenate([jnp.mean(x, axis=1, keepdims=True), x], axis=1)
        table = Embedding((1 + self.side ** 2, c), std, name="positions")()
        x = (x + posemb.resize(table, 1, (self.side, self.side), (h, w))).astype(self.dtype)
        q = dense(c, std, self.dtype, "q")(x[:, :1]).reshape(b, 1, self.heads, -1)
        y = dense(self.out, std, self.dtype, "out")(_look(self, q, x, self.heads, std, None))
        return y.astype(wide(y))


def _look(module, q, x, heads, std, mask):
    """float[b,D]: what queries [b,1,heads,d] take from tokens [b,N,D], before the output's product."""
    b, n, d = x.shape
    kv = dense(2 * d, std, module.dtype, "kv")(x).reshape(b, n, 2, heads, d // heads)
    return attend(q, kv[:, :, 0], kv[:, :, 1], mask=mask).reshape(b, d)
