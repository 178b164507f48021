"""Examples, batches and evaluation rows as commands see them: the host's part and the recipe's one program."""
from concurrent import futures

from simclr_jax import augment, data


def read(source, indices=None):
    """Examples of a source (all, in order), by several threads at once, as the pipeline reads them."""
    with futures.ThreadPoolExecutor(4) as pool:
        return list(pool.map(source.read, range(source.size) if indices is None else indices))


def batches(source, views, *, batch, seed, process=(0, 1), workers=None, piece=None, **kwargs):
    """`data.batches` of a recipe as plain data, augmented."""
    recipe = augment.build(views)
    pieces = data.batches(source, recipe, batch=batch, seed=seed, process=process, workers=workers, piece=piece, **kwargs)
    return augment.finished(pieces, augment.make(recipe, seed), rows=batch // process[1], workers=workers or 2)


def examples(source, ops, **kwargs):
    """`data.examples` of an eval view as plain data."""
    view = augment.build_eval(ops)
    return data.examples(source, view, augment.evaluate(view), **kwargs)
