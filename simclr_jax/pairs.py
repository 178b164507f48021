"""Zero-shot classification and retrieval of a run with an image and a text tower. Composition, for the commands."""
from typing import NamedTuple

import numpy as np

from simclr_jax import build, embed
from simclr_jax.errors import UsageError
from simclr_jax.evals import health, pair_pictures, retrieval, templates, zero_shot

EVALS = "zero_shot", "retrieval"


class Found(NamedTuple):
    """What was scored, and the features behind it; owner: the row of `images` that a text is of."""

    records: list
    images: np.ndarray  # f32[n,D]
    ids: np.ndarray  # i64[n], indices in the source
    texts: np.ndarray | None  # f32[m,D], None where no captions were asked for
    owner: np.ndarray | None  # i64[m]


def check(config, names, tokenizer, split: str = "") -> None:
    """Refuses evals that the data cannot give, at no cost but listing the examples of `split` (that of the config)."""
    if not names:
        return
    if tokenizer is None:
        raise UsageError(f"{', '.join(names)}: wanted a run with captions; method {config.method.name!r} has no text tower")
    source = build.source(config, split or config.evals.pairs)
    if "retrieval" in names and source.captions is None:
        raise UsageError(f"retrieval: {source.describe} has no captions; leave retrieval out")
    if "zero_shot" in names:
        class_names(config, source)
        templates.read(config.evals.templates)


def class_names(config, source) -> list[str]:
    """The names to be told apart: those of the file `config.evals.classes`, else the source's, as words."""
    if not source.classes:
        raise UsageError(f"zero_shot: {source.describe} has no labels; leave zero_shot out, or score another source by "
                         "--data=folder:root=DIR")
    if not config.evals.classes:
        return [name.replace("_", " ") for name in source.classes]
    named = templates.class_names(config.evals.classes)
    if len(named) != len(source.classes):
        raise UsageError(f"zero_shot: {config.evals.classes} names {len(named)} classes, and {source.describe} has "
                         f"{len(source.classes)}; wanted one name a class, in the order of the labels")
    return named


def run(config, names, of_images, of_texts, multiple: int, tokenizer, *, split: str, limit: int = 0, step: int,
        process=(0, 1), kind: str = "") -> Found:
    """Scores `names` on a split.

    Args:
      of_images, of_texts, multiple: as `build.embedder` gives them; limit: at most so many examples (0: all).
      kind: what the records call the features; "": the method.
    """
    kind = kind or config.method.name
    x, y, ids = embed.features(config, of_images, multiple, split=split, limit=limit, process=process)
    source = build.source(config, split)
    records, texts, owner = [], None, None
    if "zero_shot" in names:
        named, asked = class_names(config, source), templates.read(config.evals.templates)
        weights = zero_shot.classifier(of_texts, tokenizer.encode, named, asked, batch=embed.rows_of(multiple))
        records.append(zero_shot.score(x, y, weights, step=step, features=kind, names=named, templates=len(asked)))
    if "retrieval" in names:
        texts, owner = embed.captions(config, of_texts, multiple, tokenizer, split, ids, limit=limit, process=process)
        records.append(retrieval.score(x, texts, owner, step=step, features=kind))
    return Found(records, x, ids, texts, owner)


def similarity(workdir, config, split, found, sample: int = 12):
    """A picture of how similar some images and their longest captions are."""
    rows = np.unique(np.linspace(0, len(found.images) - 1, sample).astype(int))
    source = build.source(config, split)
    captions = [source.captions(int(found.ids[row])) for row in rows]
    longest = [int(np.argmax([len(text) for text in own])) for own in captions]
    texts = [int(np.flatnonzero(found.owner == row)[i]) for row, i in zip(rows, longest)]
    matrix = np.asarray(health.normalize(found.images[rows])) @ np.asarray(health.normalize(found.texts[texts])).T
    return embed.picture(workdir, "similarity.png", pair_pictures.similarity,
                         embed.images(config, split, found.ids[rows]), [own[i] for own, i in zip(captions, longest)], matrix)


def search(workdir, config, split, found, query, text: str, k: int):
    """Prints and draws the k images nearest to a text with features query[1,D]."""
    index, similarity = (part[0] for part in retrieval.search(query, found.images, k))
    ids, source = found.ids[index], build.source(config, split)
    known = [max(source.captions(int(i)), key=len) for i in ids] if source.captions else None
    for rank, (i, s) in enumerate(zip(ids, similarity)):
        print(f"{rank + 1:3d}  {s:.3f}  example {i}" + (f"  {known[rank]}" if known else ""))
    name = "".join(c if c.isalnum() else "_" for c in text.lower())[:60]
    return embed.picture(workdir, f"search_{name}.png", pair_pictures.contact_sheet, embed.images(config, split, ids),
                         similarity, query=text, captions=known)
