"""Every method on the embedded digits by its own recipe, beside the same nets untrained and the pixels: one Markdown table.

    python benchmarks/methods.py --keep=DIR [--methods=byol,dino] [--seeds=0,1,2] [--steps=N]

Each recipe configs/METHOD_digits.py runs once a seed of pretraining, for its own steps or --steps, and is scored by
`python -m simclr_jax.evals`: kNN and linear probe at 1 and 5 labels a class on the 500 test images, means over its ten
draws of labels, which are the same for all. A cell is the mean over seeds and two standard errors of it (deviation over
seeds / sqrt(seeds)). Untrained nets are scored once for each kind of net and seed, the pixels once.

DIR keeps a workdir a run, METHOD_SEED: the same command goes on where it was stopped, and what is scored is not run again.
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
KNOWN = sorted(f.stem.removesuffix("_digits") for f in CONFIGS.glob("*_digits.py") if f.stem != "clip_digits")
COLUMNS = [(name, labels) for name in ("knn", "linear") for labels in (1, 5)]
LEAST = 3.0  # points above the untrained net that a method is to have, and two standard errors


def main(argv):
    flags = configs.options(argv, keep="", methods=",".join(KNOWN), seeds="0,1,2", steps=0)
    methods = list(dict.fromkeys(filter(None, flags["methods"].split(","))))
    for name in methods:
        if name not in KNOWN:
            raise UsageError(f"--methods: there is no configs/{name}_digits.py{names.near(name, KNOWN)}")
    seeds = [s for s in flags["seeds"].split(",") if s]
    if not flags["keep"] or not methods or not seeds or not all(s.isdecimal() for s in seeds) or flags["steps"] < 0:
        raise UsageError(f"--keep={flags['keep']} --methods={flags['methods']} --seeds={flags['seeds']} "
                         f"--steps={flags['steps']}: wanted a directory, methods, whole numbers such as 0,1,2, and 0 or more")
    more = [f"--config.steps={flags['steps']}"] * bool(flags["steps"])
    recipes = {name: configs.parse([*_recipe(name), *more])[0] for name in methods}
    first_of = {}  # net -> the method whose runs also score it untrained
    for name, config in recipes.items():
        first_of.setdefault(_net(config), name)
    scores = {}  # row -> column -> a score a seed, in percent
    for seed in seeds:
        for name, config in recipes.items():
            net = _net(config)
            baselines = ["random_init"] * (first_of[net] == name) + ["pixels"] * ((name, seed) == (methods[0], seeds[0]))
            records = _run(pathlib.Path(flags["keep"]), name, config, seed, more, baselines)
            rows = {name: name, "random_init": f"untrained {net}", "pixels": "raw pixels"}
            for kind in (name, *baselines):
                for column in COLUMNS:
                    of = scores.setdefault(rows[kind], {}).setdefault(column, [])
                    of.append(100 * records[kind, *column])
            print(f"{name}, seed {seed}: " + ", ".join(f"{e} at {n} {100 * records[name, e, n]:.1f}" for e, n in COLUMNS),
                  flush=True)
    print("\n" + _table(recipes, scores))


def _recipe(name):
    return ["methods", f"--config={CONFIGS / name}_digits.py"]


def _run(keep, name, config, seed, more, baselines):
    """Trains and scores what is not there yet: {(kind, eval, labels): accuracy}."""
    workdir = keep / f"{name}_{seed}"
    wanted = {(kind, *column) for kind in (name, *baselines) for column in COLUMNS}
    if not wanted <= set(_records(workdir, config.steps)):
        workdir.mkdir(parents=True, exist_ok=True)
        with open(workdir / "log.txt", "a") as log, contextlib.redirect_stdout(log):
            train([*_recipe(name), *more, f"--workdir={workdir}", f"--config.seed={seed}", "--config.evals.every=0",
                   "--config.evals.best=", "--config.pictures=false", "--config.compile_cache=false"])
            evaluate(["evals", f"--workdir={workdir}", "--evals=knn,linear", "--labels=1,5", "--nopictures",
                      f"--baselines={','.join(baselines)}"])
        jax.clear_caches()
    return _records(workdir, config.steps)


def _records(workdir, step):
    path = workdir / "evals.json"
    records = json.loads(path.read_text()) if path.exists() else []
    return {(r["features"], r["eval"], r["labels_per_class"]): r["accuracy"] for r in records if r["step"] == step}


def _table(recipes, scores):
    lines = ["| | net | steps x batch | " + " | ".join(f"{'kNN' if e == 'knn' else e}, {n}" for e, n in COLUMNS) +
             " | least above untrained |", "|" + "---|" * (4 + len(COLUMNS))]
    below = []
    for name, config in recipes.items():
        untrained = scores[f"untrained {_net(config)}"]
        margins = {c: _above(scores[name][c], untrained[c]) for c in COLUMNS}
        least = min(margins, key=lambda c: margins[c][0])
        below += [f"{name}, {e} at {n}: {_said(*margins[e, n], '+')}" for e, n in COLUMNS
                  if margins[e, n][0] <= max(LEAST, margins[e, n][1])]
        lines.append(_row(name, _net(config), f"{config.steps} x {config.batch}", scores[name],
                          _said(*margins[least], "+")))
    lines += [_row(row, "", "", found, "") for row, found in scores.items() if row not in recipes]
    verdict = (f"Not {LEAST:g} points and two standard errors above the untrained net: {'; '.join(below)}." if below else
               f"All are {LEAST:g} points and two standard errors above their untrained net.")
    return "\n".join([*lines, "", verdict])


def _row(name, net, budget, found, margin):
    cells = [_said(statistics.fmean(found[c]), 2 * _error(found[c])) for c in COLUMNS]
    return "| " + " | ".join([name, net, budget, *cells, margin]) + " |"


def _said(mean, twice, sign=""):
    """A mean and two standard errors, which a single value has not."""
    return f"{mean:{sign}.1f}" + ("" if math.isnan(twice) else f" ± {twice:.1f}")


def _error(values):
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan


def _above(values, others):
    """Difference of means, and two standard errors of it."""
    return statistics.fmean(values) - statistics.fmean(others), 2 * math.hypot(_error(values), _error(others))


def _net(config):
    """The backbone as a row calls it: its name, and what is not as its factory has it."""
    spec = config.nets.backbone.to_dict()
    usual = names.defaults(names.factory("nets", spec["name"]), ("axis", "remat"))
    own = [f"{k}={v}" for k, v in spec.items() if k != "name" and v != usual[k]]
    return " ".join([spec["name"], *own])


if __name__ == "__main__":
    command(main)
