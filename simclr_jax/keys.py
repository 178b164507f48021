"""JAX's random numbers in NumPy, for threads that read data and must not wait for a device.

Threefry-2x32 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"): the same bits as `jax.random.key`,
`fold_in` and `uniform` with `jax_threefry_partitionable` (the default), for many keys at once. A number depends on its
key and its place alone, so a draw is the same whichever thread, batch, process or device makes it.
"""
import numpy as np

from simclr_jax.errors import UsageError

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = np.uint32(0x1BD11BDA)  # Skein's key-schedule constant


def seed_key(seed: int) -> np.ndarray:
    """The key of a run: u32[2], equal to `jax.random.key_data(jax.random.key(seed))`.

    Raises:
      UsageError: the seed does not fit 32 bits (JAX without x64 would drop the high bits in silence).
    """
    if not 0 <= seed < 2**32:
        raise UsageError(f"seed={seed} is out of range; wanted 0 <= seed < 2**32")
    return np.array([0, seed], np.uint32)


def row_keys(seed: int, ids: np.ndarray) -> np.ndarray:
    """u32[n, 2]: the keys of rows with ids [n, 2], index and epoch: fold_in(fold_in(key(seed), epoch), index)."""
    return fold_in(fold_in(seed_key(seed), ids[:, 1]), ids[:, 0])


def fold_in(keys: np.ndarray, data) -> np.ndarray:
    """Child keys, equal to `jax.random.fold_in`: keys u32[..., 2], data integers that broadcast -> u32[..., 2]."""
    data = np.asarray(data).astype(np.uint32)
    return np.stack(_threefry(keys[..., 0], keys[..., 1], np.zeros_like(data), data), axis=-1)


def uniform(keys: np.ndarray, count: int) -> np.ndarray:
    """f32[..., count] in [0, 1), equal to `jax.random.uniform(key, (count,))` of each key; 23 random bits each.

    The first k of `count` numbers are those of `uniform(keys, k)`.
    """
    low = np.arange(count, dtype=np.uint32)
    a, b = _threefry(keys[..., 0, None], keys[..., 1, None], np.zeros_like(low), low)
    # A float with exponent 0 and these mantissa bits is uniform in [1, 2).
    return (((a ^ b) >> np.uint32(9)) | np.uint32(0x3F800000)).view(np.float32) - np.float32(1)


def _threefry(key0, key1, x0, x1):
    """Threefry-2x32 on counters (x0, x1) under keys (key0, key1): u32 of shapes that broadcast -> two u32."""
    with np.errstate(over="ignore"):  # arithmetic is modulo 2**32
        keys = (key0, key1, key0 ^ key1 ^ _PARITY)
        x0, x1 = x0 + key0, x1 + key1
        for block in range(5):
            for r in _ROTATIONS[block % 2]:
                x0 = x0 + x1
                x1 = ((x1 << np.uint32(r)) | (x1 >> np.uint32(32 - r))) ^ x0
            x0 = x0 + keys[(block + 1) % 3]
            x1 = x1 + keys[(block + 2) % 3] + np.uint32(block + 1)
    return x0, x1
