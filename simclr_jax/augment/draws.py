"""Random numbers of a row, by the row's own key: the same in any batch, on any device, and on the host.

The key of a row is fold_in(fold_in(key(seed), epoch), index); op j of view v draws from fold_in(fold_in(row key, v), j).
`simclr_jax.keys` draws the same numbers in NumPy.
"""
import jax


def row_keys(seed: int, ids):
    """key[n] of rows with ids u32[n, 2]: index and epoch."""
    run = jax.random.key(seed)
    return jax.vmap(lambda i: jax.random.fold_in(jax.random.fold_in(run, i[1]), i[0]))(ids)


def uniforms(keys, view: int, op: int, count: int):
    """f32[n, count] in [0, 1): the first numbers of op `op` of view `view` of rows with keys key[n]."""
    def one(key):
        return jax.random.uniform(jax.random.fold_in(jax.random.fold_in(key, view), op), (count,))
    return jax.vmap(one)(keys)
