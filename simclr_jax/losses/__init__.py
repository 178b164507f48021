"""Losses: pure functions of arrays. `from simclr_jax.losses import nt_xent` needs nothing else of this package."""
from simclr_jax.losses.nt_xent import nt_xent

__all__ = ["nt_xent"]
