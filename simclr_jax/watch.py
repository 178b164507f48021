"""What a run shows of itself while it trains: evaluations on held-out training examples, and pictures.

Composition of data, evals and a method, so only the commands use it.
"""
import numpy as np

from simclr_jax import build, data
from simclr_jax.errors import UsageError

ROWS = 256  # images embedded at once


def features(config, embed, multiple: int, *, split: str, limit: int = 0, process=(0, 1)):
    """Features of a split of the config's source: (f32[n,D], i32[n]), each example once, in order.

    Args:
      embed: f32[rows,H,W,3] -> f32[rows,D], rows a multiple of `multiple`; limit: at most so many examples, evenly
        spaced (0: all); process: (index, count), whose shares are gathered.
    """
    from simclr_jax.evals.features import extract
    source = build.source(config, split)
    if limit and limit < source.size:
        source = data.subset(source, np.linspace(0, source.size - 1, limit).astype(int))
    rows = -(-min(ROWS, max(source.size, 1)) // multiple) * multiple
    x, y = extract(embed, data.examples(source, config.augment.eval, batch=rows, process=process), batch=rows)
    return (x, y) if process[1] == 1 else (_gather(x, process), _gather(y, process))


def _gather(x, process):
    """The processes' shares, one after the other, on all of them."""
    from jax.experimental import multihost_utils
    sizes = np.ravel(multihost_utils.process_allgather(np.int32(len(x))))
    padded = np.concatenate([x, np.zeros((sizes.max() - len(x), *x.shape[1:]), x.dtype)])
    parts = np.asarray(multihost_utils.process_allgather(padded))
    return np.concatenate([part[:n] for part, n in zip(parts, sizes)])


def make(config, method, process=(0, 1)):
    """`evaluate(state) -> {"knn": accuracy, ...}` on a fixed fifth of the training examples; never on the test split."""
    from simclr_jax.evals import draws, health, score
    if not build.source(config, config.evals.train).classes:
        raise UsageError(f"config.evals.every={config.evals.every}, but the data has no labels to evaluate with; "
                         "set it to 0")
    if config.evals.best and config.evals.best not in config.evals.run:
        raise UsageError(f"config.evals.best={config.evals.best!r} is not among config.evals.run={config.evals.run}")

    def evaluate(state):
        embed, multiple = build.embedder(method, state.params, state.extra)
        x, y = features(config, embed, multiple, split=config.evals.train, limit=config.evals.limit, process=process)
        fit, val = draws.holdout(y)
        records = score.score({config.method.name: (x[fit], y[fit], x[val], y[val])}, step=int(state.step),
                              evals=config.evals.run, labels_per_class=("all",))
        return {r["eval"]: r["accuracy"] for r in records} | {"effective_rank": float(health.effective_rank(x[val]))}
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
