"""Contrastive and self-supervised pretraining in JAX, with the same mathematics on a laptop, a GPU box and a TPU pod."""

__version__ = "0.1.0"
