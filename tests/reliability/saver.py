"""One of two processes that save one step after another until they are killed: `saver.py DIRECTORY FIRST PROCESS PORT`."""
import sys

import jax
import numpy as np

from simclr_jax import dist
from simclr_jax.train.checkpoint import Checkpoints

ROWS = 200_000


def main(directory, first, process, port):
    jax.distributed.initialize(f"localhost:{port}", 2, int(process))
    mesh = dist.make_mesh({"data": 2})
    spec = jax.sharding.PartitionSpec
    placed = {"whole": spec(), "halves": spec("data")}
    checkpoints = Checkpoints(directory, keep=2)
    for step in range(int(first) + 1, int(first) + 10_000):
        value = np.full(ROWS, step, np.float32)
        state = {name: jax.make_array_from_callback(value.shape, jax.sharding.NamedSharding(mesh, where), value.__getitem__)
                 for name, where in placed.items()}
        checkpoints.save(step, state, {"at": step})
        print("saved", step, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
