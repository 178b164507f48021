"""Random numbers of a counter: Threefry-2x32 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3").

The same bits as `jax.random.key`, `fold_in` and `uniform` with `jax_threefry_partitionable` (the default), for many
keys at once. A number depends on its key and its place alone, so an augmentation is the same whichever worker, batch
or process draws it, and a pipeline on the accelerator can draw the same one.
"""
from simclr_jax.data.host_tf import tensorflow
from simclr_jax.errors import UsageError

tf = tensorflow()

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA                                       # Skein's key-schedule constant


def seed_key(seed: int) -> tf.Tensor:
    """The key of a run: u32[2], equal to `jax.random.key_data(jax.random.key(seed))`.

    Raises:
      UsageError: the seed does not fit 32 bits (JAX without x64 would drop the high bits in silence).
    """
    if not 0 <= seed < 2**32:
        raise UsageError(f"seed={seed} is out of range; wanted 0 <= seed < 2**32")
    return tf.constant([0, seed], tf.uint32)


def fold_in(keys, data) -> tf.Tensor:
    """Child keys, equal to `jax.random.fold_in`.

    Args:
      keys: u32[..., 2].
      data: integers, u32 or cast to it; shape broadcasts against `keys.shape[:-1]`.

    Returns:
      u32[..., 2] of the broadcast shape.
    """
    keys, data = tf.convert_to_tensor(keys), tf.cast(data, tf.uint32)
    return tf.stack(_threefry(keys[..., 0], keys[..., 1], tf.zeros_like(data), data), axis=-1)


def uniform(keys, count: int) -> tf.Tensor:
    """Numbers in [0, 1), equal to `jax.random.uniform(key, (count,))` of each key; 23 random bits each.

    The first k of `count` numbers are those of `uniform(keys, k)`, so draws of different lengths can share a call.

    Args:
      keys: u32[..., 2].
      count: numbers a key.

    Returns:
      f32[..., count].
    """
    keys, low = tf.convert_to_tensor(keys), tf.cast(tf.range(count), tf.uint32)
    a, b = _threefry(keys[..., 0, None], keys[..., 1, None], tf.zeros_like(low), low)
    bits = tf.bitwise.right_shift(tf.bitwise.bitwise_xor(a, b), tf.constant(9, tf.uint32))
    # A float with exponent 0 and these mantissa bits is uniform in [1, 2).
    return tf.bitcast(tf.bitwise.bitwise_or(bits, tf.constant(0x3F800000, tf.uint32)), tf.float32) - 1.0


def _threefry(key0, key1, x0, x1):
    """Threefry-2x32 on counters (x0, x1) under keys (key0, key1): u32 of shapes that broadcast -> two u32."""
    out = _rounds(key0, key1, x0, x1)
    for y in out:
        y.set_shape(tf.broadcast_static_shape(key0.shape, x0.shape))
    return out


@tf.function(input_signature=[tf.TensorSpec(None, tf.uint32)] * 4, autograph=False)    # traced once, for all shapes
def _rounds(key0, key1, x0, x1):
    keys = (key0, key1, tf.bitwise.bitwise_xor(tf.bitwise.bitwise_xor(key0, key1), tf.constant(_PARITY, tf.uint32)))
    x0, x1 = x0 + key0, x1 + key1
    for block in range(5):
        for r in _ROTATIONS[block % 2]:
            x0 = x0 + x1
            x1 = tf.bitwise.bitwise_or(tf.bitwise.left_shift(x1, tf.constant(r, tf.uint32)),
                                       tf.bitwise.right_shift(x1, tf.constant(32 - r, tf.uint32)))
            x1 = tf.bitwise.bitwise_xor(x0, x1)
        x0 = x0 + keys[(block + 1) % 3]
        x1 = x1 + keys[(block + 2) % 3] + tf.constant(block + 1, tf.uint32)
    return x0, x1
