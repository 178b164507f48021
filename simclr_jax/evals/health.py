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


SHOWN = "spread", "alignment", "uniformity", "effective_rank", "entropy", "usage", "queue_age"
SPREAD, RANK, NEAR, LINES = 0.05, 1.5, 0.01, 5  # see Guard


class Guard:
    """Reads what a run logs and says, once for each reason, that it has collapsed or does not get away from its start.

    Collapsed: spread below 0.05 (about 1 where directions are uniform), effective rank below 1.5, or rows that use fewer
    than one and a half of K prototypes. At its plateau: after a tenth of the run, the loss of five log lines in a row was
    within 1% of `chance`, that of a net which tells nothing apart (ln 2N, ln K; of prototypes: the cross entropy, entropy
    + kl).

    Args:
      total: steps of the run.
    """

    def __init__(self, total: int):
        self.total, self.said, self.near = total, set(), 0

    def __call__(self, step: int, numbers: dict[str, float]) -> tuple[str, list[str]]:
        """What to add to the log's line, "" if there is nothing, and new warnings.

        Args:
          numbers: of a log line or an evaluation, by names such as "train/loss", "train/spread", "eval/effective_rank".
        """
        n = {name.split("/")[-1]: value for name, value in numbers.items()}
        shown = "  ".join(f"{name.replace('_', ' ')} {n[name]:.3g}" for name in SHOWN if name in n)
        if "loss" in n and "chance" in n:
            value = n["entropy"] + n["kl"] if "kl" in n else n["loss"]
            self.near = self.near + 1 if abs(value / n["chance"] - 1) < NEAR else 0
        found = {
            "spread": n.get("spread", 1) < SPREAD and
            f"collapsed: all examples get nearly one embedding (spread {n.get('spread', 1):.3g}, 1 if even)",
            "rank": n.get("effective_rank", 2) < RANK and
            f"collapsed: embeddings lie on one line (effective rank {n.get('effective_rank', 2):.3g})",
            "usage": "usage" in n and n["usage"] * np.exp(n["chance"]) < RANK and
            f"collapsed: all examples choose one prototype (usage {n.get('usage', 1):.3g} of {np.exp(n.get('chance', 0)):.0f} "
            "prototypes)",
            "plateau": self.near >= LINES and step >= 0.1 * self.total and
            f"at its plateau: {LINES} log lines in a row at {n.get('chance', 0):.4g}, the loss of a net that tells nothing "
            "apart",
        }
        new = [reason for reason, text in found.items() if text and reason not in self.said]
        self.said |= set(new)
        advice = "; try a lower config.optim.lr, a longer warm-up, or the method's temperature and momentum"
        return shown, [f"step {step}: {found[reason]}{advice}" for reason in new]
