"""The first training state."""
import jax
import jax.numpy as jnp

from simclr_jax import dist
from simclr_jax.train import guard
from simclr_jax.types import TrainState


def init_state(method, tx, mesh, batch, *, seed: int, shardings=None) -> TrainState:
    """A state at step 0, the same on every process.

    Args:
      batch: {name: array or ShapeDtypeStruct [b, ...]}; only shapes and dtypes matter.
      seed: of the initial parameters; shardings: tree as the state's, default replicated over `mesh`.
    """
    shardings = dist.replicated(mesh) if shardings is None else shardings
    return jax.jit(lambda: _first(method, tx, batch, seed), out_shardings=shardings)()


def state_shapes(method, tx, batch, *, seed: int) -> TrainState:
    """The state of `init_state` as ShapeDtypeStructs, at no cost."""
    return jax.eval_shape(lambda: _first(method, tx, batch, seed))


def _first(method, tx, batch, seed):
    # Two rows are enough to learn every shape, and cheap to trace at any batch.
    rows = {k: jnp.zeros((2, *v.shape[1:]), v.dtype) for k, v in batch.items()}
    # No training step has this number, so no step's key is ever that of the initial parameters.
    params, extra = method.init(jax.random.fold_in(jax.random.key(seed), 2**32 - 1), rows)
    return TrainState(jnp.int32(0), params, tx.init(params), extra, guard.new())
