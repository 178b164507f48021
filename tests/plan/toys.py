"""A method small enough to count by hand: z = x W of rows of 4 numbers into 3, and the mean of their squares."""
import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec as P

from simclr_jax import dist
from simclr_jax.train import guard
from simclr_jax.train.step import make_step
from simclr_jax.types import Method, TrainState

IN, OUT = 4, 3


def method():
    def forward(params, extra, batch, ctx):
        return {"z": batch["x"] @ params["W"]}, extra

    def criterion(params, extra, outputs, ctx):
        return jnp.mean(outputs["z"] ** 2), (extra, {})
    return Method(None, forward, criterion, None)


def traced(mesh, rows, microbatches=1):
    """Its step of so many rows on the mesh, traced."""
    tx = optax.sgd(0.1)
    params = {"W": jnp.zeros((IN, OUT))}
    state = TrainState(jnp.int32(0), params, tx.init(params), {}, guard.new())
    place = lambda x, spec: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))
    state = jax.tree.map(lambda x: place(x, P()), state)
    step = make_step(method(), tx, mesh, seed=0, microbatches=microbatches)
    return step.trace(state, {"x": place(jnp.zeros((rows, IN)), P(dist.DATA))})
