"""Which labelled examples a probe may see: stratified, seeded draws."""
import numpy as np

from simclr_jax.errors import UsageError


def holdout(labels: np.ndarray, *, fraction: float = 0.2, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Splits the training examples into a part to fit on and a part to choose hyperparameters on.

    Args:
      labels: i[n].
      fraction: share of each class held out, rounded, but at least one and never all of a class: a lone one is fitted on.
      seed: of the shuffle within each class.

    Returns:
      (fit i64[n_fit], val i64[n_val]): sorted positions, together every position once.

    Raises:
      UsageError: no class has two examples.
    """
    rng = np.random.default_rng([seed, 0])
    val = []
    for c in np.unique(labels):
        members = np.flatnonzero(labels == c)
        count = min(max(1, round(fraction * len(members))), len(members) - 1)
        val.append(rng.permutation(members)[:count])
    val = np.sort(np.concatenate(val)).astype(np.int64)
    if not len(val):
        raise UsageError(f"no class has 2 of the {len(labels)} training examples (one to fit on, one to choose l2 on); "
                         "give more examples")
    return np.setdiff1d(np.arange(len(labels)), val), val


def rows(labels: np.ndarray, fit: np.ndarray, wanted: int | str, *, draws: int = 10, seed: int = 0) -> list[np.ndarray]:
    """The labelled examples of every draw, as sorted positions in `labels`.

    Args:
      labels: i[m], of all training examples; fit: as `holdout` gives it: the positions to draw from.
      wanted: labels a class; or a share of all labels, "10%", which every class gives alike: at least one, and all it
        has where that is less; or "all" training examples, then as a single draw.

    Raises:
      UsageError: as `per_class` and `share`.
    """
    if wanted == "all":
        return [np.arange(len(labels))]
    if isinstance(wanted, str) and wanted.endswith("%"):
        n = max(1, round(share(wanted) * len(labels) / len(np.unique(labels))))
        return [fit[d] for d in per_class(labels[fit], n, draws=draws, seed=seed, short=True)]
    if not isinstance(wanted, int):
        raise UsageError(f"labels_per_class={wanted!r} given, wanted a whole number, a share such as 10% or \"all\"")
    return [fit[d] for d in per_class(labels[fit], wanted, draws=draws, seed=seed)]


def share(text: str) -> float:
    """"10%" as .1.

    Raises:
      UsageError: no number, or a share that no draw can have.
    """
    try:
        percent = float(text.removesuffix("%")) if text.endswith("%") else -1.0
    except ValueError:
        percent = -1.0
    if not 0 < percent <= 80:
        raise UsageError(f"labels: {text!r}, wanted a share above 0 and up to 80% (a fifth is held out, to choose by), or "
                         "all")
    return percent / 100


def per_class(labels: np.ndarray, n: int, *, draws: int = 10, seed: int = 0, short: bool = False) -> list[np.ndarray]:
    """`draws` independent sets of `n` examples of every class, without repeats within a set.

    Draw i depends on (seed, n, i) only, not on how many draws are asked for.

    Args:
      labels: i[m]; short: whether a class that has fewer gives all it has.

    Returns:
      `draws` arrays i64[n * classes], or less if short, of positions in `labels`, sorted.

    Raises:
      UsageError: a class with fewer than `n` examples, or n or draws below 1.
    """
    if n < 1 or draws < 1:
        raise UsageError(f"got labels_per_class={n}, draws={draws}; wanted both at least 1")
    classes, counts = np.unique(labels, return_counts=True)
    if counts.min() < n and not short:
        short = classes[counts.argmin()]
        raise UsageError(f"labels_per_class={n} asked, but class {short} has only {counts.min()} labelled training "
                         f"examples to draw from; ask for at most {counts.min()}")
    result = []
    for i in range(draws):
        rng = np.random.default_rng([seed, n, i])
        result.append(np.sort(np.concatenate([rng.permutation(np.flatnonzero(labels == c))[:n] for c in classes])))
    return result
