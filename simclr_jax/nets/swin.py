"""Swin's stages: attention inside windows of a grid that every other block shifts, and merged patches between stages.

Liu et al. 2021, arXiv:2103.14030; microsoft/Swin-Transformer models/swin_transformer.py.
"""
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from simclr_jax.nets.linen import Embedding, products, remade
from simclr_jax.nets.transformer import Attention, Spec, dense, mlp, norm, residual

STD = 0.02  # of relative positions


class Stage(nn.Module):
    """float[b,H,W,C] -> float[b,H,W,C], or [b,H/2,W/2,2C] with `merge`; H and W are multiples of the window.

    Parameters block1/.., and merge/{norm,reduction}.
    """

    spec: Spec  # of this stage; its depth is the number of blocks
    window: int
    merge: bool

    @nn.compact
    def __call__(self, x, layers, rates, key):
        """layers, rates: u32[depth] and f32[depth], each block's number in the net and its rate of stochastic depth;
        key: one PRNG key a row, or None to drop nothing."""
        block = remade(Block, self.spec.remat)
        for i in range(self.spec.depth):
            # A grid of one window has nothing to shift.
            shift = self.window // 2 if i % 2 and min(x.shape[1:3]) > self.window else 0
            x = block(self.spec, self.window, shift, name=f"block{i + 1}")(x, layers[i], rates[i], key)
        return Merge(self.spec, name="merge")(x) if self.merge else x


class Block(nn.Module):
    """Parameters as of `transformer.Block`, and positions/embedding [(2 window - 1)^2, heads]."""

    spec: Spec
    window: int
    shift: int

    @nn.compact
    def __call__(self, x, layer, rate, key):
        s, dtype = self.spec, products(self.spec.dtype, x)
        bias = Embedding(((2 * self.window - 1) ** 2, s.heads), STD, name="positions")()
        bias = bias[relative(self.window)].transpose(2, 0, 1)
        attention = Attention(s.heads, s.stds, dtype, name="attention")

        def branch(y):
            shape, away = y.shape, self.shift
            mask = None
            if away:
                y = jnp.roll(y, (-away, -away), axis=(1, 2))
                seen = neighbours(*shape[1:3], self.window, away)
                mask = jnp.broadcast_to(seen, (shape[0], *seen.shape)).reshape(-1, *seen.shape[1:])
            y = together(attention(apart(y, self.window), mask, bias), shape, self.window)
            return jnp.roll(y, (away, away), axis=(1, 2)) if away else y

        x = residual(s, x, 1, branch, dtype, layer, rate, key)
        return residual(s, x, 2, mlp(s, dtype, "mlp"), dtype, layer, rate, key)


class Merge(nn.Module):
    """float[b,H,W,C] -> float[b,H/2,W/2,2C]: four neighbours side by side, down before right, a norm and a product."""

    spec: Spec

    @nn.compact
    def __call__(self, x):
        b, h, w, c = x.shape
        y = x.reshape(b, h // 2, 2, w // 2, 2, c).transpose(0, 1, 3, 4, 2, 5).reshape(b, h // 2, w // 2, 4 * c)
        y = norm(self.spec.eps, x, "norm")(y).astype(products(self.spec.dtype, x))
        return dense(2 * c, self.spec.stds.fc1, y.dtype, "reduction", bias=False)(y).astype(x.dtype)


def apart(x, window: int):
    """[b,H,W,C] -> [b * windows, window^2, C], row by row."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // window, window, w // window, window, c)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(-1, window * window, c)


def together(x, shape, window: int):
    """What `apart` took apart, of `shape`."""
    b, h, w, c = shape
    return x.reshape(b, h // window, w // window, window, window, c).transpose(0, 1, 3, 2, 4, 5).reshape(shape)


def relative(window: int) -> np.ndarray:
    """i64[window^2, window^2]: the row of a table [(2 window - 1)^2] for how far a query is from a key, down and
    right."""
    at = np.stack(np.mgrid[:window, :window], axis=-1).reshape(-1, 2)
    down, right = np.moveaxis(at[:, None] - at[None] + window - 1, -1, 0)
    return down * (2 * window - 1) + right


def neighbours(height: int, width: int, window: int, shift: int) -> np.ndarray:
    """bool[windows, window^2, window^2]: which positions of a shifted window were neighbours before: the shift brings
    rows and columns from the other side of the grid into the last ones."""
    region = [np.searchsorted([n - window, n - shift], np.arange(n), side="right") for n in (height, width)]
    grid = (3 * region[0][:, None] + region[1][None])[None, :, :, None]
    ids = np.reshape(apart(grid, window), (-1, window * window))
    return ids[:, :, None] == ids[:, None, :]
