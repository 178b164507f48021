"""Dropout and stochastic depth whose draws belong to the row.

Srivastava et al. 2014, "Dropout"; Huang et al. 2016, "Deep Networks with Stochastic Depth", arXiv:1603.09382, with the
kept branch divided by its probability, as in timm. Linen's layers draw one mask for a batch, so that splitting it over
devices or passes changes the numbers. Here each row has a PRNG key of its own, so it does not.
"""
import jax
import jax.numpy as jnp

from simclr_jax.errors import UsageError


def keys(key, rate: float, rows: int, *, train: bool, where: str):
    """The rows' keys if something is to be dropped, else None.

    Args:
      key: one PRNG key a row, [rows] (typed keys, or u32[rows,2]), or None.
      rate: the largest probability of dropping.
      where: what to name in a message.

    Raises:
      UsageError: training with a rate above 0 and no key, or not one key a row.
    """
    if not train or rate == 0:
        return None
    if key is None:
        raise UsageError(f"{where}: a rate of {rate} drops at random in training, and apply was given no key; pass "
                         "key=, one PRNG key a row, or set the rate to 0")
    if key.ndim == 0 or key.shape[0] != rows:
        raise UsageError(f"{where}: key has shape {key.shape} for {rows} rows; pass one PRNG key a row")
    return key


def drop_path(x, rate, key, salt):
    """Stochastic depth: each row of float[b, ...] is zeroed with probability `rate`, else divided by 1 - rate.

    Args:
      rate: in [0, 1); an array will do, as where layers are scanned.
      key: one PRNG key a row, [b].
      salt: u32, the layer's own number: rows draw from fold_in(key[b], salt).
    """
    return jax.vmap(lambda x, k: _drop(x, rate, k, salt, ()))(x, key)


def dropout(x, rate, key, salt):
    """Dropout: each element of float[b, ...] is zeroed with probability `rate`, else divided by 1 - rate. See
    `drop_path` for the arguments."""
    return jax.vmap(lambda x, k: _drop(x, rate, k, salt, x.shape))(x, key)


def _drop(x, rate, key, salt, shape):
    keep = jax.random.uniform(jax.random.fold_in(key, salt), shape, jnp.float32) >= rate
    return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)
