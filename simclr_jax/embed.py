"""A split of the config's source as features: its images, or their captions. Composition, for the commands."""
import itertools
import os

import numpy as np

from simclr_jax import augment, build, data
from simclr_jax.data.source import of_files as of_paths

ROWS = 256  # images or texts embedded at once


def features(config, embed, multiple: int, *, split: str, limit: int = 0, process=(0, 1)):
    """Features of a split of the config's source, each example once, in order: (f32[n,D], labels i32[n], i64[n]).

    The last are the examples' indices in the source; unreadable ones are missing.

    Args:
      embed: f32[rows,H,W,3] -> f32[rows,D], rows a multiple of `multiple`; limit: at most so many examples, evenly
        spaced (0: all); process: (index, count), whose shares are gathered.
    """
    from simclr_jax.evals.features import extract
    source = _limited(build.source(config, split), limit)
    rows = -(-min(ROWS, max(source.size, 1)) // multiple) * multiple
    ids = []

    def noted():
        for batch in _examples(config, source, rows, process):
            ids.append(batch["id"][:, 0].astype(np.int64))
            yield batch
    x, y = extract(embed, noted(), batch=rows)
    parts = x, y, np.concatenate(ids)
    return parts if process[1] == 1 else tuple(_gather(part) for part in parts)


def of_files(root, files, ops, embed, multiple: int, *, batch: int = ROWS):
    """Features of image files as evaluation sees them: (f32[m,D], i64[m]), those of m of the files, and of which.

    Those that cannot be read are left out; (f32[0,0], i64[0]) if none can.

    Args:
      root: the folder that the names `files` are relative to; ops: the view, as in config.augment.eval; embed,
        multiple: as in `features`; batch: images embedded at once, rounded up to a multiple.
    """
    from simclr_jax.evals.features import extract
    view, ids = augment.build_eval(ops), []

    def noted(batches):
        for batch in batches:
            ids.append(batch["id"][:, 0].astype(np.int64))
            yield batch
    source, rows = of_paths([os.path.join(os.fspath(root), file) for file in files]), -(-batch // multiple) * multiple
    batches = data.examples(source, view, augment.evaluate(view), batch=rows)
    first = next(batches, None)
    if first is None:
        return np.zeros([0, 0], np.float32), np.zeros(0, np.int64)
    x, _ = extract(embed, noted(itertools.chain([first], batches)), batch=rows)
    return x, np.concatenate(ids)


def _gather(x):
    """The processes' shares, one after the other, on all of them."""
    from jax.experimental import multihost_utils
    sizes = np.ravel(multihost_utils.process_allgather(np.int32(len(x))))
    padded = np.concatenate([x, np.zeros((sizes.max() - len(x), *x.shape[1:]), x.dtype)])
    parts = np.asarray(multihost_utils.process_allgather(padded))
    return np.concatenate([part[:n] for part, n in zip(parts, sizes)])


def captions(config, embed, multiple: int, tokenizer, split: str, ids, *, limit: int = 0, process=(0, 1)):
    """Features of all captions of the examples `ids` of a split: (f32[m,D], owner i64[m]: rows of `ids`).

    Args:
      embed: i32[rows,L] -> f32[rows,D]; multiple, limit, process: as in `features`; ids: what that returned.
    """
    source = _limited(build.source(config, split), limit)
    n, alone = len(ids), process[1] == 1 or len(ids) < process[1]
    mine = range(n) if alone else range(n * process[0] // process[1], n * (process[0] + 1) // process[1])
    words = [source.captions(int(ids[i])) for i in mine]
    owner = np.repeat(np.asarray(mine), [len(w) for w in words])
    x = texts(embed, multiple, tokenizer, [text for w in words for text in w])
    return (x, owner) if alone else (_gather(x), _gather(owner))


def texts(embed, multiple: int, tokenizer, words) -> np.ndarray:
    """f32[n,D]: features of n texts, a fixed number of rows at a time."""
    rows, out = rows_of(multiple), []
    for start in range(0, len(words), rows):
        tokens = tokenizer.encode(words[start:start + rows])
        n = len(tokens)
        out.append(np.asarray(embed(np.concatenate([tokens, np.repeat(tokens[-1:], rows - n, axis=0)])))[:n])
    return np.concatenate(out).astype(np.float32)


def rows_of(multiple: int) -> int:
    """Rows embedded at once: `ROWS`, made a multiple."""
    return -(-ROWS // multiple) * multiple


def _limited(source, limit):
    """At most `limit` examples (0: all), evenly spaced."""
    if limit and limit < source.size:
        return data.subset(source, np.linspace(0, source.size - 1, limit).astype(int))
    return source


def images(config, split: str, indices) -> np.ndarray:
    """f32[n,S,S,3]: examples of a split as evaluation sees them."""
    source = data.subset(build.source(config, split), indices)
    return np.concatenate([b["image"] for b in _examples(config, source, 64)])


def _examples(config, source, rows, process=(0, 1)):
    view = augment.build_eval(config.augment.eval)
    return data.examples(source, view, augment.evaluate(view), batch=rows, process=process)


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
