"""The mesh, start-up of several processes, and the collectives.

Every collective takes `axis: str | None`; None means one device, where each is the identity. Inside the step the axis
is "data", manual under `jax.shard_map`, so that losses can gather, ring and count rows.

Rows of a global array of B rows over W devices, b = B / W to each; `rows` is the only place that knows this:

    device    0            1            2            ...
    local     0 .. b-1     0 .. b-1     0 .. b-1
    global    0 .. b-1     b .. 2b-1    2b .. 3b-1
"""
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P

from simclr_jax.errors import UsageError

DATA = "data"


# Collectives.


def pmean(x, axis: str | None):
    """Mean over the shards of `axis`; the result is replicated. Tree in, tree out."""
    return x if axis is None else lax.pmean(x, axis)


def psum(x, axis: str | None):
    """Sum over the shards of `axis`; the result is replicated. Tree in, tree out."""
    return x if axis is None else lax.psum(x, axis)


def all_gather(x, axis: str | None, *, dim: int = 0):
    """Concatenates the shards' `x` along `dim`, in device order. Gradients flow back to every shard's own rows."""
    return x if axis is None else lax.all_gather(x, axis, axis=dim, tiled=True)


def all_gather_replicated(x, axis: str | None):
    """`all_gather` typed as the same on every shard, for what leaves the step (queues). No gradient flows back."""
    return x if axis is None else lax.all_gather(lax.stop_gradient(x), axis, tiled=True, to="invarying")


def deal(x, order, axis: str | None):
    """Deals rows out anew: row i of the result's global array is row order[i] of x's.

    Args:
      x: [b, ...], this shard's rows; order: i32[B], a permutation of all rows, the same on every shard.
    """
    return all_gather(x, axis)[order[rows(len(x), axis)]]


def psum_scatter(x, axis: str | None):
    """Sum over the shards of x [B, ...], each keeping its own rows [b, ...]: what `all_gather` is transposed."""
    return x if axis is None else lax.psum_scatter(x, axis, scatter_dimension=0, tiled=True)


def exchange(x, axis: str | None):
    """Every shard's [..., B] on all rows of the batch becomes [shards, ..., b], what each shard has on this one's rows."""
    if axis is None:
        return x[None]
    n = lax.axis_size(axis)
    x = x.reshape(*x.shape[:-1], n, -1)
    return lax.all_to_all(x, axis, split_axis=x.ndim - 2, concat_axis=0)


def send_next(x, axis: str | None):
    """Passes a tree to the next device of the ring and returns that of the one before."""
    if axis is None:
        return x
    n = lax.axis_size(axis)
    return lax.ppermute(x, axis, [(i, (i + 1) % n) for i in range(n)])


def size(axis: str | None) -> int:
    """Number of shards."""
    return 1 if axis is None else lax.axis_size(axis)


def index(axis: str | None):
    """i32[], this shard's number."""
    return jnp.int32(0) if axis is None else lax.axis_index(axis)


def rows(b: int, axis: str | None):
    """i32[b], the global numbers of this shard's b rows."""
    return index(axis) * b + jnp.arange(b, dtype=jnp.int32)


def varying(tree, axis: str | None):
    """Types arrays as differing between shards, which scan carries, gradients by shard and custom rules need."""
    def cast(x):
        try:
            return lax.pcast(x, axis, to="varying")
        except ValueError:  # it is typed so already, which JAX has no stable way to ask
            return x
    return tree if axis is None else jax.tree.map(cast, tree)


# The mesh, and placing arrays on it.


def make_mesh(shape: dict[str, int], devices=None) -> Mesh:
    """A mesh with automatic axes, such as `{"data": -1, "model": 1}`; one size may be -1 (what is left).

    Raises:
      UsageError: the sizes do not multiply to the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = dict(shape)
    known = math.prod(s for s in sizes.values() if s != -1)
    if known > 0 and list(sizes.values()).count(-1) == 1:
        sizes = {k: len(devices) // known if s == -1 else s for k, s in sizes.items()}
    if DATA not in sizes or math.prod(sizes.values()) != len(devices):
        raise UsageError(f"config.mesh={dict(shape)} does not fit {len(devices)} devices: wanted sizes that multiply to "
                         f"{len(devices)}, with a 'data' axis (-1 takes what is left)")
    # Auto: make_mesh's default, Explicit, refuses unsharded arguments of a shard_map.
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes), devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, P())


def place_batch(batch: dict, mesh: Mesh) -> dict:
    """This process's rows of a batch (numpy, leading axis) as global arrays sharded over the data axis."""
    sharding = NamedSharding(mesh, P(DATA))
    n = jax.process_count()

    def put(x):
        x = np.asarray(x)
        # The global shape is given, not inferred: unequal local batches would otherwise pass in silence.
        return jax.make_array_from_process_local_data(sharding, x, (x.shape[0] * n, *x.shape[1:]))
    return {k: put(v) for k, v in batch.items()}


# Several processes.


def start(coordinator: str = "", processes: int = 0, process: int = -1) -> None:
    """Joins the other processes of the job, before any JAX computation.

    With no arguments JAX detects TPU pods, SLURM and Open MPI by their environment; a plain machine is one process.

    Args:
      coordinator: "host:port" of process 0; processes: how many; process: this one's number.

    Raises:
      UsageError: only some were given, or the others did not come in time.
    """
    given = bool(coordinator), processes > 0, process >= 0
    if any(given) and not all(given):
        raise UsageError("--coordinator, --processes and --process go together: all three or none, got "
                         f"coordinator={coordinator!r} processes={processes} process={process}")
    try:
        if all(given):
            jax.distributed.initialize(coordinator, processes, process, initialization_timeout=120)
        elif jax_job_detected():
            jax.distributed.initialize()
    except (RuntimeError, ValueError) as e:
        who = f"process {process} of {processes} could not join {coordinator} within 120 s" if all(given) else (
            "the job that the environment describes could not be joined")
        raise UsageError(f"{who} ({str(e).splitlines()[0][:120]}); check the address and that all processes run") from e


def jax_job_detected() -> bool:
    """Whether the environment is that of a job of several processes which JAX can join by itself."""
    from jax._src.clusters import ClusterEnv  # no public way to ask without joining
    return any(env.is_env_present() for env in ClusterEnv._cluster_types
               if not getattr(env, "opt_in_only_method", False))


def refuse_together(problem: str) -> None:
    """Raises on every process if any has a problem, so that none is left waiting for one that has gone.

    Args:
      problem: this process's, one line; empty if it has none.

    Raises:
      UsageError: this process's own problem, else the first that another has, with its number.
    """
    everyone = [problem]
    if jax.process_count() > 1:
        everyone = gather_text(problem)
    for i, text in enumerate(everyone):
        if problem or text:
            raise UsageError(problem or f"process {i}: {text}")


def of_lead(value: int) -> int:
    """Process 0's number, on all processes."""
    if jax.process_count() == 1:
        return value
    from jax.experimental import multihost_utils
    return int(np.ravel(multihost_utils.process_allgather(np.int32(value)))[0])


def gather_text(text: str, size: int = 400) -> list[str]:
    """Each process's text, by process, cut to `size` bytes."""
    from jax.experimental import multihost_utils
    row = np.frombuffer(text.encode()[:size].ljust(size), np.uint8)
    return [bytes(r).decode(errors="replace").strip() for r in np.asarray(multihost_utils.process_allgather(row))]


def agree(value: str, what: str) -> None:
    """Refuses to go on when processes hold different values of what must be one (a config, a workdir).

    Args:
      value: this process's value; what: its name, for the message.
    """
    if jax.process_count() == 1:
        return
    from jax.experimental import multihost_utils
    import zlib
    digests = multihost_utils.process_allgather(np.uint32(zlib.crc32(value.encode())))
    if len(set(np.asarray(digests).tolist())) > 1:
        odd = [i for i, d in enumerate(digests) if d != digests[0]]
        raise UsageError(f"{what} differs between processes: {', '.join(map(str, odd))} not as in process 0; "
                         "start all with the same command on the same files")


def barrier(name: str) -> None:
    """Waits for all processes."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils
        multihost_utils.sync_global_devices(name)
