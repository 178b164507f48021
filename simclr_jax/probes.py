"""kNN and linear probe of a run beside its baselines, and their pictures. Composition, for the commands."""
import numpy as np

from simclr_jax import build, embed
from simclr_jax.evals import draws, knn, pictures, score


def features(config, of_images, multiple):
    """(features, labels, indices) of the split to fit on, and of the one to score."""
    return tuple(embed.features(config, of_images, multiple, split=config.evals[part]) for part in ("train", "test"))


def run(kinds, names, counts, *, step, **options) -> list:
    """Scores `names` for each kind of feature as `features` gives them; `options` as of `score.score`.

    Of the numbers of labels a class (`counts`) those that the smallest class cannot give are left out, with a line.
    """
    arrays = {kind: (*train_part[:2], *test_part[:2]) for kind, (train_part, test_part) in kinds.items()}
    return score.score(arrays, step=step, evals=names, labels_per_class=_possible(counts, arrays), **options)


def unlabelled(config, of_images, multiple, workdir) -> list:
    """Pictures of what lies near what, for data without classes."""
    train = build.source(config, config.evals.train)
    print(f"{train.describe}: without labels (class sub-folders) there is nothing to score; drawing its features")
    parts = embed.features(config, of_images, multiple, split=config.evals.train)
    return draw(workdir, config, parts, parts, train, title="training images", skip=1)


def pixels(x, side: int = 32):
    """The images themselves as features; larger ones averaged down to about `side`, as no one compares 150,528 pixels."""
    f = max(1, min(x.shape[1:3]) // side)
    x = x[:, :x.shape[1] // f * f, :x.shape[2] // f * f]
    n, h, w, c = x.shape
    return x.reshape(n, h // f, f, w // f, f, c).mean((2, 4)).reshape(n, -1)


def draw(workdir, config, train, test, source, *, title="test images it has never seen", skip=0, kind=""):
    """Embedding and neighbours.

    Args:
      skip: how many nearest ones to pass over (1 where a query finds itself); kind: name of the net, "": the method.
    """
    (train_x, train_y, train_id), (test_x, test_y, test_id) = train, test
    made = [embed.picture(workdir, "embedding.png", pictures.embedding, test_x, test_y, classes=source.classes,
                          method="tsne" if 50 <= len(test_x) <= 2000 else "pca",
                          title=f"{kind or config.method.name}: {title}")]
    queries = np.unique(np.linspace(0, len(test_x) - 1, 6).astype(int))
    index, similarity = knn.neighbours(train_x, test_x[queries], k=8 + skip)
    index, similarity = index[:, skip:], similarity[:, skip:]
    shown = embed.images(config, config.evals.train, train_id[np.ravel(index)])
    asked = embed.images(config, config.evals.train if skip else config.evals.test, test_id[queries])
    labels = {} if test_y.min() < 0 else dict(labels=train_y[np.ravel(index)], query_labels=test_y[queries])
    made.append(embed.picture(workdir, "neighbours.png", pictures.neighbours, shown,
                              np.arange(index.size).reshape(index.shape), asked, similarity=similarity, **labels))
    return made


def _possible(counts, kinds):
    """The asked numbers of labels a class, without those that the smallest class cannot give."""
    labels = next(iter(kinds.values()))[1]
    fit, _ = draws.holdout(labels)
    least = np.unique(labels[fit], return_counts=True)[1].min()
    left_out = [c for c in counts if isinstance(c, int) and c > least]
    if left_out:
        print(f"left out: {', '.join(map(str, left_out))} labels a class, the smallest class has {least} to draw from")
    return [c for c in counts if c not in left_out]
