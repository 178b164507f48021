"""`python -m simclr_jax.data --config=FILE` and one of --cache=DIR, --preview=FILE.png, --bench; or `--check=DIR`.

--cache    decodes every image once into DIR, from which training then reads; `--size`, `--shards`, `--split=a|b`
--check    tests every checksum of a cache
--preview  draws what the network sees of the first examples; `--examples`
--bench    images/s of every stage of the feed, alone and together, and the settings to choose; `--seconds`, `--nostep`
"""
import contextlib

import jax
import numpy as np

from simclr_jax import augment, bench, build, config as configs
from simclr_jax.life import command
from simclr_jax.data import cache, cache_write
from simclr_jax.data.decoded import squeezed
from simclr_jax.errors import UsageError

DOES = dict(cache="", check="", preview="", bench=False)
OPTIONS = dict(**DOES, size=0, shards=0, split="", examples=8, seconds="2", step=True)


def main(argv: list[str]) -> None:
    named = any(a.startswith("--config") for a in argv) or "--help" in argv
    asked = [a.removeprefix("--").split("=")[0] for a in argv[1:]]
    if not named and "check" in asked:
        config, flags = None, configs.options(argv, **OPTIONS)
    else:
        config, flags = configs.parse(argv, **OPTIONS)
    wanted = [name for name in DOES if flags[name]]
    if len(wanted) != 1:
        given = " and ".join(f"--{name}" for name in wanted) or "none"
        raise UsageError(f"{given} given; wanted exactly one of --cache=DIR, --check=DIR, --preview=FILE.png, --bench")
    {"cache": _cache, "check": _check, "preview": _preview, "bench": _bench}[wanted[0]](config, flags)


def _cache(config, flags):
    train = config.data.get("split") or config.evals.train
    asked = list(filter(None, flags["split"].split("|")))
    for split in asked or dict.fromkeys([train, config.evals.test]):
        try:
            source = build.source(config, split)
        except UsageError as e:
            if asked or split == train:
                raise
            print(f"{split}: left out, there is none: {e}")
            continue
        cache_write.write(source, flags["cache"], split, size=flags["size"], shards=flags["shards"],
                          say=lambda line: print(line, flush=True))
    print(f"done: {flags['cache']}\nto train from it: --config.data.name=cache --config.data.root={flags['cache']}"
          + (f" --config.data.split={train!r}" if train != "train" else ""))


def _check(config, flags):
    root = flags["check"]
    bad = []
    for split in cache.splits(root) or ["train"]:  # a message names the latter if there is none
        try:
            index = cache.read(root, split)
            cache.check(root, split, index)
        except UsageError as e:
            bad.append(str(e))
        else:
            print(f"{split}: {len(index.labels):,} images of {index.shape[0]} x {index.shape[1]} in "
                  f"{len(index.counts)} shards, all checksums right ({index.describe})", flush=True)
    if bad:
        raise UsageError("; ".join(bad))


def _preview(config, flags):
    file = flags["preview"]
    if not file.lower().endswith(".png") or flags["examples"] < 1:
        raise UsageError(f"--preview={file} --examples={flags['examples']}: wanted a file that ends in .png and at "
                         "least one example")
    build.start_devices(1)
    source = build.source(config)
    # Normalising stays a step of the recipe, since ops draw by their place, but leaves the colours as they are.
    views = [[("clip", dict(low=-1e6, high=1e6)) if name == "normalize" else (name, kwargs) for name, kwargs in view]
             for view in config.augment.views]
    build.recipe(config)  # refuses what that would hide
    recipe, count = augment.build(views), min(flags["examples"], source.size)
    with contextlib.closing(build.feed(config, source, recipe, batch=count, where="host")) as batches:
        batch = next(batches)
    shown = [[_original(source, int(i)) for i in batch["id"][:, 0]]]
    for key in recipe.shapes():
        shown += [batch[key][:, v] for v in range(batch[key].shape[1])]
    titles = ["original", *(f"view {v + 1}" for v in range(batch["views"].shape[1]))]
    titles += [f"crop {v + 1}" for v in range(len(shown) - len(titles))]
    try:
        grid(shown, titles).save(file)
    except OSError as e:
        raise UsageError(f"--preview={file}: cannot be written ({e.strerror or e}); choose another place") from None
    print(f"{file}: {count} examples of {source.describe}, {len(titles) - 1} views each, epoch 0, seed {config.seed}")


def _original(source, index):
    image = source.read(index).image
    return image if source.sizes is None else squeezed(image, source.sizes[index])


def grid(columns, titles):
    """A picture of columns of images (u8, or f32 in [0, 1]; of any size), a title over each; small ones enlarged."""
    from PIL import Image, ImageDraw
    side = max(max(image.shape[:2]) for column in columns[1:] for image in column)
    zoom = max(1, -(-96 // side))
    cell, edge, top = side * zoom, 4, 16
    rows = len(columns[0])
    sheet = Image.new("RGB", (len(columns) * (cell + edge) + edge, top + rows * (cell + edge) + edge), "white")
    draw = ImageDraw.Draw(sheet)
    for x, (title, column) in enumerate(zip(titles, columns)):
        draw.text((edge + x * (cell + edge), 2), title, fill="#333333")
        for y, image in enumerate(column):
            image = np.asarray(image)
            if image.dtype != np.uint8:
                image = np.rint(255 * image.clip(0, 1)).astype(np.uint8)
            shrink = min(1.0, side / max(image.shape[:2]))  # of originals; small crops stay small beside the views
            size = [max(1, round(s * zoom * shrink)) for s in image.shape[1::-1]]
            how = Image.Resampling.NEAREST if shrink == 1 else Image.Resampling.LANCZOS
            picture = Image.fromarray(image).resize(size, how)
            sheet.paste(picture, (edge + x * (cell + edge) + (cell - size[0]) // 2,
                                  top + y * (cell + edge) + (cell - size[1]) // 2))
    return sheet


def _bench(config, flags):
    try:
        seconds = float(flags["seconds"])
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e6:
        raise UsageError(f"--seconds={flags['seconds']}: wanted a number above 0")
    configs.check(config)
    chosen = build.cpu_devices(config)
    build.start_devices(chosen)
    if jax.default_backend() == "cpu" and not config.devices:
        config = config.copy_and_resolve_references().unlock()
        config.devices = min(chosen, jax.device_count())
    bench.run(config, seconds=seconds, steps=flags["step"])


if __name__ == "__main__":
    command(main)
