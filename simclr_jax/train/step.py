"""The mathematics of a training step, for every method, on one page.

The loss of a batch is pmean(criterion(forward(rows))). `forward` is row by row, `criterion` couples all rows of all
devices. Without micro-batches that is one `vjp` of `forward` and one gradient of `criterion`. With them, `forward` runs
piece by piece keeping only its narrow outputs, `criterion` sees the full batch, and `forward` runs again, piece by
piece, to pull the gradient back through it: the same gradient as in one piece (Gao et al. 2021, arXiv:2101.06983,
"GradCache"), in the memory of one piece.
"""
from typing import Callable

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import Mesh, PartitionSpec as P

from simclr_jax import dist
from simclr_jax.train import guard as guards
from simclr_jax.types import Ctx, Method, TrainState


def make_step(method: Method, tx: optax.GradientTransformation, mesh: Mesh, *, seed: int,
              microbatches: int = 1, augment: Callable = lambda batch: batch, shardings=None,
              guard: guards.Rule = guards.Rule()) -> Callable:
    """The jitted step `(state, batch) -> (state, metrics)`.

    Args:
      method: what to train; tx: the optimiser over `state.params`.
      mesh: its "data" axis carries the rows; any other axis is left to the compiler, following `state`'s shardings. The
        method's nets are made for `dist.rows_axis(mesh)`.
      seed: of the run's random key, which is folded with the step and with nothing else.
      microbatches: pieces each device's rows are forwarded in. The gradient is exact, except that batch statistics are
        those of a piece (all devices' rows of it).
      augment: batch -> batch, row by row, applied to each piece when it is forwarded: augmentation on the device. A row
        draws by its id, so both passes of a piece see the same views, and those of a full batch never exist at once.
      shardings: of the state, a tree; kept from step to step. None: replicated.
      guard: which steps are skipped, see `train.guard`.

    The state's buffers are donated. metrics: {name: f32[]}, means over the global batch: "loss", "grad_norm",
    "update_norm" and the method's own; and "skipped", how many steps were, and "in_a_row", of them the latest ones.
    """
    axis = dist.rows_axis(mesh)
    gradients = make_gradients(method, axis, seed=seed, microbatches=microbatches, augment=augment)

    def sharded(state: TrainState, batch):
        loss, grads, extra, metrics, ctx = gradients(state, batch)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        extra = method.finish(params, extra, ctx)
        norm = optax.tree.norm(grads)
        metrics = {"loss": loss, **metrics, "grad_norm": norm, "update_norm": optax.tree.norm(updates)}
        good, watched = guards.judge(guard, state.guard, loss, norm, metrics["update_norm"], extra)
        metrics |= {k: getattr(watched, k).astype(jnp.float32) for k in ("skipped", "in_a_row")}
        taken = TrainState(state.step + 1, guards.take(good, params, state.params),
                           guards.take(good, opt_state, state.opt_state, counts=True),
                           guards.take(good, extra, state.extra), watched)
        return taken, metrics

    mapped = sharded if axis is None else jax.shard_map(sharded, mesh=mesh, in_specs=(P(), P(axis)), out_specs=P(),
                                                         axis_names={axis})
    return jax.jit(mapped, donate_argnums=0, out_shardings=None if shardings is None else (shardings, None))


def make_gradients(method: Method, axis: str | None, *, seed: int, microbatches: int = 1,
                   augment: Callable = lambda batch: batch) -> Callable:
    """`(state, batch) -> (loss, gradients, extra, metrics, ctx)` within a `shard_map` over `axis`.

    Arguments are those of `make_step`. All but `ctx` are of the whole batch and replicated: the gradients are summed over
    devices, once.
    """
    def gradients(state: TrainState, batch):
        ctx = Ctx(state.step, jax.random.fold_in(jax.random.key(seed), state.step), axis)
        # Each device differentiates its own copy; gradients then meet in the one psum below.
        params = dist.varying(state.params, axis)

        def objective(params, extra, outputs, labels):
            loss, aux = method.criterion(params, extra, _join(outputs, labels), ctx)
            return dist.pmean(loss, axis), aux

        def criterion_gradient(extra, outputs, labels):
            return jax.value_and_grad(objective, argnums=(0, 2), has_aux=True)(params, extra, outputs, labels)

        def forward(params, extra, rows):
            outputs, extra = method.forward(params, extra, rows, ctx)
            outputs, labels = _split(outputs)  # integers and booleans carry no gradient
            return outputs, (labels, extra)

        if microbatches == 1:
            rows = augment(batch)
            outputs, pull, (labels, extra) = jax.vjp(lambda p: forward(p, state.extra, rows), params, has_aux=True)
            (loss, (extra, metrics)), (grads, cotangent) = criterion_gradient(extra, outputs, labels)
            grads = _add(grads, *pull(cotangent))
        else:
            pieces = jax.tree.map(lambda x: x.reshape(microbatches, -1, *x.shape[1:]), batch)

            def keep_outputs(extra, rows):
                outputs, (labels, extra) = forward(params, extra, augment(rows))
                return extra, (outputs, labels)

            def pull_back(carry, piece):
                extra, grads = carry  # `extra` passes from piece to piece as it did the first time
                rows, cotangent = augment(piece[0]), piece[1]
                _, pull, (_, extra) = jax.vjp(lambda p: forward(p, extra, rows), params, has_aux=True)
                return (extra, _add(grads, *pull(cotangent))), None

            extra, kept = lax.scan(keep_outputs, state.extra, pieces)
            outputs, labels = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), kept)
            (loss, (extra, metrics)), (grads, cotangent) = criterion_gradient(extra, outputs, labels)
            cotangent = jax.tree.map(lambda x: x.reshape(microbatches, -1, *x.shape[1:]), cotangent)
            (_, grads), _ = lax.scan(pull_back, (state.extra, grads), (pieces, cotangent))

        return loss, dist.psum(grads, axis), extra, dist.pmean(metrics, axis), ctx

    return gradients


def _split(tree):
    """A tree's inexact leaves and its others, each with None where the other has a leaf."""
    inexact = jax.tree.map(lambda x: x if jnp.issubdtype(x.dtype, jnp.inexact) else None, tree)
    other = jax.tree.map(lambda x: None if jnp.issubdtype(x.dtype, jnp.inexact) else x, tree)
    return inexact, other


def _join(inexact, other):
    return jax.tree.map(lambda a, b: b if a is None else a, inexact, other, is_leaf=lambda x: x is None)


def _add(a, b):
    return jax.tree.map(jnp.add, a, b)
