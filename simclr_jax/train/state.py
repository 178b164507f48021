"""The first training state."""
import jax

from simclr_jax import dist
from simclr_jax.types import TrainState


def init_state(method, tx, mesh, batch, *, seed: int, shardings=None) -> TrainState:
    """A state at step 0, the same on every process.

    Args:
      batch: {name: array or ShapeDtypeStruct [b, ...]}; only shapes and dtypes matter.
      seed: of the initial parameters; shardings: tree as the state's, default replicated over `mesh`.
    """
    # Two rows are enough to learn every shape, and cheap to trace at any batch.
    shapes = {k: jax.ShapeDtypeStruct((2, *v.shape[1:]), v.dtype) for k, v in batch.items()}

    def first():
        rows = {k: jax.numpy.zeros(s.shape, s.dtype) for k, s in shapes.items()}
        # No training step has this number, so no step's key is ever that of the initial parameters.
        params, extra = method.init(jax.random.fold_in(jax.random.key(seed), 2**32 - 1), rows)
        return TrainState(jax.numpy.int32(0), params, tx.init(params), extra)

    return jax.jit(first, out_shardings=dist.replicated(mesh) if shardings is None else shardings)()
