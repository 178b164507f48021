"""Do all devices hold the same parameters? One number a device, made where the parameters are.

Under `jit` an array that is typed as replicated may differ between processes, and nothing says so: every process
trusts its own copy. So each device sums the bits of its own copy, and the host compares the sums.
"""
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P


class Same:
    """`same(state)`: "" if devices that should hold the same parts of `state.params` do, else which do not, in words.

    A collective of a few bytes; all processes call it. Made for states placed as `state` is.
    """

    def __init__(self, state, mesh):
        self._mesh = mesh
        axes = tuple(mesh.axis_names)
        specs = jax.tree.map(lambda x: getattr(x.sharding, "spec", P()), state.params)
        self._kinds = sorted({str(s) for s in jax.tree.leaves(specs, is_leaf=_is_spec)})
        self._specs = {str(s): s for s in jax.tree.leaves(specs, is_leaf=_is_spec)}

        def own(params):
            sums = {kind: jnp.uint32(0) for kind in self._kinds}
            for leaf, spec in zip(jax.tree.leaves(params), jax.tree.leaves(specs, is_leaf=_is_spec)):
                sums[str(spec)] = sums[str(spec)] * jnp.uint32(31) + _bits(leaf)
            return jnp.stack([sums[kind] for kind in self._kinds]).reshape((1,) * len(axes) + (-1,))
        # Each device's own number is wanted, which is what check_vma would refuse as not replicated.
        self._own = jax.jit(jax.shard_map(own, mesh=mesh, in_specs=(specs,), out_specs=P(*axes), check_vma=False))

    def __call__(self, state) -> str:
        from jax.experimental import multihost_utils
        sums = np.asarray(multihost_utils.process_allgather(self._own(state.params), tiled=True))
        for i, kind in enumerate(self._kinds):
            parts = [part if isinstance(part, tuple) else (part,) for part in self._specs[kind] if part]
            split = {axis for part in parts for axis in part}
            found = first = sums[..., i]
            for dim, axis in enumerate(self._mesh.axis_names):
                first = first if axis in split else np.take(first, [0], dim)
            odd = [self._mesh.devices[tuple(place)] for place in np.argwhere(found != first)]
            if odd:
                return ("parameters differ between devices: " + ", ".join(
                    f"device {d.id} of process {d.process_index}" for d in odd[:4])
                    + (f" and {len(odd) - 4} more" if len(odd) > 4 else "") + " not as the first")
        return ""


def _is_spec(x):
    return isinstance(x, P)


def _bits(x):
    """u32[]: the sum of an array's bits, each word times an odd number of its own."""
    if jnp.issubdtype(x.dtype, jnp.bool_) or x.size == 0:
        return jnp.sum(x, dtype=jnp.uint32)
    width = min(x.dtype.itemsize, 4)
    words = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * width}")).reshape(-1).astype(jnp.uint32)
    return jnp.sum(words * (2 * jnp.arange(words.size, dtype=jnp.uint32) + 1), dtype=jnp.uint32)
