"""The evaluations of a run while it trains.

Composition of data, evals and a method, so only the commands use it.
"""
from simclr_jax import build, embed, pairs
from simclr_jax.errors import UsageError
from simclr_jax.names import near


def make(config, method, process=(0, 1), tokenizer=None):
    """`evaluate(state) -> {"knn": accuracy, ...}`.

    knn and linear: on a fixed fifth of the training examples, never on the test split. zero_shot and retrieval: on the
    split `config.evals.pairs`, of which nothing is learned or chosen, unless `config.evals.best` names one of them.
    """
    from simclr_jax.evals import draws, health, score
    wanted = config.evals
    if wanted.every < 0 or wanted.limit < 0:
        raise UsageError(f"config.evals.every={wanted.every}, config.evals.limit={wanted.limit}: wanted 0 or more of both")
    probes = [name for name in wanted.run if name in score.EVALS]
    paired = [name for name in wanted.run if name not in probes]
    for name in paired:
        if name not in pairs.EVALS:
            raise UsageError(f"config.evals.run={tuple(wanted.run)}: there is no {name!r}"
                             f"{near(str(name), [*score.EVALS, *pairs.EVALS])}")
    if wanted.best and wanted.best not in wanted.run:
        raise UsageError(f"config.evals.best={wanted.best!r} is not among config.evals.run={tuple(wanted.run)}")
    if probes:
        classes = len(build.source(config, wanted.train).classes)
        if classes < 2:
            raise UsageError(f"config.evals.every={wanted.every}, but the data has {classes} classes, wanted at least 2 to "
                             "evaluate with; set it to 0")
    pairs.check(config, paired, tokenizer)

    def evaluate(state):
        of_images, multiple = build.embedder(method, state.params, state.extra)
        results = {}
        if probes:
            x, y, _ = embed.features(config, of_images, multiple, split=wanted.train, limit=wanted.limit,
                                     process=process)
            fit, val = draws.holdout(y)
            records = score.score({config.method.name: (x[fit], y[fit], x[val], y[val])}, step=int(state.step),
                                  evals=probes, labels_per_class=("all",))
            results = {r["eval"]: r["accuracy"] for r in records} | health.report(x[val])
        if paired:
            of_texts, _ = build.embedder(method, state.params, state.extra, "text")
            found = pairs.run(config, paired, of_images, of_texts, multiple, tokenizer, split=wanted.pairs,
                              limit=wanted.limit, step=int(state.step), process=process)
            results |= {r["eval"]: r["accuracy"] for r in found.records}
            results |= {f"{way}_r{k}": r[way][f"r{k}"] for r in found.records if r["eval"] == "retrieval"
                        for way in ("image_to_text", "text_to_image") for k in (1, 5, 10)}
        return results
    return evaluate
