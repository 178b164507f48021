"""Convolutions and a max-pool whose gradients are quick on processors too; elsewhere XLA's own, as they are.

XLA:CPU runs a convolution near the speed of a matrix product, but not all of its gradients. What is done instead:

- 1x1: products of rows as one matrix, forward and backward.
- The kernel's gradient, a convolution with a window as large as the image: a few images at a time, so that what it
  gathers stays in the cache and no whole activation is copied to another layout.
- The input's gradient of a strided convolution, by XLA a convolution of values with zeros between them: one plain
  convolution for each residue of the position, over the taps that meet it.
- The gradient of a max-pool, by XLA a scatter: selects and sums.

`benchmarks/step.py` prints what a training step gains.
"""
import functools
from typing import Any, Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from simclr_jax import dist

NHWC = ("NHWC", "HWIO", "NHWC")
POSITIONS, IMAGES = 768, 2  # of the output that a piece of the kernel's gradient has, at least


class Conv(nn.Module):
    """float[b,H,W,C] -> dtype[b,h,w,features], without bias, padded by (window-1)/2 on either side with any stride.

    Parameter: kernel f32[window,window,C,features]. same: padded as TensorFlow's SAME, which puts the odd one of the
    zeros that a stride leaves below and right.
    """

    features: int
    window: int
    stride: int
    kernel_init: Callable
    dtype: Any = jnp.float32
    same: bool = False

    @nn.compact
    def __call__(self, x):
        window, stride, pad = (self.window,) * 2, (self.stride,) * 2, (self.window - 1) // 2
        kernel = self.param("kernel", self.kernel_init, (*window, x.shape[-1], self.features), jnp.float32)
        if self.same:
            x = jnp.pad(x, ((0, 0), *lax.padtype_to_pads(x.shape[1:3], window, stride, "SAME"), (0, 0)))
            pad = 0
        return conv(x.astype(self.dtype), kernel.astype(self.dtype), self.stride, pad)


def conv(x, kernel, stride: int = 1, pad: int = 0):
    """The convolution of float[b,H,W,C] with float[k,k,C,D], of one dtype, by `stride`, after `pad` zeros on each side.

    Values and gradients are those of `lax.conv_general_dilated` but for the order of sums. It can be differentiated in
    reverse only.
    """
    x, kernel = _alike(x, kernel)
    if x.dtype == jnp.bfloat16:  # processors have no quick product of these
        return _plain(x, kernel, stride, pad)
    return _conv(x, kernel, stride, pad)


def _alike(x, kernel):
    """Both typed as varying over each mesh axis that one of them varies over, as a custom rule wants them."""
    for axis in jax.sharding.get_abstract_mesh().manual_axes:
        varying = dist.varying(x, axis), dist.varying(kernel, axis)
        if x is varying[0] or kernel is varying[1]:  # that is, it was so already
            x, kernel = varying
    return x, kernel


def _plain(x, kernel, stride, pad):
    return lax.conv_general_dilated(x, kernel, (stride, stride), ((pad, pad), (pad, pad)), dimension_numbers=NHWC)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _conv(x, kernel, stride, pad):
    if not _is_product(kernel, pad):
        return _plain(x, kernel, stride, pad)
    return lax.platform_dependent(x, kernel, cpu=lambda x, k: _product(x, k, stride, pad),
                                  default=lambda x, k: _plain(x, k, stride, pad))


def _forward(x, kernel, stride, pad):
    return _conv(x, kernel, stride, pad), (x, kernel)


def _backward(stride, pad, kept, g):
    x, kernel = kept
    of_x = lambda form: lambda kernel, g: jax.linear_transpose(lambda x: form(x, kernel, stride, pad), x)(g)[0]
    of_kernel = lambda form: lambda x, g: jax.linear_transpose(lambda k: form(x, k, stride, pad), kernel)(g)[0]
    if _is_product(kernel, pad):
        dx, dk = of_x(_product), of_kernel(_product)
    else:
        dx = lambda kernel, g: _by_residues(kernel, g, x.shape, stride, pad)
        dk = lambda x, g: _in_pieces(x, g, kernel.shape[:2], stride, pad)
        if stride == 1:
            dx = of_x(_plain)
    return (lax.platform_dependent(kernel, g, cpu=dx, default=of_x(_plain)),
            lax.platform_dependent(x, g, cpu=dk, default=of_kernel(_plain)))


_conv.defvjp(_forward, _backward)


def _is_product(kernel, pad):
    return kernel.shape[:2] == (1, 1) and not pad


def _product(x, kernel, stride, pad):
    """A 1x1 convolution, unpadded, as the product of two matrices."""
    del pad
    x = x[:, ::stride, ::stride]
    return (x.reshape(-1, x.shape[-1]) @ kernel[0, 0]).reshape(*x.shape[:-1], -1)


def _in_pieces(x, g, window, stride, pad):
    """The gradient of the kernel, summed over pieces of the rows."""
    b, least = len(x), max(IMAGES, POSITIONS / (g.shape[1] * g.shape[2]))
    piece = min(n for n in range(1, b + 1) if b % n == 0 and n >= min(b, least))
    # Channels of x are the rows of a convolution with g, whose rows are channels in. Left in place they would be moved
    # by XLA, which in a loop it does not do in time for the quick convolution.
    pads = [(pad, (o - 1) * stride + k - n - pad) for n, o, k in zip(x.shape[1:], g.shape[1:], window)]

    def gradient(x, g):
        return lax.conv_general_dilated(x.transpose(3, 1, 2, 0), g.transpose(1, 2, 0, 3), (1, 1), pads,
                                        rhs_dilation=(stride, stride), dimension_numbers=NHWC)

    if piece == b:
        total = gradient(x, g)
    else:
        zero = lax.full_like(g, 0, shape=(x.shape[3], *window, g.shape[3]))
        total, _ = lax.scan(lambda total, piece: (total + gradient(*piece), None), zero, tuple(
            a.reshape(b // piece, piece, *a.shape[1:]) for a in (x, g)))
    return total.transpose(1, 2, 0, 3)


def _by_residues(kernel, g, shape, stride, pad):
    """The gradient of x, of `shape`. Position s m + a meets the taps r, r + s, ... with r = (a + pad) mod s, and tap
    r + s t does so at m + (a + pad) // s - t of g."""
    sizes = [-(-n // stride) for n in shape[1:3]]

    def part(*residues):
        taps, pads = kernel, []
        for axis, a in enumerate(residues):
            taps = taps[(slice(None),) * axis + (slice((a + pad) % stride, None, stride),)]
            n, q = taps.shape[axis], (a + pad) // stride
            pads.append((n - 1 - q, sizes[axis] + q - g.shape[axis + 1]))
        if not taps.size:
            return lax.full_like(g, 0, shape=(shape[0], *sizes, shape[3]))
        return lax.conv_general_dilated(g, taps[::-1, ::-1].swapaxes(2, 3), (1, 1), pads, dimension_numbers=NHWC)

    parts = [jnp.stack([part(i, j) for j in range(stride)], axis=3) for i in range(stride)]
    whole = jnp.stack(parts, axis=2).reshape(shape[0], *(n * stride for n in sizes), shape[3])
    return whole[:, :shape[1], :shape[2]]


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def max_pool(x, pads):
    """The largest of 3x3 positions, two by two, of float[b,H,W,C] after `pads`, ((above, below), (left, right)).

    Of equal values the first has the gradient, by rows and then columns, as with XLA.
    """
    return nn.max_pool(x, (3, 3), (2, 2), pads)


def _pool_forward(x, pads):
    return max_pool(x, pads), x


def _pool_backward(pads, x, g):
    plain = lambda x, g: jax.vjp(lambda x: nn.max_pool(x, (3, 3), (2, 2), pads), x)[1](g)[0]
    return lax.platform_dependent(x, g, cpu=lambda x, g: _by_taps(x, g, pads), default=plain),


max_pool.defvjp(_pool_forward, _pool_backward)


def _by_taps(x, g, pads):
    """The gradient of x: that of each window goes to its tap with the first of the largest values."""
    spans = [2 * (n - 1) + 1 for n in g.shape[1:3]]
    padded = lax.pad(x, jnp.array(-jnp.inf, x.dtype), ((0, 0, 0), *((*p, 0) for p in pads), (0, 0, 0)))
    taps = [(i, j) for i in range(3) for j in range(3)]
    largest, first = -jnp.inf, jnp.int32(0)
    for n, (i, j) in enumerate(taps):
        here = padded[:, i:i + spans[0]:2, j:j + spans[1]:2]
        largest, first = jnp.where(here > largest, here, largest), jnp.where(here > largest, n, first)
    total = jnp.zeros_like(x)
    for n, tap in enumerate(taps):
        widen = [(t - lo, size + lo - t - span, 1) for t, (lo, _), size, span in zip(tap, pads, x.shape[1:3], spans)]
        total += lax.pad(jnp.where(first == n, g, 0), jnp.array(0, g.dtype), ((0, 0, 0), *widen, (0, 0, 0)))
    return total
