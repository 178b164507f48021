"""Image-text retrieval: recall at k in both directions, and search by a query.

The rank of what belongs to a row is the number of others that are at least as similar to it, so all that is needed is a
count, and that is added up tile by tile: neither a ranking nor an n x m matrix ever exists.
"""
from typing import Any, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from simclr_jax.errors import UsageError
from simclr_jax.evals import health, knn

# Cosines closer than this are equal. A product in float32 rounds by up to about 1e-7 and not alike everywhere in a
# matrix, which would otherwise put a collapsed encoder's own captions first by chance.
TIE = 1e-6


def ranks(image: np.ndarray, text: np.ndarray, owner: np.ndarray, *, image_chunk: int = 4096,
          text_chunk: int = 4096) -> tuple[np.ndarray, np.ndarray]:
    """Where each image's best caption, and each caption's image, stand among all by cosine similarity; 0 is first.

    Of equals (within 1e-6) one's own comes last, so a collapsed encoder has recall 0 and not 1. Other captions of an
    image never count against its best one, as in Karpathy & Fei-Fei (2015, arXiv:1412.2306).

    Args:
      image: f32[n,D], of any length; normalised here.
      text: f32[m,D], likewise.
      owner: i64[m], the row of `image` that each text belongs to. Every image has at least one.
      image_chunk, text_chunk: rows of a tile. Memory is O(image_chunk * text_chunk + (n + m) D).

    Returns:
      (image_to_text i64[n], text_to_image i64[m]).

    Raises:
      UsageError: other shapes, values that are not finite, an owner out of range, an image without a text.
    """
    image, text, owner = matrix(image, "image"), matrix(text, "text"), np.asarray(owner)
    if image.shape[1] != text.shape[1]:
        raise UsageError(f"retrieval: image features have {image.shape[1]} columns and text features {text.shape[1]}; "
                         "wanted embeddings of one space")
    if owner.shape != (len(text),) or not np.issubdtype(owner.dtype, np.integer):
        raise UsageError(f"retrieval: owner is {owner.dtype}{list(owner.shape)}, wanted integers [{len(text)}]: the "
                         "row of the image that each text belongs to")
    if owner.min() < 0 or owner.max() >= len(image):
        raise UsageError(f"retrieval: owner has values in {owner.min()}..{owner.max()}, wanted rows of the "
                         f"{len(image)} images, 0..{len(image) - 1}")
    alone = np.flatnonzero(np.bincount(owner, minlength=len(image)) == 0)
    if len(alone):
        raise UsageError(f"retrieval: {len(alone)} of {len(image)} images have no text, the first is row {alone[0]}; "
                         "leave them out")
    return rivals(image, text, owner, image_chunk=image_chunk, text_chunk=text_chunk)


def score(image: np.ndarray, text: np.ndarray, owner: np.ndarray, *, step: int, features: str,
          ks: Sequence[int] = (1, 5, 10)) -> dict[str, Any]:
    """The record of retrieval on one test set; see `ranks` for the arguments and errors.

    Returns:
      eval "retrieval", features (the kind), labels_per_class 0, step, n_images, n_texts; image_to_text and
      text_to_image: {"r1", "r5", ... (share of rows whose rank is below k, in [0,1]), "median_rank" (the first is 1)};
      chance: the same recalls of a random order, in expectation; accuracy: mean of both r1, chance_r1: of their chance.
    """
    image_rank, text_rank = ranks(image, text, owner)
    n, m = len(image_rank), len(text_rank)
    captions = np.bincount(np.asarray(owner), minlength=n)

    def of(rank):
        return {**{f"r{k}": float(np.mean(rank < k)) for k in ks}, "median_rank": float(np.median(rank)) + 1}

    def by_chance(k):
        # none of the first k of m texts is one of c: (m-c)/m * (m-c-1)/(m-1) * ...
        j = np.arange(min(k, m))[:, None]
        return (1 - float(np.mean(np.prod(np.maximum(m - captions - j, 0) / (m - j), axis=0)))), min(k, n) / n

    return dict(eval="retrieval", features=features, labels_per_class=0, step=int(step),
                image_to_text=of(image_rank), text_to_image=of(text_rank),
                chance={"image_to_text": {f"r{k}": by_chance(k)[0] for k in ks},
                        "text_to_image": {f"r{k}": by_chance(k)[1] for k in ks}},
                n_images=n, n_texts=m, accuracy=float(np.mean(image_rank == 0) + np.mean(text_rank == 0)) / 2,
                chance_r1=sum(by_chance(1)) / 2)


def search(query_features: np.ndarray, features: np.ndarray, k: int) -> knn.Neighbours:
    """The k rows of features[n,D] nearest to each row of query_features[q,D]: (index i32[q,k], similarity f32[q,k]).

    Cosine similarities, falling along a row; k is cut to n.

    Raises:
      UsageError: other shapes, values that are not finite, k below 1.
    """
    query, rows = matrix(query_features, "query"), matrix(features, "searched")
    if query.shape[1] != rows.shape[1] or k < 1:
        raise UsageError(f"search: queries have {query.shape[1]} columns, the features searched {rows.shape[1]}, "
                         f"k={k}; wanted embeddings of one space and k of at least 1")
    return knn.neighbours(rows, query, k=k)


def rivals(image, text, owner, *, image_chunk: int = 4096, text_chunk: int = 4096) -> tuple[np.ndarray, np.ndarray]:
    """The counting behind `ranks`, for arrays that have been checked; an image may be without a text.

    Returns:
      (i64[n], i64[m]): for each image, the texts of other images at least as similar to it as the best of its own (all
      if it has none); for each text, the other images at least as similar to it as its own.
    """
    n, m = len(image), len(text)
    image_chunk, text_chunk = min(image_chunk, n), min(text_chunk, m)
    starts = range(0, m, text_chunk)
    texts = [_unit(knn.rows(text, j, text_chunk)) for j in starts]
    owners = [_padded(np.asarray(owner, np.int32), j, text_chunk, -1) for j in starts]
    # Read off the tiles that hold them, so that they round as their rivals do; few tiles, if texts stand in order.
    own = [jnp.zeros(text_chunk) for _ in texts]
    for i in range(0, n, image_chunk):
        held = [c for c, o in enumerate(owners) if np.any((o >= i) & (o < i + image_chunk))]
        rows = _unit(knn.rows(image, i, image_chunk)) if held else None
        for c in held:
            own[c] = _own(own[c], rows, texts[c], owners[c], i)
    own = np.concatenate([np.asarray(o) for o in own])[:m]
    best = np.full(n, -np.inf, np.float32)
    np.maximum.at(best, owner, own)
    text_bars = [jnp.asarray(_padded(own - TIE, j, text_chunk, np.inf)) for j in starts]
    counts, of_images = [jnp.zeros(text_chunk, jnp.int32) for _ in texts], []
    for i in range(0, n, image_chunk):
        rows, bar = _unit(knn.rows(image, i, image_chunk)), jnp.asarray(_padded(best - TIE, i, image_chunk, np.inf))
        count = jnp.zeros(image_chunk, jnp.int32)
        for c, t in enumerate(texts):
            count, counts[c] = _tile(count, counts[c], rows, t, bar, text_bars[c], owners[c], i, n)
        of_images.append(np.asarray(count))
    of_texts = [np.asarray(c) for c in counts]
    return np.concatenate(of_images)[:n].astype(np.int64), np.concatenate(of_texts)[:m].astype(np.int64)


def matrix(x, what: str) -> np.ndarray:
    """f32[n,D], n at least 1 and every value finite; UsageError otherwise. `what` names it in messages."""
    x = np.asarray(x, np.float32)
    if x.ndim != 2 or not len(x):
        raise UsageError(f"{what} features have shape {x.shape}, wanted (n, D) with at least one row")
    bad = int(np.sum(~np.isfinite(x).all(axis=1)))
    if bad:
        raise UsageError(f"{what}: {bad} of {len(x)} feature rows are not finite; has training diverged?")
    return x


@jax.jit
def _tile(image_count, text_count, image, text, image_bar, text_bar, owner, start, n):
    """Both counts after one tile. Images from `n` on and texts of owner -1 are padding and rivals of no one."""
    similarity = jnp.matmul(image, text.T, precision="highest")
    rows = (start + jnp.arange(len(image), dtype=jnp.int32))[:, None]
    other = (rows < n) & (owner >= 0) & (owner != rows)
    return (image_count + jnp.sum(other & (similarity >= image_bar[:, None]), axis=1, dtype=jnp.int32),
            text_count + jnp.sum(other & (similarity >= text_bar), axis=0, dtype=jnp.int32))


@jax.jit
def _own(own, image, text, owner, start):
    """f32[text_chunk]: `own` with the similarity of each text whose image is in this tile to that image."""
    similarity = jnp.matmul(image, text.T, precision="highest")
    at = owner - start
    mine = similarity[jnp.clip(at, 0, len(image) - 1), jnp.arange(len(text))]
    return jnp.where((at >= 0) & (at < len(image)), mine, own)


_unit = jax.jit(health.normalize)


def _padded(x, start, size, fill):
    part = x[start:start + size]
    return np.concatenate([part, np.full(size - len(part), fill, x.dtype)])
