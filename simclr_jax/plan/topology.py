"""The devices of a topology by name, which need not be there."""
import os

import jax
from jax.experimental import topologies

from simclr_jax.errors import UsageError
from simclr_jax.plan import chips, environment


def devices(topology: str) -> list:
    """JAX's devices of a topology, after `environment.prepare` of it.

    A v2 or v3 core is a device; elsewhere a chip is, also of v4, as it is to a JAX that runs there.

    Raises:
      UsageError: fewer devices here than named, or a shape that the TPU compiler does not know.
    """
    kind, count = environment.split(topology)
    if kind in environment.TPUS:
        how = {"chip_config_name": "megacore"} if kind == "v4" else {}
        try:
            return list(topologies.get_topology_desc(platform="tpu", topology_name=topology, **how).devices)
        except Exception as e:  # the compiler raises what it likes
            raise UsageError(f"--topology={topology}: the TPU compiler refuses it ({str(e).splitlines()[0][:160]}); "
                             "wanted a shape that is built, such as v5e:8x8") from None
    found = jax.devices()
    if kind != "local" and found[0].platform != kind:
        raise UsageError(f"--topology={topology}: this JAX has {found[0].platform} devices only; "
                         + ("pip install -e '.[gpu]' where there is one" if kind == "gpu" else "unset JAX_PLATFORMS"))
    if count > len(found):
        raise UsageError(f"--topology={topology}: this machine has {len(found)}; take at most that")
    return found[:count or None]


def memory(device, count: int) -> int | None:
    """Bytes that one of `count` such devices has: the chip's, a GPU's own, a share of the machine's; None: unknown."""
    chip = chips.of_device(device.device_kind)
    if device.platform == "tpu":
        return chip.hbm if chip else None
    if device.platform == "cpu":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // count
    found = (device.memory_stats() or {}).get("bytes_limit")
    return found or (chip.hbm if chip else None)
