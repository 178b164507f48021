"""Rows of unit length."""
import jax.numpy as jnp
from jax import lax


def unit(x):
    """Divides rows by their Euclidean norm, computed in f32 (f64 for f64).

    Args:
      x: float[..., D].

    Returns:
      f32[..., D] (f64 for f64), also of bf16 rows: rounding the quotient would move cosines by 0.4%. The squared norm is
      clamped at 1e-12, so a row of zeros stays one, with no NaN in its gradient.
    """
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    squared = jnp.sum(wide * wide, axis=-1, keepdims=True)
    return wide * lax.rsqrt(jnp.maximum(squared, 1e-12))
