"""Numbers that tell a collapsed representation from a healthy one, all without labels.

Each is a few operations on a matrix of features, works under `jit`, and has a value known in closed form at both ends.
"""
import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array


def normalize(x: Array) -> Array:
    """f32[n,D] with rows of unit length (squared norm clamped at 1e-12)."""
    x = jnp.asarray(x, jnp.float32)
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), 1e-12))


def spread(x: Array) -> Array:
    """f32[]: standard deviation of a coordinate of the unit-length rows of x[n,D], averaged over D, times sqrt(D).

    0 when every row is the same, about 1 when directions are uniform. SimSiam (Chen & He 2021, section 4.1) plots it
    without the factor sqrt(D), which only makes it comparable between widths.
    """
    z = normalize(x)
    return jnp.mean(jnp.std(z, axis=0)) * jnp.sqrt(z.shape[1])


def effective_rank(x: Array) -> Array:
    """f32[], between 1 and min(n, D): exp of the entropy of the singular values of x[n,D], divided by their sum.

    RankMe (Garrido et al. 2023, eq. 1), with its 1e-7 inside. Not centred, so a constant encoder has rank 1.
    """
    s = jnp.linalg.svd(jnp.asarray(x, jnp.float32), compute_uv=False)
    p = s / jnp.maximum(jnp.sum(s), 1e-12) + 1e-7
    return jnp.exp(-jnp.sum(p * jnp.log(p)))


def alignment(x: Array, y: Array) -> Array:
    """f32[] in [0,4]: mean squared distance of the unit-length rows of x[n,D] and y[n,D], two views of n examples.

    Wang & Isola (2020), section 4.1 with alpha = 2.
    """
    return jnp.mean(jnp.sum((normalize(x) - normalize(y)) ** 2, axis=-1))


def uniformity(x: Array) -> Array:
    """f32[] in [-8,0]: log of the mean over pairs i<j of exp(-2 |x_i - x_j|^2), for the unit-length rows of x[n,D].

    0 when all rows are equal; lower is more uniform. Wang & Isola (2020), section 4.1 with t = 2. Makes an n x n
    matrix.
    """
    z = normalize(x)
    n = z.shape[0]
    distance = jnp.maximum(2.0 - 2.0 * jnp.matmul(z, z.T, precision="highest"), 0.0)
    return jax.nn.logsumexp(jnp.where(jnp.eye(n, dtype=bool), -jnp.inf, -2.0 * distance)) - jnp.log(n * (n - 1.0))


def report(x: np.ndarray, *, rows: int = 2048) -> dict[str, float]:
    """`spread`, `effective_rank` and `uniformity` of at most `rows` rows of x[n,D], taken evenly, by name."""
    x = jnp.asarray(x[np.linspace(0, len(x) - 1, min(rows, len(x))).astype(int)])
    return {f.__name__: float(f(x)) for f in (spread, effective_rank, uniformity)}
