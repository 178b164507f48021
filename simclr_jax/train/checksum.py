"""One number for the bytes of an array, the same however the array lies on devices and processes.

A checkpoint written on 8 devices is read on 4, so a checksum of shards would raise false alarms. CRC-32 without its
inversions at start and end is linear: the CRC of an array is the exclusive or, over its pieces, of the CRC of the
piece times x^(8 n), n the number of bytes that follow it, modulo the CRC's polynomial (R. N. Williams, "A painless
guide to CRC error detection algorithms", 1993, for the algebra; zlib's crc32_combine rests on the same identity). So
every process does the pieces it has, and the pieces meet in one exclusive or.
"""
import concurrent.futures
import functools
import math
import zlib

import jax
import numpy as np
from jax.experimental import multihost_utils

_ONES = 0xFFFFFFFF
_POLYNOMIAL = 0xEDB88320  # bit 31 is x^0, as in zlib


def of_array(array: np.ndarray) -> int:
    """u32: linear CRC-32 of a host array's bytes in C order; its shape and dtype are not in it."""
    return zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8), _ONES) ^ _ONES


def of_block(block: np.ndarray, index: tuple[slice, ...], shape: tuple[int, ...]) -> int:
    """u32: what the part `block = array[index]` of an array of `shape` adds (by exclusive or) to `of_array(array)`."""
    starts = [i.indices(n)[0] for i, n in zip(index, shape)]
    cut = max((d for d in range(len(shape)) if block.shape[d] != shape[d]), default=0)  # from here on: one run of bytes
    strides = [block.itemsize * math.prod(shape[d + 1:]) for d in range(len(shape))]
    run = strides[cut] * block.shape[cut]
    total = block.itemsize * math.prod(shape)
    crc, end = 0, 0
    for row in np.ndindex(block.shape[:cut]):
        start = sum((s + r) * stride for s, r, stride in zip(starts, row, strides)) + starts[cut] * strides[cut]
        crc = _times(crc, _zeros(start + run - end)) ^ of_array(block[row])
        end = start + run
    return _times(crc, _zeros(total - end))


def whole_everywhere(x) -> bool:
    """Whether each process that holds a part of the array `x` holds all of it (so that no process needs another)."""
    return not isinstance(x, jax.Array) or held_whole(x.sharding, x.shape)


def held_whole(sharding, shape: tuple[int, ...]) -> bool:
    """`whole_everywhere` for an array of `shape` placed by `sharding`."""
    if sharding.is_fully_addressable or sharding.is_fully_replicated:
        return True
    held: dict[int, dict] = {}
    for device, index in sharding.devices_indices_map(tuple(shape)).items():
        block = tuple(i.indices(n)[:2] for i, n in zip(index, shape))
        held.setdefault(device.process_index, {})[block] = math.prod(stop - start for start, stop in block)
    return all(sum(blocks.values()) == math.prod(shape) for blocks in held.values())


def to_host(x) -> np.ndarray:
    """The whole of an array for which `whole_everywhere`, in this process; on CPU it may be a view of the array."""
    if not isinstance(x, jax.Array):
        return np.asarray(x)
    if x.is_fully_replicated:
        return np.asarray(x.addressable_data(0))
    out = np.empty(x.shape, x.dtype)
    for shard in x.addressable_shards:
        out[shard.index] = shard.data
    return out


def of_leaves(leaves: list) -> list[int]:
    """u32 per leaf (jax.Array or numpy): `of_array` of the logical array, equal for every placement.

    A collective if a leaf is spread over processes: then all processes call it, with the same leaves.
    """
    split = [i for i, x in enumerate(leaves) if not whole_everywhere(x)]
    crcs = parallel(lambda x: of_array(to_host(x)) if whole_everywhere(x) else _own_part(x), leaves)
    if split:
        parts = multihost_utils.process_allgather(np.asarray([crcs[i] for i in split], np.uint32))
        for i, crc in zip(split, np.bitwise_xor.reduce(parts, axis=0)):
            crcs[i] = int(crc)
    return crcs


def parallel(function, items) -> list:
    """`[function(x) for x in items]` on a few threads: zlib and copies from devices let go of Python's lock."""
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        return list(pool.map(function, items))


def _own_part(x: jax.Array) -> int:
    crc = 0
    for shard in x.addressable_shards:
        if shard.replica_id == 0:  # each block counts once in the exclusive or
            crc ^= of_block(np.asarray(shard.data), shard.index, x.shape)
    return crc


def _times(a: int, b: int) -> int:
    """The product of two polynomials over GF(2) modulo the CRC's."""
    product = 0
    for bit in range(31, -1, -1):
        if a >> bit & 1:
            product ^= b
        b = (b >> 1) ^ (_POLYNOMIAL if b & 1 else 0)
    return product


@functools.lru_cache(maxsize=4096)
def _zeros(n: int) -> int:
    """x^(8 n): multiplying by it is what n further zero bytes do to a CRC."""
    power, base = 1 << 31, 1 << 23
    while n:
        if n & 1:
            power = _times(power, base)
        base, n = _times(base, base), n >> 1
    return power
