"""Sources of examples, augmentation recipes and the tf.data pipeline. TensorFlow is imported by the first pipeline."""
from simclr_jax.data.pipeline import batches, check, examples
from simclr_jax.data.source import Source
from simclr_jax.data.subset import subset

__all__ = ["Source", "batches", "check", "examples", "subset"]
