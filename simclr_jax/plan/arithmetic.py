"""Arithmetic of a traced program: matrix products and convolutions, a loop's body as often as it runs.

The compiler's own count takes a loop's body once, so that of a step in micro-batches or of layers under `scan` is short
by that factor.
"""
import math
from typing import NamedTuple

import jax.numpy as jnp


class Products(NamedTuple):
    """Of one device: each multiplication and each addition counts one."""

    flops: int = 0
    passes: int = 0  # as flops, but a product counts as those of bf16 that it is made of: six of f32 at "highest"
    exact: bool = True  # False: a loop of unknown length was counted once, so the numbers are a lower bound

    def __add__(self, other):
        return Products(self.flops + other.flops, self.passes + other.passes, self.exact and other.exact)

    def times(self, n: float):
        return Products(int(self.flops * n), int(self.passes * n), self.exact)


def products(jaxpr, devices: int, platform: str) -> Products:
    """Counts a jaxpr.

    Args:
      jaxpr: as `jax.stages.Traced.jaxpr.jaxpr` has it.
      devices: over which it runs; what no `shard_map` divides is taken to be divided evenly by the compiler.
      platform: whose branches count where code differs by platform. Of a branch that depends on data the one with most
        products counts.
    """
    whole = _count(jaxpr, platform)
    return whole.times(1 / devices)


def _count(jaxpr, platform) -> Products:
    """Of all devices together."""
    total = Products()
    for e in jaxpr.eqns:
        name, inner = e.primitive.name, 1
        if name == "dot_general":
            (over, _), _ = e.params["dimension_numbers"]
            n = 2 * e.outvars[0].aval.size * math.prod(e.invars[0].aval.shape[i] for i in over)
            total += Products(n, n * _passes(e))
        elif name == "conv_general_dilated":
            n = _convolution(e)
            total += Products(n, n * _passes(e))
        elif name == "scan":
            inner = e.params["length"]
        elif name == "shard_map":
            inner = math.prod(e.params["mesh"].shape[axis] for axis in e.params["newly_manual_axes"])
        elif name == "cond":
            total += _branch(e, platform)
            continue
        below = [_count(x, platform) for v in e.params.values() for x in _jaxprs(v)]
        found = sum(below, Products()).times(inner)
        total += found._replace(exact=False) if name == "while" and found.flops else found
    return total


def _jaxprs(value):
    for x in value if isinstance(value, (tuple, list)) else (value,):
        below = getattr(x, "jaxpr", x)
        if hasattr(below, "eqns"):
            yield below


def _branch(e, platform) -> Products:
    branches, platforms = e.params["branches"], e.params.get("branches_platforms")
    if platforms:
        own = [b for b, of in zip(branches, platforms) if of is None or platform in of]
        return _count(own[0].jaxpr, platform)
    return max((_count(b.jaxpr, platform) for b in branches), key=lambda p: p.passes)


def _convolution(e) -> int:
    """Products with the zeros of padding and dilation are left out: no hardware need make them."""
    x, kernel, out = e.invars[0].aval, e.invars[1].aval, e.outvars[0].aval
    p = e.params
    d = p["dimension_numbers"]
    met = 1
    for axis, (low, _), stride, of_x, of_kernel in zip(range(2, x.ndim), p["padding"], p["window_strides"],
                                                       p["lhs_dilation"], p["rhs_dilation"]):
        size, taps, steps = x.shape[d.lhs_spec[axis]], kernel.shape[d.rhs_spec[axis]], out.shape[d.out_spec[axis]]
        places = (i * stride + t * of_kernel - low for i in range(steps) for t in range(taps))
        met *= sum(place % of_x == 0 and 0 <= place // of_x < size for place in places)
    features, channels = kernel.shape[d.rhs_spec[0]], kernel.shape[d.rhs_spec[1]]
    return 2 * out.shape[d.out_spec[0]] * features * channels * met


def _passes(e) -> int:
    """Products of bf16 that a product of this precision takes: jax.lax.Precision."""
    if e.invars[0].aval.dtype == jnp.bfloat16:
        return 1
    asked = e.params["precision"]
    asked = asked[0] if isinstance(asked, tuple) else asked
    return {"HIGH": 3, "HIGHEST": 6}.get(getattr(asked, "name", str(asked)), 1)
