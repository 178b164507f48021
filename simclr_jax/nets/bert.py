"""BERT's text tower and RoBERTa's: a bidirectional transformer that normalises after each sum.

Devlin et al. 2019, arXiv:1810.04805; Liu et al. 2019, arXiv:1907.11692; google-research/bert modeling.py, fairseq's
make_positions and transformers' BertModel. CLAP's text tower is RoBERTa's with a ReLU layer before the projection (Wu
et al. 2023, arXiv:2211.06687).
"""
from typing import NamedTuple

import jax.numpy as jnp
from flax import linen as nn

from simclr_jax.errors import UsageError
from simclr_jax.nets import drop
from simclr_jax.nets.linen import Embedding, compute_dtype, net, products, wide
from simclr_jax.nets.pool import mean, pooler
from simclr_jax.nets.transformer import Mlp, Spec, Stack, Stds, dense, norm
from simclr_jax.types import Net

POOLS, POSITIONS = ("cls", "pooler", "mean"), ("bert", "roberta")
STD = 0.02  # of all that is drawn


def make(*, axis: str | None = None, vocab: int, length: int = 512, pad: int = 0, types: int = 2,
         positions: str = "bert", width: int = 768, depth: int = 12, heads: int = 12, mlp: int = 0, pool: str = "cls",
         gelu: str = "erf", eps: float = 1e-12, out: int = 0, out_bias: bool = False, out_mlp: bool = False,
         remat: bool = False, scan: bool = False, dtype: str = "float32", drop_path: float = 0.0) -> Net:
    """i32[b,L] token ids, or i32[b,2,L] ids and token types -> {"pooled": f32[b,D], "tokens": f32[b,L,width]}.

    D is `out`, or the width. L is at most `length`. `mask`, bool[b,L] with True at real tokens, hides the others from
    attention and from the pooling "mean"; where none is given, the ids that are `pad` are hidden. Tokens at hidden
    positions are computed all the same. An id or a type that the tables do not have makes its row NaN.

    Parameters: tokens/embedding [vocab,width], types/embedding [types,width], positions/embedding, norm_pre,
    stack/block1.. (see `transformer`; norm1 and norm2 come after the sums), pool/{kernel,bias} for "pooler",
    projection/{kernel,bias}, or projection/{fc1,fc2} with `out_mlp`. Matrices and tables begin as N(0, 0.02^2), biases
    as 0.

    Args:
      axis: mesh axis of the rows; rows do not meet here, so it changes nothing.
      vocab, length, pad: the tokenizer's: ids are below `vocab`, sequences at most `length` long, `pad` fills them up
        (-1: nothing does). BERT: 30522, 512, 0. RoBERTa: 50265, 512, 1.
      types: kinds of tokens, BERT's two being those of a first and a second sentence; without types given all are of
        kind 0, whose row is added even where it is the only one (RoBERTa). 0: no such table.
      positions: "bert": 0, 1, .. from the left; the table has `length` rows. "roberta": pad + 1, pad + 2, .. over the
        ids that are not `pad`, and `pad` for those that are; the table has pad + 1 + length rows.
      width, depth, heads, mlp: of the blocks; mlp 0: 4 * width. The defaults are the base model's.
      pool: what is the text's: "cls": the first token as it is. "pooler": tanh of a dense layer of it. "mean": over
        tokens.
      gelu, eps, remat, scan, dtype, drop_path, out, out_bias: as in `vit.make`.
      out_mlp: before the projection a layer as wide as `out`, and ReLU, both with biases (CLAP).

    Raises:
      UsageError: a value outside these; when called, ids of another shape or longer than `length`, or training with
        drop_path and no key.
    """
    where = "nets/bert"
    for name, value, choices in (("pool", pool, POOLS), ("positions", positions, POSITIONS)):
        if value not in choices:
            raise UsageError(f"{where}: {name}={value!r}, wanted {', '.join(choices)}")
    if vocab < 1 or length < 1:
        raise UsageError(f"{where}: vocab={vocab} length={length}, wanted whole numbers above 0")
    if not -1 <= pad < vocab:
        raise UsageError(f"{where}: pad={pad}, wanted an id below vocab={vocab}, or -1 if texts are not filled up")
    if positions == "roberta" and pad < 0:
        raise UsageError(f"{where}: positions='roberta' count from pad + 1, and pad={pad}; give the tokenizer's pad")
    if types < 0 or out < 0:
        raise UsageError(f"{where}: types={types} out={out}, wanted 0 or more")
    if out_mlp and not out:
        raise UsageError(f"{where}: out_mlp=True needs the width of the projection; set out")
    spec = Spec(width, depth, heads, mlp or 4 * width, gelu, eps, Stds(STD, STD, STD, STD), compute_dtype(dtype, where),
                drop_path=drop_path, remat=remat, scan=scan, post_norm=True).check(where)
    return net(Bert(spec, Form(vocab, length, pad, types, positions, pool, out, out_bias, out_mlp)), draw="normal")


class Form(NamedTuple):
    """What a net has around its blocks."""

    vocab: int
    length: int
    pad: int
    types: int
    positions: str
    pool: str
    out: int
    out_bias: bool
    out_mlp: bool


class Bert(nn.Module):
    spec: Spec
    form: Form

    @nn.compact
    def __call__(self, x, train: bool, key=None, mask=None):
        s, f = self.spec, self.form
        if x.ndim not in (2, 3) or (x.ndim == 3 and x.shape[1] != 2) or not jnp.issubdtype(x.dtype, jnp.integer):
            raise UsageError("nets/bert wants token ids i32[rows, length], or i32[rows, 2, length] with token types, "
                             f"and got {x.dtype}{list(x.shape)}")
        ids, kinds = (x, jnp.zeros_like(x)) if x.ndim == 2 else (x[:, 0], x[:, 1])
        if x.ndim == 3 and f.types < 2:
            raise UsageError(f"nets/bert: token types are given and types={f.types}; give the ids alone")
        if not 0 < ids.shape[1] <= f.length:
            raise UsageError(f"nets/bert: sequences of {ids.shape[1]} tokens, wanted 1 to length={f.length}; cut them, "
                             "or make length larger")
        if mask is not None and mask.shape != ids.shape:
            raise UsageError(f"nets/bert: mask has shape {mask.shape} and the ids {ids.shape}; wanted the same")
        if mask is None and f.pad >= 0:
            mask = ids != f.pad
        key = drop.keys(key, s.drop_path, ids.shape[0], train=train, where="nets/bert: drop_path")
        x = self._embedded(ids, kinds)
        x = norm(s.eps, x, "norm_pre")(x)
        x = Stack(s, name="stack")(x, key, mask)
        dtype = products(s.dtype, x)
        pooled = mean(x, mask) if f.pool == "mean" else x[:, 0]
        if f.pool == "pooler":
            pooled = pooler(pooled, STD, dtype)
        if f.out_mlp:
            pooled = Mlp(f.out, "relu", s.stds, dtype, f.out, name="projection")(pooled).astype(wide(x))
        elif f.out:
            pooled = dense(f.out, STD, dtype, "projection", f.out_bias)(pooled).astype(wide(x))
        return {"pooled": pooled, "tokens": x}

    @nn.nowrap
    def _embedded(self, ids, kinds):
        """The sum of what the tables say of each token. "fill" makes NaN of what is not in a table."""
        f, width = self.form, self.spec.width
        from_pad = f.positions == "roberta"
        places = jnp.arange(ids.shape[1])[None]
        if from_pad:
            real = (ids != f.pad).astype(ids.dtype)
            places = jnp.cumsum(real, axis=1) * real + f.pad
        tables = [("tokens", f.vocab, ids), ("positions", f.length + (f.pad + 1 if from_pad else 0), places)]
        tables += [("types", f.types, kinds)] if f.types else []
        return sum(jnp.take(Embedding((rows, width), STD, name=name)(), at, axis=0, mode="fill")
                   for name, rows, at in tables)
