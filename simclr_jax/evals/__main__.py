"""`python -m simclr_jax.evals --workdir=DIR`: kNN and linear probe of a finished or running workdir, in one table.

Beside the pretrained features stand those of the same net as initialised and the raw pixels, under the same protocol.
"""
import time

import jax
import numpy as np

from simclr_jax import build, config as configs, data, dist, watch
from simclr_jax.command import command
from simclr_jax.errors import UsageError
from simclr_jax.evals import knn, pictures, score, table
from simclr_jax.names import near
from simclr_jax.train import workdir as workdirs

OPTIONS = dict(workdir="", evals="knn,linear", labels="1,5,10,50,all", draws=10, seed=0, knn="dino", protocol="lbfgs",
               baselines="random_init,pixels", best=False, pictures=True)


def main(argv: list[str]) -> None:
    flags = configs.options(argv, **OPTIONS)
    workdir = workdirs.resolve(flags["workdir"])
    saved = workdirs.read_config(workdir)
    if saved is None:
        raise UsageError(f"--workdir={workdir}: there is no config.json in it; wanted the directory of a "
                         "`simclr_jax.train` run")
    config = configs.from_plain(saved)
    counts = [c if c == "all" else _whole(c) for c in flags["labels"].split(",")]
    _one_of("knn", flags["knn"], knn.SETTINGS)
    names = flags["evals"].split(",")
    for name in names:
        _one_of("evals", name, score.EVALS)
    baselines = list(filter(None, flags["baselines"].split(",")))
    for name in baselines:
        _one_of("baselines", name, ("random_init", "pixels"))
    _one_of("protocol", flags["protocol"], ("lbfgs", "sgd"))
    if flags["draws"] < 1 or flags["seed"] < 0:
        raise UsageError(f"--draws={flags['draws']} --seed={flags['seed']}: wanted at least 1 and at least 0")
    build.start_devices(build.cpu_devices(config))
    start = time.perf_counter()

    train = build.source(config, config.evals.train)
    test = build.source(config, config.evals.test) if train.classes else None
    method = build.method(config, axis=None)
    step, state, first = _states(config, method, workdir, train.size, best=flags["best"])
    if test is None:
        print(f"{train.describe}: without labels (class sub-folders) there is nothing to score; drawing its features")
        embed, multiple = build.embedder(method, state.params, state.extra)
        parts = watch.features(config, embed, multiple, split=config.evals.train)
        made = _pictures(workdir, config, parts, parts, train, title="training images", skip=1)
        print(f"pictures: {_list(made)}  ({time.perf_counter() - start:.0f} s)")
        return
    kinds = {config.method.name: _features(config, *build.embedder(method, state.params, state.extra))}
    if "random_init" in baselines:
        kinds["random_init"] = _features(config, *build.embedder(method, first.params, first.extra))
    if "pixels" in baselines:
        kinds["pixels"] = _features(config, _pixels, 1)
    arrays = {kind: (*train_part[:2], *test_part[:2]) for kind, (train_part, test_part) in kinds.items()}
    records = score.score(arrays, step=step, evals=names, labels_per_class=_possible(counts, arrays), draws=flags["draws"],
                          seed=flags["seed"], setting=knn.SETTINGS[flags["knn"]], protocol=flags["protocol"])
    path = workdir / "evals.json"
    table.merge(records, path)
    print(table.text(records))
    made = _pictures(workdir, config, *kinds[config.method.name], test) if flags["pictures"] else []
    print(f"numbers: {path}\npictures: {_list(made)}  ({time.perf_counter() - start:.0f} s)")


def _list(paths):
    return ", ".join(str(p) for p in paths if p) or "none"


def _states(config, method, workdir, examples, *, best):
    """(step, the state there, the state before training)."""
    from simclr_jax.train.checkpoint import Checkpoints
    from simclr_jax.train.state import init_state
    mesh = dist.make_mesh({dist.DATA: 1}, jax.local_devices()[:1])
    optimiser = build.optimiser(config, examples)
    views, size = data.check(build.source(config), config.augment.views, config.augment.eval, batch=config.batch)
    rows = {"views": jax.ShapeDtypeStruct((config.batch, views, size, size, 3), np.float32)}
    first = init_state(method, optimiser.tx, mesh, rows, seed=config.seed)
    restored = Checkpoints(workdir / ("best" if best else "checkpoints"), writable=False).restore(first)
    if restored is None:
        raise UsageError(f"--workdir={workdir}: there is no {'best ' if best else ''}checkpoint in it yet; the first is "
                         f"written at step {config.checkpoint.every}, or when the run is stopped")
    return restored[0], restored[1], first


def _features(config, embed, multiple):
    """Features, labels and indices of the split to fit on, and of the one to score."""
    return tuple(watch.features(config, embed, multiple, split=config.evals[part]) for part in ("train", "test"))


def _pixels(x, side: int = 32):
    """The images themselves as features; larger ones averaged down to about `side`, as no one compares 150,528 pixels."""
    f = max(1, min(x.shape[1:3]) // side)
    x = x[:, :x.shape[1] // f * f, :x.shape[2] // f * f]
    n, h, w, c = x.shape
    return x.reshape(n, h // f, f, w // f, f, c).mean((2, 4)).reshape(n, -1)


def _pictures(workdir, config, train, test, source, *, title="test images it has never seen", skip=0):
    """Embedding, neighbours and loss curve. `skip`: how many nearest ones to pass over (1 where a query finds itself)."""
    (train_x, train_y, train_id), (test_x, test_y, test_id) = train, test
    made = [watch.picture(workdir, "embedding.png", pictures.embedding, test_x, test_y, classes=source.classes,
                          method="tsne" if 50 <= len(test_x) <= 2000 else "pca", title=f"{config.method.name}: {title}")]
    queries = np.unique(np.linspace(0, len(test_x) - 1, 6).astype(int))
    index, similarity = knn.neighbours(train_x, test_x[queries], k=8 + skip)
    index, similarity = index[:, skip:], similarity[:, skip:]
    shown = _images(config, config.evals.train, train_id[np.ravel(index)])
    asked = _images(config, config.evals.train if skip else config.evals.test, test_id[queries])
    labels = {} if test_y.min() < 0 else dict(labels=train_y[np.ravel(index)], query_labels=test_y[queries])
    made.append(watch.picture(workdir, "neighbours.png", pictures.neighbours, shown,
                              np.arange(index.size).reshape(index.shape), asked, similarity=similarity, **labels))
    if (workdir / "metrics.jsonl").exists():
        made.append(watch.picture(workdir, "loss.png", pictures.loss_curve, workdir / "metrics.jsonl"))
    return made


def _images(config, split, indices):
    source = data.subset(build.source(config, split), indices)
    return np.concatenate([b["image"] for b in data.examples(source, config.augment.eval, batch=64)])


def _possible(counts, kinds):
    """The asked numbers of labels a class, without those that the smallest class cannot give."""
    from simclr_jax.evals import draws
    labels = next(iter(kinds.values()))[1]
    fit, _ = draws.holdout(labels)
    least = np.unique(labels[fit], return_counts=True)[1].min()
    left_out = [c for c in counts if c != "all" and c > least]
    if left_out:
        print(f"left out: {', '.join(map(str, left_out))} labels a class, the smallest class has {least} to draw from")
    return [c for c in counts if c not in left_out]


def _whole(text):
    try:
        return int(text)
    except ValueError:
        raise UsageError(f"--labels: {text!r}, wanted whole numbers or all, as in --labels=1,5,all") from None


def _one_of(flag, name, known):
    if name not in known:
        raise UsageError(f"--{flag}={name}{near(name, known)}")


if __name__ == "__main__":
    command(main)
