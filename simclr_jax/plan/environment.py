"""What must stand in the environment before jax is imported. Knows no jax."""
import importlib.util
import os
import re
import sys

from simclr_jax.errors import UsageError

TPUS = "v2", "v3", "v4", "v5e", "v5p", "v6e"


def prepare(topology: str) -> None:
    """Makes jax, once imported, compile for the topology and look for no other device; see `topology.devices`.

    Raises:
      UsageError: no topology that can be compiled for here.
    """
    kind, count = split(topology)
    if kind in TPUS:
        if importlib.util.find_spec("libtpu") is None:
            raise UsageError(f"--topology={topology}: libtpu, which holds the TPU compiler, is not installed; "
                             "pip install -e '.[tpu]'")
        # No TPU is looked for, by driver or metadata server, nor locked against others. The last two only keep libtpu
        # from warning that it found none.
        os.environ |= {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
                       "TPU_WORKER_HOSTNAMES": "localhost", "TPU_ACCELERATOR_TYPE": "v5litepod-4"}
    elif kind == "cpu":
        os.environ["JAX_PLATFORMS"] = "cpu"
        if "jax" not in sys.modules:
            given = re.sub(r"--xla_force_host_platform_device_count=\d+", "", os.environ.get("XLA_FLAGS", ""))
            os.environ["XLA_FLAGS"] = f"{given} --xla_force_host_platform_device_count={count}".strip()


def prepare_or_exit(topology: str) -> None:
    """`prepare`, for commands before they import jax: what it refuses is one line and exit code 2."""
    try:
        prepare(topology)
    except UsageError as e:
        print(f"error: {e}", file=sys.stderr)
        sys.exit(2)


def split(topology: str) -> tuple[str, int]:
    """(kind, number of chips, or of devices of a CPU or GPU; 0: all there are).

    >>> split("v4:4x4x4"), split("cpu:8"), split("local")
    (('v4', 64), ('cpu', 8), ('local', 0))

    Raises:
      UsageError: neither a TPU by name and shape nor cpu:N, gpu, gpu:N or local.
    """
    kind, colon, size = topology.partition(":")
    if kind in TPUS:
        sides = 3 if kind in ("v4", "v5p") else 2
        if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)" + f"{{{sides - 1}}}", size):
            example = f"{kind}:{'x'.join(['4'] * sides)}"
            raise UsageError(f"--topology={topology!r}: {kind} is laid out in {sides} dimensions of chips, as in "
                             f"{example}")
        count = 1
        for side in size.split("x"):
            count *= int(side)
        return kind, count
    if kind in ("cpu", "gpu") and re.fullmatch(r"[1-9]\d*", size):
        return kind, int(size)
    if kind in ("cpu", "gpu", "local") and not colon:
        return kind, int(kind == "cpu")
    raise UsageError(f"--topology={topology!r}: wanted {', '.join(TPUS)} with a shape, as in v3:8x8 or v4:4x4x4; "
                     "cpu:N; gpu; or local")
