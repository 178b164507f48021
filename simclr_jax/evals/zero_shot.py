"""Zero-shot classification: an image's class is the one whose sentences lie nearest to it (Radford et al. 2021)."""
import itertools
from typing import Any, Callable, Sequence

import numpy as np

from simclr_jax.errors import UsageError
from simclr_jax.evals import retrieval


def classifier(embed_text: Callable, encode: Callable, names: Sequence[str], templates: Sequence[str], *,
               batch: int = 256) -> np.ndarray:
    """f32[C,D]: one unit-length vector a class, the mean of the unit-length embeddings of its sentences.

    As in openai/CLIP notebooks/Prompt_Engineering_for_ImageNet.ipynb: normalised before the mean and after it. The
    sentences stream through in order, class by class, and only the classes' sums are kept.

    Args:
      embed_text: i32[batch,L] -> f32[batch,D]. Rows must not depend on each other; a short last batch is padded by
        repeating its last row.
      encode: list of n str -> i32[n,L], n at most `batch`.
      names: of classes 0, 1, ...
      templates: `str.format` strings with one {}; see `templates.read`.
      batch: rows `embed_text` is called with.

    Raises:
      UsageError: no names or templates, embeddings that are not f32[batch,D] or not finite.
    """
    if not len(names) or not len(templates) or batch < 1:
        raise UsageError(f"zero_shot: {len(names)} class names, {len(templates)} templates, batch={batch}; wanted at "
                         "least one of each")
    sentences = ((c, t.format(name)) for c, name in enumerate(names) for t in templates)
    total, waiting = None, None
    while part := list(itertools.islice(sentences, batch)):
        ids = np.asarray(encode([text for _, text in part]), np.int32)
        out = embed_text(np.concatenate([ids, np.repeat(ids[-1:], batch - len(part), axis=0)]))
        if getattr(out, "ndim", None) != 2 or len(out) != batch:
            raise UsageError(f"embed_text gave an array of shape {getattr(out, 'shape', None)} for {batch} texts, "
                             f"wanted ({batch}, D): one vector a text")
        total = np.zeros((len(names), out.shape[1])) if total is None else total
        if waiting is not None:  # fetched after the next one is dispatched, so that host and accelerator overlap
            _add(total, *waiting)
        waiting = (out, [c for c, _ in part])
    _add(total, *waiting)
    return _unit(total).astype(np.float32)


def predict(image_features: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """i32[n]: the class of highest cosine similarity for each row of image_features[n,D] (the lower one on a tie)."""
    return retrieval.search(image_features, weights, 1).index[:, 0]


def score(image_features: np.ndarray, labels: np.ndarray, weights: np.ndarray, *, step: int, features: str,
          names: Sequence[str], templates: int) -> dict[str, Any]:
    """The record of zero-shot classification of one test set.

    An image is right at k if fewer than k other classes are at least as similar to it as its own: of equals (within
    1e-6) its own comes last, so a collapsed encoder scores 0. Classes of one name are the exception, as nothing can
    tell them apart: the first of them comes first, as argmax has it (OpenAI's names of ImageNet's 1000 classes have two
    such pairs).

    Args:
      image_features: f32[n,D], of any length; normalised in blocks.
      labels: i[n], in [0, C).
      weights: f32[C,D], of `classifier`.
      step: optimiser step the features come from; features: their kind; names: of the C classes; templates: how many
        sentences a class had. Copied into the record (of the names, how many).

    Returns:
      eval "zero_shot", features, labels_per_class 0, accuracy (top 1, in [0,1]), top5 (None with five classes or
      fewer), mean_per_class (mean of the recall of the classes that the test set has), std 0, draws 1, step, chance
      (accuracy of always naming the commonest class), n_train 0, n_test, classes, templates.

    Raises:
      UsageError: unlabelled images, a label without a name, other shapes, features that are not finite.
    """
    x, weights = retrieval.matrix(image_features, features), retrieval.matrix(weights, "class")
    labels, classes = _labels(labels, features, len(x)), len(weights)
    if len(names) != classes:
        raise UsageError(f"zero_shot: {len(names)} class names for {classes} class vectors; wanted one name each")
    if labels.max() >= classes:
        raise UsageError(f"zero_shot: the test set has label {labels.max()} but there are {classes} class names, for "
                         f"labels 0..{classes - 1}; give the names of this test set's classes, in its order")
    if x.shape[1] != weights.shape[1]:
        raise UsageError(f"zero_shot: image features have {x.shape[1]} columns and class vectors {weights.shape[1]}; "
                         "wanted embeddings of one space")
    _, first, same = np.unique(np.asarray(names), return_index=True, return_inverse=True)
    _, rank = retrieval.rivals(weights[first[same]], x, labels)
    later = np.array([np.sum(same[c + 1:] == same[c]) for c in range(classes)])
    rank = rank - later[labels]
    count = np.bincount(labels, minlength=classes)
    recall = np.bincount(labels[rank == 0], minlength=classes)[count > 0] / count[count > 0]
    return dict(eval="zero_shot", features=features, labels_per_class=0, accuracy=float(np.mean(rank == 0)),
                top5=float(np.mean(rank < 5)) if classes > 5 else None, mean_per_class=float(np.mean(recall)), std=0.0,
                draws=1, step=int(step), chance=float(count.max() / len(x)), n_train=0, n_test=len(x), classes=classes,
                templates=int(templates))


def _labels(labels, features, n):
    labels = np.asarray(labels)
    if labels.shape != (n,) or not np.issubdtype(labels.dtype, np.integer):
        raise UsageError(f"{features}: labels are {labels.dtype}{list(labels.shape)} for {n} images; wanted integers "
                         f"[{n}]")
    if labels.min() < 0:
        raise UsageError(f"{features}: {int(np.sum(labels < 0))} of {n} images have no label; zero-shot evals need a "
                         "labelled test set")
    return labels


def _add(total, out, classes):
    """Adds the unit-length rows of out[batch,D] to the sums of their classes; rows past `classes` are padding."""
    x = np.asarray(out)[:len(classes)].astype(np.float64)
    if not np.isfinite(x).all():
        raise UsageError("embed_text gave values that are not finite; has training diverged?")
    np.add.at(total, classes, _unit(x))


def _unit(x):
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-6)
