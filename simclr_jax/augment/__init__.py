"""Augmentation: recipes as plain data, run on the accelerator within the step or on the host ahead of it."""
from simclr_jax.augment.device import make
from simclr_jax.augment.host import evaluate, finished
from simclr_jax.augment.light import light
from simclr_jax.augment.masks import make as hide
from simclr_jax.augment.recipe import Recipe, build, build_eval

__all__ = ["Recipe", "build", "build_eval", "evaluate", "finished", "hide", "light", "make"]
