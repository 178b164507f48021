"""Images a second through the input path, each with two views of the SimCLR recipe, beside other ways to make them.

    python benchmarks/input.py --torch-python ~/torch/bin/python       # 224 px from JPEG files
    python benchmarks/input.py --task cifar                            # 32 px from an array

Every measurement is a fresh process on all cores; contestants take turns, so that a machine which slows down slows all
of them, and each ratio is the median of those within the rounds. Without --images the JPEGs are cut from the two
photographs that scikit-learn holds: 500 x 375 or upright, and 32 x 32 for cifar.

google-research/simclr is its TF2 input function in our words (decode once; a view: distorted bounding box, bicubic
resize, jitter in random order, gray, blur of each image with p = .5), or the original with --simclr-dir.
"""
import argparse
import functools
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import input_rivals as rivals
import numpy as np
from input_rivals import SIZE, cores

ROOT = pathlib.Path(__file__).resolve().parents[1]
BATCH = {"imagenet": 64, "cifar": 512}
SIMCLR, ALBUMENTATIONS, DECODE = "google-research/simclr", "albumentations + simplejpeg", "decode alone"
HOST, PART, CACHED = "ours", "ours, host part", "ours, host part, from a cache"
TORCHVISION = "torchvision, PIL"
GOALS = {"imagenet": [(HOST, SIMCLR, 1.7), (HOST, ALBUMENTATIONS, 1.1), (HOST, TORCHVISION, 5.0), (PART, SIMCLR, 2.5),
                      (CACHED, DECODE, 3.0)],
         "cifar": [(HOST, SIMCLR, 5.0), (HOST, ALBUMENTATIONS, 5.0), (HOST, TORCHVISION, 5.0)]}
MODULES = {ALBUMENTATIONS: ("albumentations", "simplejpeg", "cv2", "torch"), TORCHVISION: ("torchvision", "PIL")}


def main():
    flags = _flags()
    names = [name for name in CONTESTANTS if _takes_part(name, flags)]
    with tempfile.TemporaryDirectory() as folder:
        data = _data(flags, pathlib.Path(folder))
        results = {name: [] for name in names}
        for round in range(flags.rounds):
            for name in names:
                results[name].append(_measure(name, data, flags, f"{folder}/cache"))
                print(f"round {round + 1} of {flags.rounds}: {name}: {results[name][-1]['rate']:,.0f} images/s",
                      file=sys.stderr, flush=True)
    _agree(results)
    print("| contestant | images/s, median | lowest to highest | mean and deviation of a view |\n|---|---|---|---|")
    for name, runs in results.items():
        rates = [r["rate"] for r in runs]
        seen = "" if runs[0]["mean"] is None else f"{runs[0]['mean']:.3f}, {runs[0]['std']:.3f}"
        print(f"| {name} | {statistics.median(rates):,.0f} | {min(rates):,.0f} to {max(rates):,.0f} | {seen} |")
    print("\n| ours | against | ratio, median of rounds | goal |\n|---|---|---|---|")
    for ours, other, goal in GOALS[flags.task]:
        if ours in results and other in results:
            ratio = statistics.median(a["rate"] / b["rate"] for a, b in zip(results[ours], results[other]))
            print(f"| {ours} | {other} | {ratio:.2f} | {goal:.1f} {'reached' if ratio >= goal else 'missed'} |")
    versions = sorted({v for runs in results.values() for v in runs[0]["versions"]})
    print(f"\n{', '.join(versions)}; {cores()} cores; {flags.rounds} rounds of {flags.seconds:g} s; batch "
          f"{flags.batch or BATCH[flags.task]}, two views of {SIZE[flags.task]} px.")


def _flags():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--task", choices=list(SIZE), default="imagenet")
    p.add_argument("--images", help="a folder of JPEG files; for cifar a .npy file, uint8[n,32,32,3]")
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--seconds", type=float, default=8.0, help="of each measurement")
    p.add_argument("--batch", type=int, help=f"images; default {BATCH}")
    p.add_argument("--only", nargs="+", metavar="NAME", help="contestants, by the beginnings of their names")
    p.add_argument("--torch-python", default=sys.executable, help="an interpreter with torchvision or albumentations")
    p.add_argument("--simclr-dir", default="", help="a checkout of google-research/simclr, for its own data_util.py")
    return p.parse_args()


# The process that asks: makes the images, starts the others and prints.


def _takes_part(name, flags):
    if flags.only and not any(name.startswith(part) for part in flags.only):
        return False
    if flags.task == "cifar" and name in (PART, CACHED, DECODE):
        return False
    return all(_imports(flags.torch_python, module) for module in MODULES.get(name, ()))


@functools.cache
def _imports(python, module):
    done = subprocess.run([python, "-c", f"import {module}"], stderr=subprocess.PIPE, text=True)
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1]
        print(f"{module} left out (see --torch-python): {python} says {reason}", file=sys.stderr)
    return done.returncode == 0


def _data(flags, folder):
    """The path of the images: what was given, or photographs cut into pieces."""
    if flags.images:
        path = pathlib.Path(flags.images)
        there = path.is_file() if flags.task == "cifar" else path.is_dir() and any(path.glob("*.jp*g"))
        if not there:
            wanted = "a .npy file" if flags.task == "cifar" else "a folder of JPEG files"
            sys.exit(f"error: --images={path}: there is nothing to read, wanted {wanted}")
        return path.resolve()
    from PIL import Image
    from sklearn.datasets import load_sample_images
    photographs, rng = [Image.fromarray(i) for i in load_sample_images().images], np.random.default_rng(0)
    small, pieces = flags.task == "cifar", []
    for i in range(10_000 if small else 120):
        photograph = photographs[i % 2]
        width, height = photograph.size
        aspect, share = (1.0, rng.uniform(0.05, 1)) if small else ((4 / 3, 3 / 4)[i % 5 == 4], rng.uniform(0.5, 1))
        w = share * min(width, height * aspect)
        x, y = rng.uniform(0, width - w), rng.uniform(0, height - w / aspect)
        size = (32, 32) if small else (500, 375) if aspect > 1 else (375, 500)
        pieces.append(photograph.resize(size, Image.Resampling.BICUBIC, (x, y, x + w, y + w / aspect)))
    if small:
        np.save(folder / "pieces.npy", np.stack([np.asarray(p) for p in pieces]))
        return folder / "pieces.npy"
    (folder / "pieces").mkdir()
    for i, piece in enumerate(pieces):
        piece.save(folder / "pieces" / f"{i:03}.jpg", quality=92)  # about 100 kB, as in ImageNet
    return folder / "pieces"


def _measure(name, data, flags, cache):
    python = flags.torch_python if name in MODULES else sys.executable
    batch = flags.batch or BATCH[flags.task]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    command = [python, __file__, "--worker", name, flags.task, str(data), str(batch), str(flags.seconds),
               flags.simclr_dir, cache]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if not lines:
        reason = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        sys.exit(f"error: {name} ended with code {done.returncode} and said: {reason}")
    return json.loads(lines[-1])


def _agree(results):
    """Contestants whose views differ in number, size, brightness or contrast are not compared."""
    made = {name: runs[0] for name, runs in results.items() if runs[0]["mean"] is not None}
    for name, one in made.items():
        for other_name, other in made.items():
            if one["pixels"] != other["pixels"]:
                sys.exit(f"error: {name} makes {one['pixels']} pixels an image and {other_name} {other['pixels']}")
            if abs(one["mean"] - other["mean"]) > 0.06 or abs(one["std"] - other["std"]) > 0.06:
                sys.exit(f"error: views of {name} have mean {one['mean']:.3f} and deviation {one['std']:.3f}, of "
                         f"{other_name} {other['mean']:.3f} and {other['std']:.3f}")


# The process that measures one contestant.


def _work(name, task, data, batch, seconds, simclr_dir, cache):
    if task == "cifar":
        images = np.load(data)
    else:
        images = [f.read_bytes() for f in sorted(pathlib.Path(data).glob("*.jp*g"))]
    options = {"folder": data, "simclr_dir": simclr_dir, "cache": cache}
    batches, versions = CONTESTANTS[name](task, images, batch, options)
    for _ in range(3):  # compiling, and what was made ahead meanwhile
        made = next(batches)
    count, start = 0, time.perf_counter()
    while count == 0 or time.perf_counter() - start < seconds:
        made = next(batches)
        count += batch
    rate = count / (time.perf_counter() - start)
    mean = std = pixels = None
    if made is not None:
        made = np.stack(made) if isinstance(made, list) else np.asarray(made)
        pixels, made = made.size // batch, made.astype(np.float32) / (255 if made.dtype == np.uint8 else 1)
        if name != PART:  # its colours come later
            mean, std = float(made.mean()), float(made.std())
    print(json.dumps({"rate": rate, "pixels": pixels, "mean": mean, "std": std, "versions": versions}), flush=True)
    os._exit(0)  # no waiting for what was being made ahead


# Contestants, as in input_rivals.py.


def _ours(task, images, batch, options, where="host", cached=False):
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    import jax
    from configs.common import recipes
    from simclr_jax import build, config as configs
    from simclr_jax.data.source import of_arrays
    from simclr_jax.data.sources import cache, folder
    config = configs.base()
    config.augment.views = recipes.simclr_cifar() if task == "cifar" else recipes.simclr()
    config.augment.workers = cores()  # as the others have; in training one is left to the step
    source = of_arrays(images) if task == "cifar" else folder.make(root=options["folder"], memory=0.0)
    if cached:
        from simclr_jax.data import cache_write
        cache_write.write(source, options["cache"], "train", say=lambda line: None)  # once; the first round's is found
        source = cache.make(root=options["cache"])
    made = build.feed(config, source, build.recipe(config), batch=batch, where=where)
    return (row.get("views") for row in made), [f"jax {jax.__version__}"]


CONTESTANTS = {
    HOST: _ours, PART: functools.partial(_ours, where="device"),
    CACHED: functools.partial(_ours, where="device", cached=True),
    SIMCLR: rivals.simclr, ALBUMENTATIONS: rivals.albumentations, TORCHVISION: rivals.torchvision,
    DECODE: rivals.decode_alone,
}


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        name, task, data, batch, seconds, simclr_dir, cache = sys.argv[2:]
        _work(name, task, data, int(batch), float(seconds), simclr_dir, cache)
    else:
        main()
