"""The protocol: which examples each classifier sees, how l2 is chosen, and one record for each number.

Same rules for every kind of feature, and the test set is used once, for the number reported:

  val    a fixed stratified fifth of the training examples. It chooses l2 and nothing is fitted on it.
  n, n%  labels per class, or a share of all labels, every class alike: `draws` stratified draws from the other four
         fifths. l2 is the strength of best mean accuracy on val over the draws (the stronger on a tie), one for each
         kind of feature and each n. So the choice of this one number sees more labels than the classifiers do; with one
         label a class nothing could be held out of the draw itself.
  "all"  l2 chosen by fitting on the four fifths, then fitted again on all training examples.

kNN has nothing to choose: the same draws vote, or all training examples. The SGD protocol has no l2: likewise. Nor has
fine-tuning, whose recipe is fixed (`finetune.py`).
"""
from typing import Any, Mapping, Sequence

import numpy as np

from simclr_jax.errors import UsageError
from simclr_jax.evals import draws as drawing
from simclr_jax.evals import knn, linear, sgd
from simclr_jax.names import near


def score(features_by_kind: Mapping[str, tuple], *, step: int, evals: Sequence[str] = ("knn", "linear"),
          labels_per_class: Sequence[int | str] = (1, 5, 10, 50, "all"), draws: int = 10, seed: int = 0,
          setting: knn.Setting = knn.SETTINGS["dino"], protocol: str = "lbfgs",
          l2s: Sequence[float] = linear.L2S) -> list[dict[str, Any]]:
    """Scores every kind of feature with every eval at every number of labels a class.

    Args:
      features_by_kind: {kind: (train_x f32[n,D], train_y i[n], test_x f32[m,D], test_y i[m])}. Kinds with the same
        train_y get the same draws.
      step: optimiser step the features come from; copied into the records.
      setting: of kNN. Where fewer examples vote than setting.k, all of them do, and the record's k says how many.
      protocol: of the linear probe, "lbfgs" or "sgd".
      l2s: strengths tried with "lbfgs".

    Returns:
      Records with eval, features (the kind), labels_per_class (int, a share such as "10%" or "all"), accuracy (mean over
      draws, in [0,1]), std (sample deviation over draws; 0 for a single one), draws, step, chance (accuracy on the test
      set of its commonest class), n_train (labelled examples a classifier saw), share (of all there are), n_test; for
      kNN k, k_asked, temperature; for the probe protocol and, with "lbfgs", l2.

    Raises:
      UsageError: unlabelled or empty sets, one class only, features that are not finite, too few labels to draw from,
        an unknown eval or protocol.
    """
    for name, known in [(e, tuple(EVALS)) for e in evals] + [(protocol, ("lbfgs", "sgd"))]:
        if name not in known:
            raise UsageError(f"evals: there is no {name!r}{near(str(name), known)}")
    records = []
    for kind, sets in features_by_kind.items():
        train_x, train_y, test_x, test_y, classes = _checked(kind, *sets)
        fit, val = drawing.holdout(train_y, seed=seed)
        options = dict(setting=setting, protocol=protocol, l2s=l2s, classes=classes, seed=seed)
        for n in labels_per_class:
            rows = drawing.rows(train_y, fit, n, draws=draws, seed=seed)
            for name in evals:
                guesses, details = EVALS[name](train_x, train_y, test_x, rows, fit=fit, val=val, **options)
                records.append(record(name, kind, n, [g == test_y for g in guesses], test_y, step=step,
                                      n_train=len(rows[0]), share=len(rows[0]) / len(train_y), **details))
    return records


def record(name: str, kind: str, labels: int | str, right: Sequence[np.ndarray], test_y: np.ndarray, *, step: int,
           **details) -> dict[str, Any]:
    """One number of the table, as `score` returns it.

    Args:
      right: of each draw bool[m], which test examples are classified rightly; test_y: i[m], below 0: never right.
    """
    found = [float(np.mean(r)) for r in right]
    return dict(eval=name, features=kind, labels_per_class=labels, accuracy=float(np.mean(found)),
                std=float(np.std(found, ddof=1)) if len(found) > 1 else 0.0, draws=len(found), step=int(step),
                chance=float(np.unique(test_y[test_y >= 0], return_counts=True)[1].max(initial=0) / len(test_y)),
                n_test=len(test_y), **details)


def _knn(train_x, train_y, test_x, rows, *, setting, classes, **_):
    guesses = [knn.predict(train_x[r], train_y[r], test_x, setting=setting, classes=classes) for r in rows]
    return guesses, dict(k=min(setting.k, len(rows[0])), k_asked=setting.k, temperature=setting.temperature)


def _linear(train_x, train_y, test_x, rows, *, fit, val, protocol, l2s, classes, seed, **_):
    if protocol == "sgd":
        models = [sgd.fit(train_x[r], train_y[r], classes=classes, seed=seed) for r in rows]
        return [linear.predict(m, test_x) for m in models], dict(protocol=protocol)
    l2s = sorted(l2s)
    everything = len(rows[0]) == len(train_y)
    paths = [linear.path(train_x[r], train_y[r], classes=classes, l2s=l2s) for r in ([fit] if everything else rows)]
    on_val = np.mean([[np.mean(linear.predict(m, train_x[val]) == train_y[val]) for m in p] for p in paths], axis=0)
    best = int(np.flatnonzero(on_val == on_val.max())[-1])
    models = [p[best] for p in paths]
    if everything:
        models = linear.path(train_x, train_y, classes=classes, l2s=l2s[best:best + 1])
    return [linear.predict(m, test_x) for m in models], dict(protocol=protocol, l2=float(l2s[best]))


EVALS = {"knn": _knn, "linear": _linear}


def _checked(kind, train_x, train_y, test_x, test_y):
    """The four arrays with labels renumbered 0..C-1 (a test label never trained on becomes -1: always wrong), and C."""
    for part, x, y in (("train", train_x, train_y), ("test", test_x, test_y)):
        if len(x) == 0 or np.ndim(x) != 2 or len(x) != len(y):
            raise UsageError(f"{kind} {part}: features of shape {np.shape(x)} with {len(y)} labels, wanted "
                             "(n, D) and n")
        bad = int(np.sum(~np.isfinite(x).all(axis=1)))
        if bad:
            raise UsageError(f"{kind} {part}: {bad} of {len(x)} feature rows are not finite; has training diverged?")
        if np.min(y) < 0:
            raise UsageError(f"{kind} {part}: {int(np.sum(np.asarray(y) < 0))} of {len(y)} examples have no label; "
                             "kNN and linear evals need a labelled source")
    classes, train_labels = np.unique(train_y, return_inverse=True)
    if len(classes) < 2:
        raise UsageError(f"{kind} train: one class only ({classes[0]}), wanted at least 2")
    at = np.minimum(np.searchsorted(classes, test_y), len(classes) - 1)
    return train_x, train_labels, test_x, np.where(classes[at] == test_y, at, -1), len(classes)
