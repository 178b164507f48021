"""Where a state lies on a mesh: big parameters spread over its `model` axis, with the optimiser's state and teachers.

What a step computes does not depend on it: the compiler moves what a product needs. A rule of shapes alone decides, so a
checkpoint is read into the layout of any other mesh.
"""
import math

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

from simclr_jax import dist
from simclr_jax.types import TrainState

LEAST = 2 ** 16  # numbers; smaller ones (norms, biases, temperatures) would cost more in messages than they take


def spec(shape: tuple[int, ...], model: int, least: int = LEAST) -> P:
    """How an array of `shape` is cut in `model` parts: along its longest dimension that they divide, of equal ones the
    last (the outputs of a product), or not at all.

    >>> [tuple(spec(shape, 4, least=1)) for shape in ((1024, 4096), (1000, 30), (3, 5, 77))], tuple(spec((64,), 4))
    ([(None, 'model'), ('model', None), ()], ())
    """
    fits = [(n, i) for i, n in enumerate(shape) if n % model == 0]
    if model == 1 or not fits or math.prod(shape) < least:
        return P()
    at = max(fits)[1]
    return P(*(dist.MODEL if i == at else None for i in range(len(shape))))


def of(shapes: TrainState, mesh: Mesh, *, least: int = LEAST) -> TrainState:
    """A tree like the state's of NamedShardings.

    Parameters follow `spec`. Of the rest, a leaf of the shape of a parameter that is cut is cut in the same way: momenta,
    and teachers of the student's form, so that updating them moves nothing. All else, such as batch statistics and queues,
    is whole on every device.

    Args:
      shapes: arrays or ShapeDtypeStructs; mesh: with or without a `model` axis.
      least: size from which an array is cut.
    """
    model = mesh.shape.get(dist.MODEL, 1)
    cut = {x.shape: spec(x.shape, model, least) for x in jax.tree.leaves(shapes.params)}
    return jax.tree.map(lambda x: NamedSharding(mesh, cut.get(x.shape, P())), shapes)


def bytes_here(tree) -> int:
    """Bytes that the arrays of a tree take on the first of this process's devices that hold any."""
    return sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(tree))
