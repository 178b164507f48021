"""Batch normalisation over the rows of all devices, of a group of devices, of one device, or of a group of rows.

Ioffe and Szegedy 2015, "Batch Normalization", arXiv:1502.03167, algorithm 1. Decay 0.9 and epsilon 1e-5 are SimCLR's,
BYOL's and PyTorch's (google-research/simclr tf2/resnet.py and run.py). The running variance is the biased one of the
normalisation itself, as in SimCLR; PyTorch's is n/(n-1) times that.
"""
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from simclr_jax import dist
from simclr_jax.errors import UsageError
from simclr_jax.nets.linen import KEPT

DECAY = 0.9
EPSILON = 1e-5


def parse(bn: str, where: str) -> tuple[str, int]:
    """Which rows share statistics, as (kind, k).

    Args:
      bn: "global": all rows of all devices. "local": this device's. "devices=k": those of k neighbouring devices of
        the mesh axis, k dividing its size. "rows=k": k consecutive rows of one device, k dividing their number.
      where: the file that was given it, for the message.

    Raises:
      UsageError: anything else.
    """
    kind, equals, k = bn.partition("=")
    if bn in ("global", "local"):
        return bn, 0
    if kind in ("devices", "rows") and equals and k.isdecimal() and int(k) > 0:
        return kind, int(k)
    raise UsageError(f"{where}: bn={bn!r}, wanted 'global', 'local', 'devices=k' or 'rows=k' with a whole k above 0")


class BatchNorm(nn.Module):
    """Normalises each channel by its mean and variance over a group of rows.

    float[b, ..., C] -> dtype[b, ..., C]. Parameters scale f32[C] unless `scaled` is False, and bias f32[C] unless
    `offset` is; running statistics mean and var f32[C], the mean over all groups of all devices, so that they leave
    replicated. Statistics
    and normalisation are computed in f32 (f64 for f64 input). Shards are of equal size.
    """

    bn: str = "global"  # as in `parse`
    axis: str | None = None  # the mesh axis of the rows; with None, or one device, "global" and "devices=k" are "local"
    offset: bool = True
    scaled: bool = True
    zero: bool = False  # scale starts at 0, not 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, train: bool):
        channels = x.shape[-1]
        ones, zeros = nn.initializers.ones, nn.initializers.zeros
        scale = self.param("scale", zeros if self.zero else ones, (channels,), jnp.float32) if self.scaled else 1.0
        offset = self.param("bias", zeros, (channels,), jnp.float32) if self.offset else 0.0
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,), jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, (channels,), jnp.float32)
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        if not train:
            mean, var = running_mean.value, running_var.value
        else:
            kind, k = parse(self.bn, "BatchNorm")
            if kind == "rows":
                if len(x) % k:
                    raise UsageError(f"bn='rows={k}' does not divide the {len(x)} rows of a device's pass; choose a k "
                                     "that does (a pass holds all views of a device's examples)")
                wide = wide.reshape(len(x) // k, k, *x.shape[1:])
            mean, var = _moments(x.reshape(wide.shape), first=1 if kind == "rows" else 0)
            if self.axis is not None and kind in ("global", "devices"):
                mean, var = _across_devices(mean, var, self.axis, k or dist.size(self.axis))
            mean, var = (checkpoint_name(m, KEPT) for m in (mean, var))  # see linen.remade
            for running, now in ((running_mean, mean), (running_var, var)):
                now = lax.stop_gradient(jnp.mean(now.reshape(-1, channels), axis=0))
                running.value = DECAY * running.value + (1 - DECAY) * dist.pmean(now, self.axis).astype(jnp.float32)
        # One subtraction and one multiply-add an element. The mean is not folded into the offset: x * a - mean * a
        # would lose the digits that x and the mean have in common.
        y = (wide - mean) * (scale * lax.rsqrt(var + EPSILON)) + offset
        return y.reshape(x.shape).astype(self.dtype)


def _moments(x, *, first: int):
    """Mean and biased variance of float[G..., rows, ..., C] over all axes from `first` to the last but one, which stay.

    One pass over x, of sums of x - s and its square with s the mean of the group's first row. Sums of squares about 0
    lose all digits of a variance far below the squared mean; about s they lose at most a factor of the number of rows,
    since the first row is one of those the variance is of: (mean - s)^2 <= rows * variance. A second pass over x about
    the mean would be exact to the last digit and read everything once more, forward and backward.
    """
    over, wide = tuple(range(first, x.ndim - 1)), jnp.promote_types(x.dtype, jnp.float32)
    # Cut out as it is stored: of a product in f32 that is rounded to bf16 XLA would keep both, for this row's sake.
    row = lax.optimization_barrier(lax.stop_gradient(lax.slice_in_dim(x, 0, 1, axis=first)))
    s = jnp.mean(row.astype(wide), axis=over, keepdims=True)
    d = x.astype(wide) - s
    mean = jnp.mean(d, axis=over, keepdims=True)
    var = jnp.mean(d * d, axis=over, keepdims=True) - mean * mean
    return s + mean, jnp.maximum(var, 0.0)


def _across_devices(mean, var, axis: str, k: int):
    """Moments over the rows of this device's group of k neighbours, from each one's own: no squared means are
    subtracted from each other (Chan, Golub and LeVeque 1983). Of one device, they are that device's."""
    n = dist.size(axis)
    if n == 1:
        return mean, var
    if n % k:
        raise UsageError(f"bn='devices={k}' does not divide the {n} devices of the mesh's {axis!r} axis; "
                         "choose a k that does")
    if k == n:
        average = lambda x: lax.pmean(x, axis)  # noqa: E731
    else:
        # psum by groups is not implemented where JAX checks which values are replicated; a gather by groups is.
        groups = [list(range(i, i + k)) for i in range(0, n, k)]
        average = lambda x: jnp.mean(lax.all_gather(x, axis, axis_index_groups=groups), axis=0)  # noqa: E731
    both = checkpoint_name(average(mean), KEPT)
    # The variance has no slope in the common mean (deviations from it sum to 0): stopping it there leaves the gradient
    # as it is, and the two reductions of the backward pass need not wait for each other.
    return both, average(var + jnp.square(mean - lax.stop_gradient(both)))
