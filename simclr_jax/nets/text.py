"""Text towers: CLIP's causal transformer, SigLIP's bidirectional one.

Radford et al. 2021, arXiv:2103.00020, section 2.4, and openai/CLIP clip/model.py; Zhai et al. 2023, arXiv:2303.15343,
and google-research/big_vision models/proj/image_text/text_transformer.py.
"""
from typing import NamedTuple

import jax.numpy as jnp
from flax import linen as nn

from simclr_jax.errors import UsageError
from simclr_jax.nets import drop
from simclr_jax.nets.linen import Embedding, compute_dtype, net, products
from simclr_jax.nets.pool import MapHead, mean
from simclr_jax.nets.transformer import Spec, Stack, dense, norm, stds
from simclr_jax.types import Net

POOLS, INITS = ("eot", "argmax", "last", "map", "mean"), ("clip", "vit")


def make(*, axis: str | None = None, vocab: int, length: int, eot: int = -1, width: int = 512, depth: int = 12,
         heads: int = 8, mlp: int = 0, causal: bool = True, pool: str = "eot", final_norm: bool = True,
         gelu: str = "quick", eps: float = 1e-5, out: int = 0, out_bias: bool = False, remat: bool = False,
         scan: bool = False, init: str = "clip", dtype: str = "float32", drop_path: float = 0.0) -> Net:
    """i32[b,L] token ids -> {"pooled": f32[b,D], "tokens": f32[b,L,width]}; D is `out`, or the width.

    An id that is not below `vocab` makes its row NaN.

    L is at most `length`; of shorter sequences the first L positions are used. Tokens are those after the last norm.
    `mask`, bool[b,L] with True at real tokens, hides the others from attention and from the poolings "map" and "mean".
    CLIP is trained without it: no real token looks at what follows it.

    Parameters: tokens/embedding [vocab,width], positions/embedding [length,width], stack/block1.. (see `transformer`),
    norm, pool (see `MapHead`), projection.

    Args:
      axis: mesh axis of the rows; rows do not meet here, so it changes nothing.
      vocab, length, eot: the tokenizer's: ids are below `vocab`, sequences at most `length` long, `eot` ends a text
        (-1: none does).
      width, depth, heads, mlp: of the blocks; mlp 0: 4 * width. The defaults are those of CLIP ViT-B/32.
      causal: no position looks at later ones.
      pool: which token is the text's: "eot": at the first `eot` (at the first token if there is none). "argmax": at the
        largest id, as OpenAI's code, whose eot is the last of its vocabulary. "last": the last position, padding or not
        (SigLIP). "mean": over tokens. "map": a probe's attention.
      gelu, eps, remat, scan, dtype, drop_path, out, out_bias: as in `vit.make`.
      init: "clip", as openai/CLIP: tokens N(0, 0.02^2), positions N(0, 0.01^2), q, k, v and projection N(0, 1 / width),
        N(0, 1 / (2 width)) into the MLP, N(0, 1 / (2 width depth)) out of it and of attention. "vit", as big_vision:
        tokens and positions N(0, 1 / width), projection N(0, 1 / width) cut off, all other kernels Xavier uniform.

    Raises:
      UsageError: a value outside these; when called, ids that are no whole numbers [b,L] or longer than `length`, or
        training with drop_path and no key.
    """
    where = "nets/text"
    for name, value, choices in (("pool", pool, POOLS), ("init", init, INITS)):
        if value not in choices:
            raise UsageError(f"{where}: {name}={value!r}, wanted {', '.join(choices)}")
    if vocab < 1 or length < 1:
        raise UsageError(f"{where}: vocab={vocab} length={length}, wanted whole numbers above 0")
    if pool == "eot" and not 0 <= eot < vocab:
        raise UsageError(f"{where}: pool='eot' with eot={eot}, which is no id below vocab={vocab}; take a tokenizer "
                         "that ends texts with a token, or another pool")
    if out < 0:
        raise UsageError(f"{where}: out={out}, wanted 0 or more")
    mlp = mlp or 4 * width
    spec = Spec(width, depth, heads, mlp, gelu, eps, None, compute_dtype(dtype, where), causal=causal,
                drop_path=drop_path, remat=remat, scan=scan).check(where)
    spec = spec._replace(stds=stds({"clip": "clip", "vit": "xavier"}[init], width, mlp, depth))
    form = Form(vocab, length, eot, pool, final_norm, out, out_bias, init)
    return net(Text(spec, form), draw="normal" if init == "clip" else _draw)


def _draw(path):
    """Of init "vit"."""
    if path[-1] == "embedding":
        return "uniform" if path[-2] == "probe" else "normal"
    return "truncated" if path[0] == "projection" else "uniform"


class Form(NamedTuple):
    """What a net has around its blocks."""

    vocab: int
    length: int
    eot: int
    pool: str
    final_norm: bool
    out: int
    out_bias: bool
    init: str


class Text(nn.Module):
    spec: Spec
    form: Form

    @nn.compact
    def __call__(self, x, train: bool, key=None, mask=None):
        s, f, ids = self.spec, self.form, x
        if ids.ndim != 2 or not jnp.issubdtype(ids.dtype, jnp.integer):
            raise UsageError(f"nets/text wants token ids i32[rows, length] and got {ids.dtype}{list(ids.shape)}")
        if not 0 < ids.shape[1] <= f.length:
            raise UsageError(f"nets/text: sequences of {ids.shape[1]} tokens, wanted 1 to length={f.length}; cut them, "
                             "or make length larger")
        if mask is not None and mask.shape != ids.shape:
            raise UsageError(f"nets/text: mask has shape {mask.shape} and the ids {ids.shape}; wanted the same")
        key = drop.keys(key, s.drop_path, ids.shape[0], train=train, where="nets/text: drop_path")
        of_tokens, of_positions = (0.02, 0.01) if f.init == "clip" else (s.width ** -0.5,) * 2
        tokens = Embedding((f.vocab, s.width), of_tokens, name="tokens")()
        positions = Embedding((f.length, s.width), of_positions, name="positions")()
        # "fill": an id that is not below vocab makes its row NaN, where indexing would take the last one's.
        x = jnp.take(tokens, ids, axis=0, mode="fill") + positions[:ids.shape[1]]
        x = Stack(s, name="stack")(x, key, mask)
        if f.final_norm:
            x = norm(s.eps, x, "norm")(x)
        dtype = products(s.dtype, x)
        pooled = self._pooled(x, ids, mask, dtype)
        if f.out:
            pooled = dense(f.out, s.width ** -0.5, dtype, "projection", f.out_bias)(pooled).astype(x.dtype)
        return {"pooled": pooled, "tokens": x}

    @nn.nowrap
    def _pooled(self, x, ids, mask, dtype):
        f = self.form
        if f.pool == "map":
            return MapHead(self.spec, dtype, name="pool")(x, mask)
        if f.pool == "mean":
            return mean(x, mask)
        if f.pool == "last":
            return x[:, -1]
        at = jnp.argmax(ids == f.eot if f.pool == "eot" else ids, axis=1)  # of equal ones the first
        return jnp.take_along_axis(x, at[:, None, None], axis=1)[:, 0]
