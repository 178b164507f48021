"""CLAP's audio tower: HTSAT, a Swin transformer that looks at a log-mel spectrogram folded into a square.

Chen et al. 2022, arXiv:2202.00874; Wu et al. 2023, arXiv:2211.06687; LAION-AI/CLAP clap_module/htsat.py and
transformers' ClapAudioModel. Without the fusion of long clips.
"""
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from simclr_jax.errors import UsageError
from simclr_jax.nets import drop, posemb
from simclr_jax.nets.linen import compute_dtype, net, products, wide
from simclr_jax.nets.norm import BatchNorm, parse
from simclr_jax.nets.swin import Stage
from simclr_jax.nets.transformer import Mlp, Spec, Stds, norm
from simclr_jax.nets.vit import Patches
from simclr_jax.types import Net

STD = 0.02


def make(*, axis: str | None = None, mels: int = 64, side: int = 256, patch: int = 4, width: int = 96,
         depths: tuple = (2, 2, 6, 2), heads: tuple = (4, 8, 16, 32), window: int = 8, mlp_ratio: int = 4,
         out: int = 0, bn: str = "global", eps: float = 1e-5, drop_path: float = 0.0, remat: bool = False,
         dtype: str = "float32") -> Net:
    """f32[b,frames,mels] log-mel -> {"pooled": f32[b,D], "tokens": f32[b,N,C]}; D is `out`, or C.

    Frames are at most side^2 / mels (1024); fewer are interpolated to that many. `side` / `mels` stretches of time are
    then put one above the other, mel bins downwards, to a square of `side` pixels, of which the tokens are the last
    map, row by row, after the last norm. C is width * 2^(stages - 1). The pooled vector is the mean of the tokens; the
    original takes it over groups of frequencies, which does not change it.

    Parameters: bn (over rows and frames, a mel bin each), patches/{kernel [patch,patch,1,width], bias}, norm_pre,
    stage1../ (see `swin`), norm, projection/{fc1,fc2}. Matrices and relative positions begin as N(0, 0.02^2), patches
    uniform of variance 1 / (3 fan-in), biases 0.

    Args:
      axis: mesh axis of the rows, or None.
      mels: bins of the spectrogram; divides `side`.
      side, patch: of the square and of its patches, in pixels.
      width, depths, heads: channels of the first stage, which double; blocks and heads of each. The defaults are
        HTSAT-tiny; base: width 128, depths (2, 2, 12, 2).
      window: side of the windows, in patches; divides the grid of every stage.
      mlp_ratio: width of the MLPs over the channels.
      out: width of CLAP's projection, a layer of that width, ReLU and another; 0 for none.
      bn: which rows share the statistics of the mel bins, as in `norm.parse`.
      eps, drop_path, remat, dtype: as in `vit.make`; the batch's norm is f32.

    Raises:
      UsageError: a value outside these; when called, a spectrogram of another shape, or training with drop_path and no
        key.
    """
    where = "nets/htsat"
    if not depths or len(depths) != len(heads) or not all(isinstance(n, int) and n > 0 for n in (*depths, *heads)):
        raise UsageError(f"{where}: depths={depths} heads={heads}, wanted as many of either, whole numbers above 0")
    if min(mels, side, patch, window, mlp_ratio) < 1 or out < 0:
        raise UsageError(f"{where}: mels={mels} side={side} patch={patch} window={window} mlp_ratio={mlp_ratio} "
                         f"out={out}, wanted whole numbers above 0, and out 0 or more")
    if side % mels:
        raise UsageError(f"{where}: side={side} is no multiple of mels={mels}; change either")
    if side % (wanted := patch * window * 2 ** (len(depths) - 1)):
        raise UsageError(f"{where}: side={side} is no multiple of {wanted}, so windows of {window} do not divide the "
                         f"grids of {len(depths)} stages of patches of {patch}; change side or window")
    parse(bn, where)
    specs = tuple(Spec(width * 2 ** i, depth, of, mlp_ratio * width * 2 ** i, "erf", eps, Stds(STD, STD, STD, STD),
                       compute_dtype(dtype, where), drop_path=drop_path, remat=remat).check(where)
                  for i, (depth, of) in enumerate(zip(depths, heads)))
    return net(Htsat(specs, Form(mels, side, patch, window, out, bn, axis)),
               draw=lambda path: "uniform" if path[0] == "patches" else "normal")


class Form(NamedTuple):
    """What a net has around its stages."""

    mels: int
    side: int
    patch: int
    window: int
    out: int
    bn: str
    axis: str | None


class Htsat(nn.Module):
    specs: tuple  # of the stages
    form: Form

    @nn.compact
    def __call__(self, x, train: bool, key=None):
        f, first, last = self.form, self.specs[0], self.specs[-1]
        most = f.side ** 2 // f.mels
        if x.ndim != 3 or x.shape[2] != f.mels or not 0 < x.shape[1] <= most:
            raise UsageError(f"nets/htsat wants log-mel [rows, frames, mels={f.mels}] of 1 to {most} frames, and got "
                             f"shape {x.shape}")
        key = drop.keys(key, first.drop_path, x.shape[0], train=train, where="nets/htsat: drop_path")
        x = BatchNorm(f.bn, f.axis, dtype=wide(x), name="bn")(x, train)
        x, dtype = square(x, f.side), products(first.dtype, x)
        x = Patches(first.width, f.patch, True, 1 / 3, dtype, name="patches")(x[..., None])
        x = norm(first.eps, x.astype(wide(x)), "norm_pre")(x)
        x = x.reshape(x.shape[0], f.side // f.patch, -1, first.width)
        total, done = sum(s.depth for s in self.specs), 0
        rates = jnp.asarray(np.linspace(0, first.drop_path, total), jnp.float32)
        for i, s in enumerate(self.specs):
            of = slice(done, done + s.depth)
            x = Stage(s, f.window, i < len(self.specs) - 1, name=f"stage{i + 1}")(
                x, jnp.arange(total, dtype=jnp.uint32)[of], rates[of], key)
            done += s.depth
        tokens = norm(last.eps, x, "norm")(x).reshape(x.shape[0], -1, last.width)
        pooled = jnp.mean(tokens, axis=1)
        if f.out:
            pooled = Mlp(f.out, "relu", last.stds, dtype, f.out, name="projection")(pooled).astype(wide(x))
        return {"pooled": pooled, "tokens": tokens}


def square(x, side: int):
    """float[b,frames,mels] -> float[b,side,side]: stretches of time below each other, mel bins downwards."""
    b, frames, mels = x.shape
    folds, columns = side // mels, side
    if frames < folds * columns:
        weights = jnp.asarray(posemb.bicubic(frames, folds * columns, corners=True), x.dtype)
        x = jnp.einsum("ts,bsm->btm", weights, x, precision="highest")
    return x.reshape(b, folds, columns, mels).transpose(0, 1, 3, 2).reshape(b, side, side)
