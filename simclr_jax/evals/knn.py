"""Weighted k-nearest-neighbour classification of frozen features: no training, nothing to tune."""
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from simclr_jax.evals import health


class Setting(NamedTuple):
    k: int
    temperature: float


# DINO's eval_knn.py reports k = 10, 20, 100 and 200 at T = 0.07 (its README quotes the 20); lightly's benchmarks use
# k = 200 at T = 0.1.
SETTINGS = {"dino": Setting(20, 0.07), "dino10": Setting(10, 0.07), "dino100": Setting(100, 0.07),
            "dino200": Setting(200, 0.07), "lightly": Setting(200, 0.1)}


class Neighbours(NamedTuple):
    index: np.ndarray  # i32[n,k]: rows of the training features; of equal ones the lower first
    similarity: np.ndarray  # f32[n,k]: cosine, falling along a row


def neighbours(train_x: np.ndarray, test_x: np.ndarray, *, k: int, train_chunk: int = 16384,
               test_chunk: int = 1024) -> Neighbours:
    """The k training rows of highest cosine similarity to each test row, exactly.

    Training rows stream through the device `train_chunk` at a time and only the best k so far are kept: the largest
    array is f32[test_chunk, train_chunk + k], whatever the sizes of the sets.

    Args:
      train_x: f32[m,D], of any length; normalised here.
      test_x: f32[n,D], likewise.
      k: neighbours a row; cut to m.
    """
    m, n = len(train_x), len(test_x)
    k, train_chunk, test_chunk = min(k, m), min(train_chunk, m), min(test_chunk, n)
    tests = [jnp.asarray(rows(test_x, i, test_chunk)) for i in range(0, n, test_chunk)]
    best = [(jnp.zeros((test_chunk, k), jnp.int32), jnp.full((test_chunk, k), -jnp.inf)) for _ in tests]
    for start in range(0, m, train_chunk):
        chunk = jnp.asarray(rows(train_x, start, train_chunk))
        best = [_better(*b, t, chunk, start, m) for b, t in zip(best, tests)]
    return Neighbours(*(np.concatenate([np.asarray(b[i]) for b in best])[:n] for i in (0, 1)))


def votes(near: Neighbours, train_y: np.ndarray, *, temperature: float, classes: int) -> np.ndarray:
    """f32[n,classes]: sum of exp(similarity / T) over the neighbours of each class, divided by the row's largest term.

    Wu et al. (2018), section 3.4; the division leaves the order and cannot overflow at a small T.
    """
    weight = np.exp((near.similarity - near.similarity[:, :1]) / temperature)
    result = np.zeros((len(weight), classes), np.float32)
    np.add.at(result, (np.arange(len(weight))[:, None], np.asarray(train_y)[near.index]), weight)
    return result


def predict(train_x, train_y, test_x, *, setting: Setting = SETTINGS["dino"], classes: int) -> np.ndarray:
    """i32[n]: the class with most votes for each test row (the lower one on a tie); see `neighbours` and `votes`."""
    near = neighbours(train_x, test_x, k=setting.k)
    return votes(near, train_y, temperature=setting.temperature, classes=classes).argmax(axis=1).astype(np.int32)


def rows(x, start, size):
    """f32[size,D]: a slice, padded with zeros at the end of the array so that every chunk has one shape."""
    part = np.asarray(x[start:start + size], np.float32)
    return part if len(part) == size else np.concatenate([part, np.zeros((size - len(part), x.shape[1]), np.float32)])


@jax.jit
def _better(index, similarity, test, chunk, start, m):
    """Merges one chunk of training rows into the best k found so far; rows past m are padding and never win."""
    new = jnp.matmul(health.normalize(test), health.normalize(chunk).T, precision="highest")
    rows = start + jnp.arange(chunk.shape[0], dtype=jnp.int32)
    new = jnp.where(rows < m, new, -jnp.inf)
    both = jnp.concatenate([similarity, new], axis=1)
    rows = jnp.concatenate([index, jnp.broadcast_to(rows, new.shape)], axis=1)
    top, at = jax.lax.top_k(both, similarity.shape[1])
    return jnp.take_along_axis(rows, at, axis=1), top
