"""The mesh and the collectives.

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

DATA = "data"  # the mesh axis that rows are spread over
MODEL = "model"  # and that over which parameters are, if any


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
    types = (AxisType.Auto,) * len(sizes)
    ring = in_a_ring(devices) if sizes[DATA] == len(devices) else None
    if ring is not None:
        return Mesh(np.array(ring).reshape(tuple(sizes.values())), tuple(sizes), axis_types=types)
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=types, devices=devices)


def in_a_ring(devices) -> list | None:
    """A TPU's devices ordered so that each is the neighbour of the next, and the last of the first; None for others.

    `jax.make_mesh` orders them by rows, so that what passes from device to device crosses the whole pod at each row's
    end. On a grid with an even side a ring without such leaps is to go to and fro over all columns but the first, and
    back along that.
    """
    if not all(hasattr(d, "coords") and d.platform == "tpu" for d in devices):
        return None
    chips = {}
    for d in sorted(devices, key=lambda d: d.core_on_chip):
        chips.setdefault(tuple(d.coords), []).append(d)
    low, high = ([f(axis) for axis in zip(*chips)] for f in (min, max))
    sides = [b - a + 1 for a, b in zip(low, high)]
    if math.prod(sides) != len(chips) or len({len(cores) for cores in chips.values()}) > 1:
        return None  # parts of a pod, or of several
    places = _ring(sides)
    return [d for place in places for d in chips[tuple(a + i for a, i in zip(low, place))]]


def _ring(sides):
    """All places of a grid, neighbours side by side; the first and the last too, if two sides are above 1 and one is even.

    >>> _ring([2, 3])
    [(0, 0), (0, 1), (0, 2), (1, 2), (1, 1), (1, 0)]
    """
    def to_and_fro(sides):
        if not sides:
            return [()]
        rest = to_and_fro(sides[1:])
        return [(i, *place) for i in range(sides[0]) for place in (rest if i % 2 == 0 else rest[::-1])]
    even = next((k for k, side in enumerate(sides) if side % 2 == 0), None)
    across = to_and_fro(sides[:even] + sides[even + 1:]) if even is not None else []
    if len(across) < 2:
        return to_and_fro(sides)
    out = [(i, p) for i in range(sides[even]) for p in (across[1:] if i % 2 == 0 else across[:0:-1])]
    out = [(0, across[0]), *out, *((i, across[0]) for i in range(sides[even] - 1, 0, -1))]
    return [(*p[:even], i, *p[even:]) for i, p in out]


def rows_axis(mesh: Mesh) -> str | None:
    """The axis that a step over `mesh` sums over: "data", or None where rows are in one place and other axes are not.

    With a manual axis of one device beside axes of its own, XLA's partitioner fails on every reduction.
    """
    return None if mesh.shape[DATA] == 1 and mesh.size > 1 else DATA


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, P())


def share(mesh: Mesh) -> tuple[int, int]:
    """Which part of a batch this process feeds, as (index, of how many).

    Processes whose devices lie side by side along another axis hold the same rows.

    Raises:
      UsageError: some processes have part of their rows in common.
    """
    along = mesh.axis_names.index(DATA)
    groups: dict[int, set[int]] = {}
    for at, device in np.ndenumerate(mesh.devices):
        groups.setdefault(device.process_index, set()).add(at[along])
    parts = sorted({tuple(sorted(rows)) for rows in groups.values()})
    if sum(map(len, parts)) != mesh.shape[DATA] or len({len(part) for part in parts}) > 1:
        raise UsageError(f"config.mesh={dict(mesh.shape)} does not fit {len(groups)} processes: each wants rows of its own or "
                         "those of another as a whole; make `model` divide, or be a multiple of, the devices of a process")
    return parts.index(tuple(sorted(groups[jax.process_index()]))), len(parts)


def place_batch(batch: dict, mesh: Mesh) -> dict:
    """This process's rows of a batch (numpy, leading axis) as global arrays sharded over the data axis."""
    sharding = NamedSharding(mesh, P(DATA))
    n = share(mesh)[1]

    def put(x):
        x = np.asarray(x)
        # The global shape is given, not inferred: unequal local batches would otherwise pass in silence.
        return jax.make_array_from_process_local_data(sharding, x, (x.shape[0] * n, *x.shape[1:]))
    return {k: put(v) for k, v in batch.items()}
