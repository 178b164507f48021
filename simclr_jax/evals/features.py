"""From an `embed` function and a stream of image batches to one array of features."""
from typing import Any, Callable, Iterable, Mapping

import numpy as np

from simclr_jax.errors import UsageError


def extract(embed: Callable, batches: Iterable[Mapping[str, Any]], *, batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Embeds every example of `batches` once, in order.

    A batch shorter than `batch` is padded by repeating its last image, so that `embed` compiles for one shape only
    (and can split it over devices that divide `batch`); the padding is dropped again. The result of a batch is
    fetched after the next one has been dispatched, so the accelerator works while the host decodes.

    Args:
      embed: f32[batch,H,W,3] -> f32[batch,D], any callable on numpy arrays (jitted, sharded or neither). Rows must
        not depend on each other (evaluation mode).
      batches: dicts {"image": f32[n,H,W,3], "label": i32[n]} with n <= batch, as `data.examples` gives them.
        With several processes give every process all examples, or gather what each returns.
      batch: rows `embed` is called with.

    Returns:
      (features f32[n,D], labels i32[n]); a label is -1 where there is none.

    Raises:
      UsageError: no examples, a batch longer than `batch`, or features that are not f32[batch,D].
    """
    features, labels, waiting = [], [], None
    for item in batches:
        image, label = np.asarray(item["image"]), np.asarray(item["label"], np.int32)
        n = len(image)
        if n > batch:
            raise UsageError(f"features.extract got a batch of {n} rows, wanted at most {batch}; raise `batch`")
        if n == 0:
            continue
        if n < batch:
            image = np.concatenate([image, np.repeat(image[-1:], batch - n, axis=0)])
        out = embed(image)
        if getattr(out, "ndim", None) != 2 or len(out) != batch:
            raise UsageError(f"embed gave an array of shape {getattr(out, 'shape', None)} for {batch} images, "
                             f"wanted ({batch}, D): one vector an image")
        labels.append(label)
        if waiting is not None:
            features.append(_fetch(*waiting))
        waiting = (out, n)
    if waiting is None:
        raise UsageError("features.extract got no examples; check the source and its split")
    features.append(_fetch(*waiting))
    return np.concatenate(features), np.concatenate(labels)


def _fetch(out, n):
    return np.asarray(out)[:n].astype(np.float32)
