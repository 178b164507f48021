"""From a linen module to the `Net` that methods see."""
import itertools
import math

import jax
import jax.numpy as jnp
from flax import linen as nn

from simclr_jax.errors import UsageError
from simclr_jax.types import Net

STATS = "batch_stats"
CUT = 0.87962566103423978  # standard deviation of a normal number cut off at 2
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def compute_dtype(name: str, where: str):
    """The dtype that convolutions and products run in; parameters, statistics and outputs are f32 in any case.

    Raises:
      UsageError: not a name in `DTYPES`.
    """
    if name not in DTYPES:
        raise UsageError(f"{where}: dtype={name!r}, wanted {' or '.join(DTYPES)}")
    return DTYPES[name]


def fan_in(scale: float):
    """Initialiser for `net`: the standard deviation sqrt(scale / fan-in), everywhere."""
    return lambda key, shape, dtype=jnp.float32: jnp.full(shape, math.sqrt(scale / math.prod(shape[:-1])), dtype)


def net(module: nn.Module, *, truncate: bool = True) -> Net:
    """The two functions of a module whose `__call__(x, train)` returns {"pooled": f32[b,D], "tokens": f32[b,N,D]}.

    The module's initialisers are not random. They fill each leaf called "kernel" with its standard deviation, and
    `init` multiplies it by normal numbers of mean 0 and variance 1, cut off at two standard deviations (before the
    variance is made 1, as in Keras and Flax) if `truncate`. All of a net's are drawn at once: XLA takes most of a
    second to compile a draw, so a kernel at a time a ResNet-18 took 15 s to start and so takes 1 s.

    `init` looks at x's shape and dtype only; a ShapeDtypeStruct will do. `stats` is the running batch statistics, {}
    where the module has none. Such nets draw nothing at random when applied and look at every position: `key` and
    `mask` change nothing.
    """

    def init(key, x):
        one = jnp.zeros((1, *x.shape[1:]), x.dtype)  # no parameter's shape depends on the number of rows
        variables = module.init(key, one, train=False)
        flat, treedef = jax.tree_util.tree_flatten_with_path(variables["params"])
        kernels = [leaf.size if path[-1].key == "kernel" else 0 for path, leaf in flat]
        if truncate:
            draw = jax.random.truncated_normal(key, -2.0, 2.0, (sum(kernels),)) / CUT
        else:
            draw = jax.random.normal(key, (sum(kernels),))
        leaves = [leaf * part.reshape(leaf.shape) if n else leaf
                  for (_, leaf), n, part in zip(flat, kernels, jnp.split(draw, list(itertools.accumulate(kernels))))]
        return jax.tree.unflatten(treedef, leaves), variables.get(STATS, {})

    def apply(params, stats, x, *, train, key=None, mask=None):
        del key, mask
        variables = {"params": params, STATS: stats}
        if not train:
            return module.apply(variables, x, train=False), stats
        out, changed = module.apply(variables, x, train=True, mutable=[STATS])
        return out, changed.get(STATS, stats)

    # Compiled in one piece: run eagerly, every operation of a deep net would be compiled by itself.
    return Net(lambda key, x: jax.jit(lambda key: init(key, x))(key), apply)
