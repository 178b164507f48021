"""What a chip can do at most, as its maker publishes it."""
from typing import NamedTuple


class Chip(NamedTuple):
    """Of one chip. What JAX calls a device is `1 / devices` of it: a core on v2 and v3, the chip elsewhere."""

    flops: float  # products of bf16, a second
    hbm: int  # bytes of memory
    hbm_rate: float  # bytes a second
    link_rate: float  # bytes a second one way, over all links to other chips at once
    devices: int  # to JAX
    source: str


_TPU = "https://cloud.google.com/tpu/docs/"
_CACM = "Jouppi et al. 2020, A domain-specific supercomputer for training deep neural networks, CACM 63(7)"
_GIB = 1 << 30

# By the device_kind that JAX reports.
CHIPS = {
    # Links: four of 496 and of 656 Gbit/s each way.
    "TPU v2": Chip(46e12, 16 * _GIB, 700e9, 248e9, 2, _CACM),
    "TPU v3": Chip(123e12, 32 * _GIB, 900e9, 328e9, 2, f"{_TPU}v3; links: {_CACM}"),
    # Links: six of 50 GB/s.
    "TPU v4": Chip(275e12, 32 * _GIB, 1228e9, 300e9, 1, f"{_TPU}v4; rates: Jouppi et al. 2023, arXiv:2304.01433"),
    # Links: half of the 400 and 1200 GB/s that the pages call bidirectional.
    "TPU v5 lite": Chip(197e12, 16 * _GIB, 819e9, 200e9, 1, f"{_TPU}v5e"),
    "TPU v5": Chip(459e12, 95 * _GIB, 2765e9, 600e9, 1, f"{_TPU}v5p"),
    "TPU v6 lite": Chip(918e12, 32 * _GIB, 1640e9, 448e9, 1, f"{_TPU}v6e"),
    # Dense bf16 and 18 NVLinks of 25 GB/s each way within a box.
    "NVIDIA H100 80GB HBM3": Chip(989e12, 80 * 10**9, 3350e9, 450e9, 1, "NVIDIA H100 datasheet, SXM5"),
    "NVIDIA H200": Chip(989e12, 141 * 10**9, 4800e9, 450e9, 1, "NVIDIA H200 datasheet, SXM5"),
    "NVIDIA A100-SXM4-80GB": Chip(312e12, 80 * 10**9, 2039e9, 300e9, 1, "NVIDIA A100 datasheet, SXM4"),
    "NVIDIA A100-SXM4-40GB": Chip(312e12, 40 * 10**9, 1555e9, 300e9, 1, "NVIDIA A100 datasheet, SXM4"),
}


def of_device(kind: str) -> Chip | None:
    """What one of JAX's devices of this kind has, its share of the chip; None for kinds that are not in the table.

    Links are the chip's, not shared: what two cores of a chip both receive needs to come once.

    >>> of_device("TPU v3").hbm >> 30
    16
    """
    chip = CHIPS.get(kind)
    if chip is None:
        return None
    n = chip.devices
    return chip._replace(flops=chip.flops / n, hbm=chip.hbm // n, hbm_rate=chip.hbm_rate / n)
