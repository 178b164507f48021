"""Methods on one task, each by its own recipe, beside the same nets untrained and the pixels: one Markdown table.

    python benchmarks/methods.py --keep=DIR                                    # every recipe for the embedded digits
    python benchmarks/methods.py --keep=DIR --recipes="byol_digits dino_digits:net=vit" [--seeds=0,1,2] [--labels=1,5]
    python benchmarks/methods.py --keep=DIR --recipes="folder:method=byol" --config.steps=800 --config.data.root=PICTURES

Each recipe, configs/RECIPE.py[:VARIANT], runs once a seed of pretraining and is scored by `python -m simclr_jax.evals`: kNN
and linear probe on the test images at so many labels a class, means over its ten draws of labels, which are the same for
all. A cell is the mean over seeds and two standard errors of it (deviation over seeds / sqrt(seeds)). Untrained nets are
scored once for each kind of net and seed, the pixels once. --config.FIELD=VALUE holds for every recipe.

--choose pretrains and scores on the two parts of the digits' training split instead, 1,037 and 260 images: settings are
chosen there, without a look at the test images.

DIR keeps a workdir a run, RECIPE_SEED: the same command goes on where it was stopped, and what is scored is not run again.
"""
import contextlib
import json
import math
import pathlib
import statistics

import jax

from simclr_jax import config as configs, names
from simclr_jax.errors import UsageError
from simclr_jax.evals.__main__ import main as evaluate
from simclr_jax.life import command
from simclr_jax.train.__main__ import main as train

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"
DIGITS = sorted(f.stem for f in CONFIGS.glob("*_digits.py") if f.stem != "clip_digits")
LEAST = 3.0  # points above the untrained net that a method is to have, and two standard errors


def main(argv):
    more = [a for a in argv if a.startswith("--config.")]
    flags = configs.options([a for a in argv if a not in more], keep="", recipes=" ".join(DIGITS), seeds="0,1,2",
                            labels="1,5", choose=False)
    specs, known = list(dict.fromkeys(flags["recipes"].split())), [f.stem for f in CONFIGS.glob("*.py")]
    for name in (spec.partition(":")[0] for spec in specs):
        if name not in known:
            raise UsageError(f"--recipes: there is no configs/{name}.py{names.near(name, known)}")
    numbers = [flags[k].split(",") for k in ("seeds", "labels")]
    if not flags["keep"] or not specs or not all(n.isdecimal() for given in numbers for n in given):
        raise UsageError(f"--keep={flags['keep']} --recipes={flags['recipes']} --seeds={flags['seeds']} "
                         f"--labels={flags['labels']}: wanted a directory, recipes, and whole numbers such as 0,1,2")
    seeds, labels = ([int(n) for n in given] for given in numbers)
    columns = [(name, n) for name in ("knn", "linear") for n in labels]
    more += ["--config.data.split=fit", "--config.evals.train=fit", "--config.evals.test=val"] * flags["choose"]
    recipes = {spec: configs.parse([*_command(spec), *more])[0] for spec in specs}
    if by_epochs := [spec for spec, config in recipes.items() if not config.steps]:
        raise UsageError(f"{', '.join(by_epochs)}: the recipe counts epochs; wanted --config.steps=N, a budget for all")
    first_of = {}  # net -> the recipe whose runs also score it untrained
    for spec, config in recipes.items():
        first_of.setdefault(_net(config), spec)
    scores = {}  # row -> column -> a score a seed, in percent
    for seed in seeds:
        for spec, config in recipes.items():
            net = _net(config)
            baselines = ["random_init"] * (first_of[net] == spec) + ["pixels"] * ((spec, seed) == (specs[0], seeds[0]))
            records = _run(pathlib.Path(flags["keep"]), spec, config, seed, more, baselines, columns)
            rows = {config.method.name: spec, "random_init": f"untrained {net}", "pixels": "raw pixels"}
            for kind in (config.method.name, *baselines):
                for column in columns:
                    of = scores.setdefault(rows[kind], {}).setdefault(column, [])
                    of.append(100 * records[kind, *column])
            print(f"{spec}, seed {seed}: " + ", ".join(f"{e} at {n} {scores[spec][e, n][-1]:.1f}" for e, n in columns),
                  flush=True)
    print("\n" + _table(recipes, scores, columns))


def _command(spec):
    name, colon, variant = spec.partition(":")
    return ["methods", f"--config={CONFIGS / name}.py{colon}{variant}"]


def _run(keep, spec, config, seed, more, baselines, columns):
    """Trains and scores what is not there yet: {(kind, eval, labels): accuracy}."""
    workdir = keep / f"{spec.replace(':', '_')}_{seed}"
    wanted = {(kind, *column) for kind in (config.method.name, *baselines) for column in columns}
    if not wanted <= set(_records(workdir, config.steps)):
        workdir.mkdir(parents=True, exist_ok=True)
        with open(workdir / "log.txt", "a") as log, contextlib.redirect_stdout(log):
            train([*_command(spec), *more, f"--workdir={workdir}", f"--config.seed={seed}", "--config.evals.every=0",
                   "--config.evals.best=", "--config.pictures=false", "--config.compile_cache=false"])
            evaluate(["evals", f"--workdir={workdir}", "--evals=knn,linear", "--nopictures",
                      f"--labels={','.join(str(n) for n in dict.fromkeys(n for _, n in columns))}",
                      f"--baselines={','.join(baselines)}"])
        jax.clear_caches()
    return _records(workdir, config.steps)


def _records(workdir, step):
    path = workdir / "evals.json"
    records = json.loads(path.read_text()) if path.exists() else []
    return {(r["features"], r["eval"], r["labels_per_class"]): r["accuracy"] for r in records if r["step"] == step}


def _table(recipes, scores, columns):
    lines = ["| | net | steps x batch | " + " | ".join(f"{'kNN' if e == 'knn' else e}, {n}" for e, n in columns) +
             " | least above untrained |", "|" + "---|" * (4 + len(columns))]
    below = []
    for spec, config in recipes.items():
        untrained = scores[f"untrained {_net(config)}"]
        margins = {c: _above(scores[spec][c], untrained[c]) for c in columns}
        least = min(margins, key=lambda c: margins[c][0])
        below += [f"{spec}, {e} at {n}: {_said(*margins[e, n], '+')}" for e, n in columns
                  if margins[e, n][0] <= max(LEAST, margins[e, n][1])]
        lines.append(_row(_title(spec), _size(config), f"{config.steps} x {config.batch}",
                          [scores[spec][c] for c in columns], _said(*margins[least], "+")))
    shown = {f"untrained {_net(config)}": f"untrained {_size(config)}" for config in recipes.values()}
    lines += [_row(shown.get(row, row), "", "", [found[c] for c in columns], "") for row, found in scores.items()
              if row not in recipes]
    verdict = (f"Not {LEAST:g} points and two standard errors above the untrained net: {'; '.join(below)}." if below else
               f"All are {LEAST:g} points and two standard errors above their untrained net.")
    return "\n".join([*lines, "", verdict])


def _row(name, net, budget, found, margin):
    cells = [_said(statistics.fmean(of), 2 * _error(of)) for of in found]
    return "| " + " | ".join([name, net, budget, *cells, margin]) + " |"


def _title(spec):
    """What a row is called: the method and the variant that is asked for."""
    return spec.replace("_digits", "").replace("folder:method=", "")


def _said(mean, twice, sign=""):
    """A mean and two standard errors, which a single value has not."""
    return f"{mean:{sign}.1f}" + ("" if math.isnan(twice) else f" ± {twice:.1f}")


def _error(values):
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan


def _above(values, others):
    """Difference of means, and two standard errors of it."""
    return statistics.fmean(values) - statistics.fmean(others), 2 * math.hypot(_error(values), _error(others))


def _net(config):
    """What tells a backbone from others: nets that are alike in it are scored untrained once."""
    return repr(sorted(config.nets.backbone.to_dict().items()))


def _size(config):
    """The backbone as a row calls it: its name, and its size as its factory counts it."""
    net = config.nets.backbone
    sizes = ["-".join(map(str, net[k])) if k == "channels" else str(net[k]) for k in ("size", "depth", "width", "channels")
             if net.get(k)]
    return f"{net.name}, {' x '.join(sizes)}" if sizes else net.name


if __name__ == "__main__":
    command(main)
