"""Sources of examples and the pipeline. TensorFlow is imported by what decodes images, and by nothing else."""
from simclr_jax.data.every import examples
from simclr_jax.data.labels import labels
from simclr_jax.data.pipeline import as_read, batches, check
from simclr_jax.data.source import Source
from simclr_jax.data.subset import subset

__all__ = ["Source", "as_read", "batches", "check", "examples", "labels", "subset"]
