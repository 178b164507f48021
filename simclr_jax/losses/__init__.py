"""Losses: pure functions of arrays. `from simclr_jax.losses import nt_xent` needs nothing else of this package."""
from simclr_jax.losses.clip import clip
from simclr_jax.losses.correlation import barlow_twins, vicreg
from simclr_jax.losses.debiased import dcl, debiased, hard_negative
from simclr_jax.losses.distill import cosine_regression, dino, ibot, sinkhorn
from simclr_jax.losses.geometry import alignment, spread, uniformity
from simclr_jax.losses.info_nce import info_nce
from simclr_jax.losses.koleo import koleo
from simclr_jax.losses.metric import contrastive, lifted_structure, n_pair, soft_nearest_neighbor
from simclr_jax.losses.nt_xent import nt_xent
from simclr_jax.losses.siglip import siglip
from simclr_jax.losses.sup_con import sup_con
from simclr_jax.losses.triplet import triplet
from simclr_jax.losses.uni_cl import uni_cl

__all__ = [
    "alignment", "barlow_twins", "clip", "contrastive", "cosine_regression", "dcl", "debiased", "dino",
    "hard_negative", "ibot",
    "info_nce", "koleo", "lifted_structure", "n_pair", "nt_xent", "siglip", "sinkhorn", "soft_nearest_neighbor",
    "spread", "sup_con", "triplet", "uni_cl", "uniformity", "vicreg"]
