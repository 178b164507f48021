"""`python -m simclr_jax.evals --workdir=DIR`: what a finished or running run has learned, in tables and pictures; or, with
`--from-dir=DIR --config=RECIPE`, what a published net makes of the data of a recipe.

kNN, linear probe and fine-tuning, beside the same net as initialised and the raw pixels under the same protocol; for nets
with texts zero-shot classification and retrieval, and `--search="a red car"`, which draws the images nearest to a text;
for vision transformers `--evals=attention`, a picture of what they look at.
"""
import time

from simclr_jax import attention, build, config as configs, embed, pairs, probes, subject, tuning
from simclr_jax.life import command
from simclr_jax.errors import UsageError
from simclr_jax.evals import draws, finetune, knn, pictures, score, table
from simclr_jax.names import near
from simclr_jax.train import workdir as workdirs

# labels: of each class, as shares, or all. "", and draws of 0: what LABELS and DRAWS have for the eval.
OPTIONS = {"from-dir": ""} | dict(
    workdir="", evals="", labels="", draws=0, seed=0, knn="dino", protocol="lbfgs", baselines="random_init,pixels",
    best=False, pictures=True, data="", split="", classes="", templates="", search="", k=12, finetune_lr=0.0,
    finetune_epochs=0.0, finetune_batch=0)
LABELS = {"knn": "1,5,10,50,all", "linear": "1,5,10,50,all", "finetune": "1%,10%,100%"}
DRAWS = {"knn": 10, "linear": 10, "finetune": 3}


def main(argv: list[str]) -> None:
    recipe = None
    if any(a.startswith("--from-dir=") for a in argv):
        recipe, flags = configs.parse(argv, **OPTIONS)
    else:
        flags = configs.options(argv, **OPTIONS)
    workdir = workdirs.resolve(flags["workdir"])
    saved = workdirs.read_config(workdir) if recipe is None else None
    if recipe is None and saved is None:
        raise UsageError(f"--workdir={workdir}: there is no config.json in it; wanted the directory of a "
                         "`simclr_jax.train` run")
    config = _changed(configs.from_plain(saved) if recipe is None else recipe, flags)
    counts = {name: [_amount(c) for c in (flags["labels"] or usual).split(",")] for name, usual in LABELS.items()}
    _one_of("knn", flags["knn"], knn.SETTINGS)
    baselines = list(filter(None, flags["baselines"].split(",")))
    for name in baselines:
        _one_of("baselines", name, ("random_init", "pixels"))
    _one_of("protocol", flags["protocol"], ("lbfgs", "sgd"))
    if flags["draws"] < 0 or flags["seed"] < 0 or flags["k"] < 1:
        raise UsageError(f"--draws={flags['draws']} --seed={flags['seed']} --k={flags['k']}: wanted at least 0, 0 and 1")
    tuned = {key: flags[f"finetune_{key}"] for key in ("lr", "epochs", "batch")}
    finetune.plan((), 1, 1.0, multiple=1, **tuned)  # refuses what is out of range
    build.start_devices(build.cpu_devices(config))
    start = time.perf_counter()

    if recipe is None:
        it = subject.of_run(config, saved, workdir, best=flags["best"])
    else:
        texts = not flags["evals"] or flags["search"] or set(pairs.EVALS) & set(flags["evals"].split(","))
        it = subject.of_directory(config, flags["from-dir"], texts=bool(texts))
    config, method, tokenizer = it.config, it.method, it.tokenizer
    names = list(filter(None, flags["evals"].split(","))) or _suited(config, tokenizer, flags)
    for name in names:
        _one_of("evals", name, (*score.EVALS, "finetune", "attention", *pairs.EVALS))
    paired = [name for name in names if name in pairs.EVALS]
    probed = [name for name in names if name in score.EVALS]
    split = flags["split"] or config.evals.test
    pairs.check(config, paired, tokenizer, split)
    if "attention" in names:
        attention.check(config)
    if flags["search"] and tokenizer is None:
        raise UsageError(f"--search: wanted a run with captions; {it.kind!r} has no text tower")
    step, now, first = it.states()
    of_images, multiple = build.embedder(method, *now)
    kind = it.kind + (f" on {flags['data']}" if flags["data"] else "")
    made, records = [], []
    labelled = bool(build.source(config, config.evals.train).classes)
    if (probed or "finetune" in names) and not labelled:
        made += probes.unlabelled(config, of_images, multiple, workdir)
    untrained = first() if labelled and "random_init" in baselines and (probed or "finetune" in names) else None
    if probed and labelled:
        embedders = {kind: (of_images, multiple)}
        if untrained:
            embedders["random_init"] = build.embedder(method, *untrained)
        if "pixels" in baselines:
            embedders["pixels"] = probes.pixels, 1
        kinds = {name: probes.features(config, *embedder) for name, embedder in embedders.items()}
        for name in probed:
            records += probes.run(kinds, [name], counts[name], step=step, draws=flags["draws"] or DRAWS[name],
                                  seed=flags["seed"], setting=knn.SETTINGS[flags["knn"]], protocol=flags["protocol"])
        if flags["pictures"]:
            made += probes.draw(workdir, config, *kinds[kind], build.source(config, config.evals.test), kind=it.kind)
    if "finetune" in names and labelled:
        weights = {name: tuning.start(config, method, *state)
                   for name, state in ((kind, now), ("random_init", untrained)) if state}
        records += tuning.run(config, weights, counts["finetune"], step=step, draws=flags["draws"] or DRAWS["finetune"],
                              seed=flags["seed"], **tuned)
    if "attention" in names:
        made.append(attention.draw(config, method, *now, workdir, split))
    if paired or flags["search"]:
        of_texts, _ = build.embedder(method, *now, "text")
        found = pairs.run(config, paired, of_images, of_texts, multiple, tokenizer, split=split, step=step,
                          kind=kind)
        records += found.records
        if found.texts is not None and flags["pictures"]:
            made.append(pairs.similarity(workdir, config, split, found))
        if flags["search"]:
            query = embed.texts(of_texts, multiple, tokenizer, [flags["search"]])
            made.append(pairs.search(workdir, config, split, found, query, flags["search"], flags["k"]))
    if records:
        table.merge(records, workdir / "evals.json")
        print(table.text(records))
        print(f"numbers: {workdir / 'evals.json'}")
    if flags["pictures"] and (workdir / "metrics.jsonl").exists():
        made.append(embed.picture(workdir, "loss.png", pictures.loss_curve, workdir / "metrics.jsonl"))
    print(f"pictures: {_list(made)}  ({time.perf_counter() - start:.0f} s)")


def _changed(config, flags):
    """The config with what the flags change about evaluation."""
    config = config.copy_and_resolve_references().unlock()
    if flags["data"]:
        name, _, rest = flags["data"].partition(":")
        config.data = {"name": name, **_values(rest)}
    config.evals.classes = flags["classes"] or config.evals.classes
    config.evals.templates = flags["templates"] or config.evals.templates
    return configs.fill(config)


def _values(text):
    """"key=value,key=value" as a dict, with numbers and booleans as such."""
    values = {}
    for part in filter(None, text.split(",")):
        key, equals, value = part.partition("=")
        if not equals:
            raise UsageError(f"--data: {part!r}, wanted NAME:KEY=VALUE,..., as in --data=folder:root=DIR")
        for kind in (int, float):
            try:
                values[key] = kind(value)
                break
            except ValueError:
                values[key] = {"true": True, "false": False, "none": None}.get(value.lower(), value)
    return values


def _suited(config, tokenizer, flags):
    """What there is to score when nothing was asked for."""
    if flags["search"]:
        return []
    if tokenizer is None:
        return ["knn", "linear"]
    source = build.source(config, flags["split"] or config.evals.test)
    return (["zero_shot"] if source.classes else []) + (["retrieval"] if source.captions else [])


def _list(paths):
    return ", ".join(str(p) for p in paths if p) or "none"


def _amount(text):
    """"5" as 5, "10%" as it is, "100%" and "all" as "all"."""
    if text in ("all", "100%"):
        return "all"
    if text.endswith("%"):
        draws.share(text)
        return text
    try:
        return int(text)
    except ValueError:
        raise UsageError(f"--labels: {text!r}, wanted whole numbers, shares or all, as in --labels=5,10%,all") from None


def _one_of(flag, name, known):
    if name not in known:
        raise UsageError(f"--{flag}={name}{near(name, known)}")


if __name__ == "__main__":
    command(main)
