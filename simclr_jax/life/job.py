"""Joining the other processes of a job."""
import socket
import sys
import threading

import jax

from simclr_jax.errors import UsageError
from simclr_jax.life.ends import leave

# JAX's own heartbeat ends a process with a C++ stack and no name. Ours comes first, and says who is gone.
JAX_LATER = 4


def start(coordinator: str = "", processes: int = 0, process: int = -1, *, join: float = 120.0,
          heartbeat: float = 100.0) -> None:
    """Joins the other processes of the job, before any JAX computation.

    With no coordinator given JAX detects TPU pods, SLURM and Open MPI by their environment; a plain machine is one
    process, and needs no service.

    Args:
      coordinator: "host:port" of process 0; processes: how many; process: this one's number.
      join: seconds to wait for the others; heartbeat: seconds after which a silent process counts as lost.

    Raises:
      UsageError: only some were given, or the others did not come in time.
    """
    given = bool(coordinator), processes > 0, process >= 0
    if any(given) and not all(given):
        raise UsageError("--coordinator, --processes and --process go together: all three or none, got "
                         f"coordinator={coordinator!r} processes={processes} process={process}")
    if all(given):
        _check(coordinator, processes, process)
    elif not detected():
        return
    # Signals are heard by `Life`, on any number of processes alike.
    jax.config.update("jax_enable_preemption_service", False)
    where = dict(coordinator_address=coordinator, num_processes=processes, process_id=process) if all(given) else {}
    who = (f"process {process} of {processes} could not join {coordinator}" if all(given) else
           "the job that the environment describes could not be joined") + f" within {join:g} s"
    # JAX's own answer to a process that does not come in time is a C++ stack; it is given longer than we wait.
    late = threading.Timer(join, _late, [who])
    late.daemon = True
    late.start()
    try:
        jax.distributed.initialize(**where, initialization_timeout=round(join) + 60,
                                   heartbeat_timeout_seconds=max(10, round(JAX_LATER * heartbeat)),
                                   shutdown_timeout_seconds=max(10, round(heartbeat)))
    except (RuntimeError, ValueError) as e:
        raise UsageError(f"{who} ({str(e).splitlines()[0][:120]}); check the address and that all processes run") from e
    finally:
        late.cancel()


def _late(who):
    print(f"error: {who}: not all of them came; check the address and that all processes run", file=sys.stderr)
    leave(2)


def _check(coordinator, processes, process):
    if not 0 <= process < processes:
        raise UsageError(f"--process={process} --processes={processes}: wanted 0 to {processes - 1}, another for each")
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit():
        raise UsageError(f"--coordinator={coordinator}: wanted HOST:PORT of process 0")
    if process == 0:  # what gRPC makes of a port that is taken is a C++ stack
        with socket.socket(socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("", int(port)))
            except (OSError, OverflowError) as e:
                raise UsageError(f"--coordinator={coordinator}: process 0 cannot listen on port {port} "
                                 f"({getattr(e, 'strerror', None) or e}); take a free one") from None


def detected() -> bool:
    """Whether the environment is that of a job of several processes which JAX can join by itself."""
    from jax._src.clusters import ClusterEnv  # no public way to ask without joining
    return any(env.is_env_present() for env in ClusterEnv._cluster_types
               if not getattr(env, "opt_in_only_method", False))


def client():
    """The key-value store of the job, which needs no device; None for one process."""
    from jax._src import distributed  # no public way to it
    return distributed.global_state.client


def address() -> tuple[str, int]:
    """(host, port) of process 0."""
    from jax._src import distributed
    host, _, port = distributed.global_state.coordinator_address.rpartition(":")
    return host.strip("[]"), int(port)
