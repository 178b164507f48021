"""TensorFlow as this project uses it: tf.data and decoding on the host's cores, and nothing else."""
import functools
import os


@functools.cache
def tensorflow():
    """Imports TensorFlow on first use, quiet and blind to accelerators, and returns the module.

    Importing it takes seconds, so nothing in this room does so at the top but the augmentation ops.
    """
    # 2: errors only. oneDNN may choose its kernels by shape and thread count, and then pixels would depend on both.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    import tensorflow as tf

    for kind in ("GPU", "TPU"):
        try:
            tf.config.set_visible_devices([], kind)
        except RuntimeError:
            pass  # the caller has used TensorFlow already; then which devices it sees is the caller's choice
    return tf
