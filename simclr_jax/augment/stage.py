"""Runs the ops of a view on a batch, each row by itself.

One formulation for one row, run in two ways. On CPUs rows come one after the other (`lax.map`): `lax.cond` then
branches, so an op costs nothing where it is not drawn, and what passes from op to op stays in a core's cache.
Elsewhere they come all at once (`vmap`): `lax.cond` becomes a selection, which suits accelerators. Nothing of a row
depends on its neighbours either way.
"""
import functools

import jax
import jax.numpy as jnp
from jax import lax

from simclr_jax.augment import resample
from simclr_jax.augment.kinds import Pixel, Spatial


def run(chain: tuple[Spatial, ...], ops: tuple[Pixel, ...], images, windows: tuple, u: tuple):
    """Makes views: of each row its crops, then its pixel ops, in one pass.

    Args:
      chain: spatial ops; () for images that are crops already.
      ops: pixel ops, of square images.
      images: u8[m, H, W, 3], which is 255 times what is meant, u16, which is 32767.5 times that and a half (room for
        the overshoot of a bicubic), or f32.
      windows: for each op of `chain` f32 or i32 [n, 4], y, x, height, width in pixels of what reaches it. n is a
        multiple of m: row k is made of image k // (n // m), so views of one image are neighbours and share it.
      u: for each of `ops` f32[n, K], the numbers in [0, 1) that it consumes.

    Returns:
      f32[n, rows, columns, 3].
    """
    how = functools.partial
    return lax.platform_dependent(images, windows, u, cpu=how(in_turn, chain, ops), default=how(at_once, chain, ops))


def finish(ops: tuple[Pixel, ...], images, u: tuple):
    """`run` on crops: u8 or f32 [n, S, S, 3] -> f32[n, S, S, 3]."""
    return run((), ops, images, (), u)


def crop(op: Spatial, images, windows):
    """`run` of one spatial op: u8 or f32 [m, H, W, 3] and windows [n, 4] -> f32[n, rows, columns, 3]."""
    return run((op,), (), images, (windows,), ())


def in_turn(chain, ops, images, windows, u):
    """`run`, a row after the other."""
    views, n = _views(images, windows, u)
    # Windows that draw nothing are constants. XLA would fold what follows from them, with other roundings, but only where
    # there is one row and so no loop; rows would then depend on their number.
    images, windows, u = lax.optimization_barrier((images, windows, u))

    def row(k):
        return _one(chain, ops, images[k // views], *jax.tree.map(lambda x: x[k], (windows, u)))

    return lax.map(row, jnp.arange(n))


def at_once(chain, ops, images, windows, u):
    """`run`, all rows together."""
    views, n = _views(images, windows, u)
    windows, u = jax.tree.map(lambda x: x.reshape(n // views, views, *x.shape[1:]), (windows, u))
    row = functools.partial(_one, chain, ops)
    out = jax.vmap(jax.vmap(row, in_axes=(None, 0, 0), axis_size=views))(images, windows, u)
    return out.reshape(n, *out.shape[2:])


def _views(images, windows, u):
    m = images.shape[0]
    n = next((len(x) for x in (*windows, *u)), m)
    return max(n // max(m, 1), 1), n


def _one(chain, ops, image, windows, u):
    """One row: u8, u16 or f32 [H, W, 3] -> f32[rows, columns, 3]."""
    x = image.transpose(0, 2, 1).astype(jnp.float32)
    if image.dtype == jnp.uint8:
        x = x * (1 / 255)
    elif image.dtype == jnp.uint16:
        x = x * (2 / 65535) - 0.5
    for op, window in zip(chain, windows):
        x = resample.row(op, x, window)
    planes = x[:, 0], x[:, 1], x[:, 2]
    for op, own in zip(ops, u):
        planes = _apply(op, planes, own)
    return jnp.stack(planes, axis=-1)


def _apply(op, planes, u):
    size = planes[0].shape[0]
    if op.p is None:
        return op.apply(planes, op.draw(u, size))
    if op.p <= 0:
        return planes
    # A step of its own: what is fused with it would round it otherwise on another number of devices.
    drawn = lax.optimization_barrier(op.draw(u[1:], size))
    if op.p >= 1:
        return op.apply(planes, drawn)
    return lax.cond(u[0] < op.p, op.apply, lambda planes, drawn: planes, planes, drawn)
