"""From a linen module to the `Net` that methods see."""
import inspect
import itertools
import math
import re
from typing import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from simclr_jax.errors import UsageError
from simclr_jax.names import near
from simclr_jax.types import Net

STATS = "batch_stats"
SEEN = "intermediates"  # what linen calls the outputs of modules
KEPT = "moments"  # what `remade` keeps for the backward pass besides its input
CUT = 0.87962566103423978  # standard deviation of a normal number cut off at 2
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
DRAWN = ("kernel", "embedding")  # names of the leaves that `net` draws; all others start as their initialiser says
DRAWS = {  # numbers of mean 0 and variance 1
    "truncated": lambda key, n: jax.random.truncated_normal(key, -2.0, 2.0, (n,)) / CUT,
    "normal": lambda key, n: jax.random.normal(key, (n,)),
    "uniform": lambda key, n: jax.random.uniform(key, (n,), minval=-math.sqrt(3), maxval=math.sqrt(3)),
}


def compute_dtype(name: str, where: str):
    """The dtype that convolutions and products run in; parameters, statistics and outputs are f32 in any case.

    Raises:
      UsageError: not a name in `DTYPES`.
    """
    if name not in DTYPES:
        raise UsageError(f"{where}: dtype={name!r}, wanted {' or '.join(DTYPES)}")
    return DTYPES[name]


def wide(x):
    """The dtype of outputs, norms and sums for x: f32, or f64 where x is."""
    return jnp.promote_types(x.dtype, jnp.float32)


def products(dtype, x):
    """The dtype of products with x: that of the net, or f64 where x is."""
    return x.dtype if x.dtype == jnp.float64 else dtype


def fan_in(scale: float):
    """Initialiser for `net`: the standard deviation sqrt(scale / fan-in), everywhere."""
    return lambda key, shape, dtype=jnp.float32: jnp.full(shape, math.sqrt(scale / math.prod(shape[:-1])), dtype)


def remade(target, remat: bool, *, static: tuple = (), in_scan: bool = False):
    """`target`, a module or a function of one, or with `remat` the same without memory of what happens inside.

    Its activations are made again in the backward pass from its input (Chen et al. 2016, arXiv:1604.06174), but for what
    is named `KEPT`: the moments of batch normalisation, a number a channel, so that no device has to be asked twice.

    Args:
      static: positions of arguments that are no arrays, the module itself being 0. in_scan: a loop runs it.
    """
    if not remat:
        return target
    return nn.remat(target, prevent_cse=not in_scan, static_argnums=static,
                    policy=jax.checkpoint_policies.save_only_these_names(KEPT))


class Embedding(nn.Module):
    """A table f32[shape] under the name "embedding", so that `net` draws it."""

    shape: tuple
    std: float

    @nn.compact
    def __call__(self):
        return self.param("embedding", nn.initializers.constant(self.std), self.shape, jnp.float32)


def net(module: nn.Module, *, draw: str | Callable = "truncated") -> Net:
    """The two functions of a module whose `__call__(x, train)` returns {"pooled": f32[b,D], "tokens": f32[b,N,D]}.

    The module's initialisers are not random. They fill each leaf called "kernel" or "embedding" with its standard
    deviation, and `init` multiplies it by numbers of mean 0 and variance 1. All of a net's are drawn at once: XLA takes
    most of a second to compile a draw, so a kernel at a time a ResNet-18 took 15 s to start and so takes 1 s.

    `init` looks at x's shape and dtype only; a ShapeDtypeStruct will do. `stats` is the running batch statistics, {}
    where the module has none. `key` (one PRNG key a row) and `mask` reach modules whose `__call__` has parameters of
    those names; other nets draw nothing at random when applied and look at every position.

    `layers` gives, in evaluation mode, the outputs of the modules named by `names`: paths in the tree of parameters,
    such as "stem", "stage1" or "stack/block3/attention/qkv", from which attention can be drawn. Where blocks are
    stacked for a scan, "stack/block3" is found in "stack/blocks", whose own output is that of all blocks, [depth, ...].
    A name that the tree does not have is a UsageError.

    Args:
      draw: "truncated": normal numbers cut off at two standard deviations (before the variance is made 1, as in Keras
        and Flax). "normal": not cut. "uniform". Or a function from a leaf's path, a tuple of names, to one of these.
    """
    kind_of = draw if callable(draw) else lambda path: draw
    takes = [name for name in ("key", "mask") if name in inspect.signature(type(module).__call__).parameters]

    def init(key, x):
        one = jnp.zeros((1, *x.shape[1:]), x.dtype)  # no parameter's shape depends on the number of rows
        variables = module.init(key, one, train=False)
        flat, treedef = jax.tree_util.tree_flatten_with_path(variables["params"])
        paths, leaves = [tuple(k.key for k in path) for path, _ in flat], [leaf for _, leaf in flat]
        kinds = [kind_of(path) if path[-1] in DRAWN else None for path in paths]
        used = [kind for kind in DRAWS if kind in kinds]
        for n, kind in enumerate(used):
            # Keys differ by kind: one key's uniform and normal numbers are functions of the same bits.
            of_kind = [i for i in range(len(leaves)) if kinds[i] == kind]
            sizes = [leaves[i].size for i in of_kind]
            numbers = DRAWS[kind](key if len(used) == 1 else jax.random.fold_in(key, n), sum(sizes))
            for i, part in zip(of_kind, jnp.split(numbers, list(itertools.accumulate(sizes[:-1])))):
                leaves[i] = leaves[i] * part.reshape(leaves[i].shape)
        return jax.tree.unflatten(treedef, leaves), variables.get(STATS, {})

    def apply(params, stats, x, *, train, key=None, mask=None):
        given = {name: value for name, value in (("key", key), ("mask", mask)) if name in takes}
        variables = {"params": params, STATS: stats}
        if not train:
            return module.apply(variables, x, train=False, **given), stats
        out, changed = module.apply(variables, x, train=True, **given, mutable=[STATS])
        return out, changed.get(STATS, stats)

    def layers(params, stats, x, names, *, mask=None):
        where = {name: _place(params, name) for name in names}
        wanted = {place for place, _ in where.values()}
        given = {"mask": mask} if mask is not None and "mask" in takes else {}
        keep = lambda module, method: method == "__call__" and "/".join(module.path) in wanted
        _, seen = module.apply({"params": params, STATS: stats}, x, train=False, **given, mutable=[SEEN],
                               capture_intermediates=keep)
        return {name: _output(seen[SEEN], *place) for name, place in where.items()}

    # Compiled in one piece: run eagerly, every operation of a deep net would be compiled by itself.
    return Net(lambda key, x: jax.jit(lambda key: init(key, x))(key), apply, layers)


def _place(params, name: str) -> tuple[str, int | None]:
    """Where the module `name` is: (its path, None), or (the path in a stack of blocks, which of them)."""
    leaves = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf
              for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    modules = {leaf[:i] for leaf in leaves for i, c in enumerate(leaf) if c == "/"}
    if name in modules:
        return name, None
    stacked = re.sub(r"(^|/)block\d+(?=/|$)", r"\1blocks", name)
    if stacked in modules:
        depth = next(leaf.shape[0] for path, leaf in leaves.items() if path.startswith(stacked + "/"))
        n = int(re.search(r"block(\d+)", name)[1])
        if 0 < n <= depth:
            return stacked, n - 1
    raise UsageError(f"this net has no layer {name!r}{near(name, modules)}")


def _output(seen, path: str, n: int | None):
    for part in path.split("/"):
        seen = seen[part]
    y = seen["__call__"][0]  # of its first call
    y = y[0] if isinstance(y, tuple) else y  # of a block, beside what a scan collects
    return y if n is None else y[n]
