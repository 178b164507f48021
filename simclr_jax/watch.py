"""What a run shows of itself while it trains: evaluations on held-out training examples, and pictures.

Composition of data, evals and a method, so only the commands use it.
"""
import numpy as np

from simclr_jax import build, data
from simclr_jax.errors import UsageError
from simclr_jax.names import near

ROWS = 256  # images embedded at once


def features(config, embed, multiple: int, *, split: str, limit: int = 0, process=(0, 1)):
    """Features of a split of the config's source, each example once, in order: (f32[n,D], labels i32[n], i64[n]).

    The last are the examples' indices in the source; unreadable ones are missing.

    Args:
      embed: f32[rows,H,W,3] -> f32[rows,D], rows a multiple of `multiple`; limit: at most so many examples, evenly
        spaced (0: all); process: (index, count), whose shares are gathered.
    """
    from simclr_jax.evals.features import extract
    source = build.source(config, split)
    if limit and limit < source.size:
        source = data.subset(source, np.linspace(0, source.size - 1, limit).astype(int))
    rows = -(-min(ROWS, max(source.size, 1)) // multiple) * multiple
    ids = []

    def noted():
        for batch in data.examples(source, config.augment.eval, batch=rows, process=process):
            ids.append(batch["id"][:, 0].astype(np.int64))
            yield batch
    x, y = extract(embed, noted(), batch=rows)
    parts = x, y, np.concatenate(ids)
    return parts if process[1] == 1 else tuple(_gather(part) for part in parts)


def _gather(x):
    """The processes' shares, one after the other, on all of them."""
    from jax.experimental import multihost_utils
    sizes = np.ravel(multihost_utils.process_allgather(np.int32(len(x))))
    padded = np.concatenate([x, np.zeros((sizes.max() - len(x), *x.shape[1:]), x.dtype)])
    parts = np.asarray(multihost_utils.process_allgather(padded))
    return np.concatenate([part[:n] for part, n in zip(parts, sizes)])


def make(config, method, process=(0, 1)):
    """`evaluate(state) -> {"knn": accuracy, ...}` on a fixed fifth of the training examples; never on the test split."""
    from simclr_jax.evals import draws, health, score
    wanted = config.evals
    if wanted.every < 0 or wanted.limit < 0:
        raise UsageError(f"config.evals.every={wanted.every}, config.evals.limit={wanted.limit}: wanted 0 or more of both")
    for name in wanted.run:
        if name not in score.EVALS:
            raise UsageError(f"config.evals.run={tuple(wanted.run)}: there is no {name!r}{near(str(name), score.EVALS)}")
    if wanted.best and wanted.best not in wanted.run:
        raise UsageError(f"config.evals.best={wanted.best!r} is not among config.evals.run={tuple(wanted.run)}")
    classes = len(build.source(config, wanted.train).classes)
    if classes < 2:
        raise UsageError(f"config.evals.every={wanted.every}, but the data has {classes} classes, wanted at least 2 to "
                         "evaluate with; set it to 0")

    def evaluate(state):
        embed, multiple = build.embedder(method, state.params, state.extra)
        x, y, _ = features(config, embed, multiple, split=config.evals.train, limit=config.evals.limit, process=process)
        fit, val = draws.holdout(y)
        records = score.score({config.method.name: (x[fit], y[fit], x[val], y[val])}, step=int(state.step),
                              evals=config.evals.run, labels_per_class=("all",))
        return {r["eval"]: r["accuracy"] for r in records} | health.report(x[val])
    return evaluate


def picture(workdir, name: str, draw, *args, **options):
    """Draws `workdir/images/<name>` and returns its path; None where matplotlib is missing."""
    import tempfile

    from etils import epath
    target = epath.Path(workdir) / "images" / name
    target.parent.mkdir(parents=True, exist_ok=True)
    if "://" not in str(target):
        return draw(*args, path=target, **options)
    with tempfile.TemporaryDirectory() as folder:  # matplotlib writes local files only
        made = draw(*args, path=epath.Path(folder) / name, **options)
        return made and epath.Path(made).copy(target, overwrite=True)
