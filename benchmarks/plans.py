"""The tables of docs/pods.md: what `python -m simclr_jax.plan` says of large recipes on pods that need not be there.

    python benchmarks/plans.py --keep plans.jsonl
    python benchmarks/plans.py --keep plans.jsonl --only scaling --minutes 60

Every row is a process of its own, one after the other, of a minute or more. It is kept in the file, so that the next
call goes on where this one ended; `--minutes 0` only prints. Needs libtpu (`pip install -e '.[tpu]'`).
"""
import argparse
import json
import pathlib
import subprocess
import sys
import time
from typing import NamedTuple

from simclr_jax.plan import chips

ROOT = pathlib.Path(__file__).parents[1]
PODS = "v3:8x8", "v4:2x4x4", "v5e:16x16"  # what Cloud TPU calls v3-128, v4-64 (both by cores) and v5litepod-256
REMAT, SPLIT = ("remat", "--config.remat=true"), ("2 micro-batches", "--config.microbatches=2")
AGAIN = {("CLIP B/32, 32,768", PODS[0]): REMAT, ("SigLIP B/16, 32,768", PODS[0]): REMAT,
         ("SigLIP B/16, 32,768", PODS[1]): REMAT, ("SimCLR ResNet-50 4x, 8,192", PODS[1]): SPLIT}
LAION = "--examples=400000000"  # LAION-400M, which open_clip's B/32 was trained on; SigLIP's recipe counts steps


class Row(NamedTuple):
    name: str
    topology: str
    config: str  # as --config has it
    more: tuple = ()

    @property
    def argv(self):
        return (f"--config=configs/{self.config}", f"--topology={self.topology}", *self.more)


def _simclr(batch, width=1):
    """100 epochs of the small net, 1000 of the wide ones, as the paper's tables have them."""
    return f"simclr_imagenet.py:batch={batch},width={width},epochs={100 if width == 1 else 1000}"


def recipes():
    """The large recipes; with texts on v3, and where one does not fit, also with less kept for the backward pass."""
    for row in _plain():
        yield row
        if less := AGAIN.get((row.name, row.topology)):
            yield row._replace(name=f"{row.name}, {less[0]}", more=(*row.more, less[1]))


def _plain():
    for width in (1, 2, 4):
        for batch in (4096, 8192):
            for pod in PODS:
                yield Row(f"SimCLR ResNet-50 {width}x, {batch:,}", pod, _simclr(batch, width))
    for name, config in (("CLIP B/32", "clip_vit_b32.py"), ("SigLIP B/16", "siglip_vit_b16.py")):
        for pod in PODS:
            yield Row(f"{name}, 32,768", pod, config, (LAION,))


def scaling():
    """32 images a chip on 16 to 256 chips, with both ways to meet other chips' embeddings."""
    for comm in ("gather", "ring"):
        for pod, chips in (("v5e:4x4", 16), ("v5e:4x8", 32), ("v5e:8x8", 64), ("v5e:8x16", 128), ("v5e:16x16", 256)):
            yield Row(comm, pod, f"simclr_imagenet.py:batch={32 * chips}", (f"--config.method.comm={comm}",))


def where():
    """What augmentation in the step costs."""
    yield Row("with augmentation in it", "v3:8x8", _simclr(4096))
    yield Row("without: views come finished", "v3:8x8", _simclr(4096), ("--config.augment.where=host",))


def gpus():
    """SimCLR ResNet-50 on GPUs, whose compiler needs one: arithmetic alone, at the card's peak."""
    for batch in (4096, 8192):
        for cards, pieces in ((8, 2), (1, batch // 256)):
            yield Row(f"{cards} x H100, {batch:,}", f"cpu:{cards}", _simclr(batch),
                      (f"--config.microbatches={pieces}", "--nocompile"))


TABLES = {"where": where, "recipes": recipes, "scaling": scaling, "gpus": gpus}


def main():
    flags = _flags()
    kept = _read(flags.keep)
    stop = time.monotonic() + 60 * flags.minutes
    for row in (row for table in flags.only for row in TABLES[table]()):
        if row.argv not in kept and time.monotonic() < stop:
            kept[row.argv] = _made(row)
            with flags.keep.open("a") as f:
                print(json.dumps({"argv": row.argv, "plan": kept[row.argv]}), file=f)
    for table in flags.only:
        print(f"\n{TABLES[table].__doc__}\n")
        rows = list(TABLES[table]())
        {"scaling": _scaling, "gpus": _gpus}.get(table, _recipes)([row for row in rows if row.argv in kept], kept)
        if missing := [f"{row.name} on {row.topology}" for row in rows if row.argv not in kept]:
            print(f"\nNot made yet: {'; '.join(missing)}.")


def _flags():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--keep", type=pathlib.Path, default=pathlib.Path("plans.jsonl"))
    p.add_argument("--only", nargs="+", choices=TABLES, default=list(TABLES))
    p.add_argument("--minutes", type=float, default=float("inf"), help="after which no further row is begun")
    return p.parse_args()


def _read(file):
    lines = file.read_text().splitlines() if file.exists() else []
    return {tuple(row["argv"]): row["plan"] for row in map(json.loads, lines)}


def _made(row):
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "simclr_jax.plan", *row.argv, "--nolargest", "--json"], cwd=ROOT,
                          stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"error: {' '.join(row.argv)} ended with code {done.returncode}")
    print(f"{row.name} on {row.topology}: {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
    return json.loads(done.stdout)


def _recipes(rows, kept):
    print("| run | pod | rows a device | memory a device, GiB: kept, temporary, of | collectives: count (MiB) "
          "| TFLOP a device | least ms: products, memory, links | compiler's ms | images/s at most | hours at least "
          "| chip-hours |")
    print("|" + "---|" * 11)
    for row in rows:
        print("|", " | ".join([row.name, row.topology, *_cells(kept[row.argv])]), "|")


def _cells(r):
    m, gib = r["memory_bytes"], lambda size: "?" if size is None else f"{size / 2**30:.2f}"
    rows, work = str(r["batch"] // r["mesh"]["data"]), f"{r['flops'] / 1e12:.2f}"
    if not r["fits"]:
        return [rows, f"does not fit: {gib(m['total'])} of {gib(m['limit'])}", "", work, "", "", "", "", ""]
    moved = ", ".join(f"{v['count']} {k} ({v['bytes'] / 2**20:.0f})" for k, v in r["collectives"].items())
    mark = {k: "**" * (k == r["bound_by"]) for k in r["bounds_s"]}
    bounds = ", ".join(f"{mark[k]}{1e3 * v:.1f}{mark[k]}" for k, v in r["bounds_s"].items())
    own = f"{1e3 * r['compiler_time_s']:.1f}" if r["compiler_time_s"] else "none"
    hours = [f"{r[k]:,.1f}" if r[k] else "" for k in ("hours", "chip_hours")]
    return [rows, f"{gib(m['arguments'])}, {gib(m['temporary'])}, {gib(m['limit'])}", moved, work, bounds, own,
            f"{r['images_per_s']:,.0f}", *hours]


def _scaling(rows, kept):
    print("| comm | pod | batch | temporary, MiB a device | reduced, MiB | gathered, MiB | passed on, MiB "
          "| sent a device, MiB | least ms: products, memory, links |")
    print("|" + "---|" * 9)
    for row in rows:
        r = kept[row.argv]
        size = lambda kind: f"{r['collectives'].get(kind, {'bytes': 0})['bytes'] / 2**20:.1f}"
        print("|", " | ".join([
            row.name, row.topology, f"{r['batch']:,}", f"{r['memory_bytes']['temporary'] / 2**20:,.0f}",
            size("all-reduce"), size("all-gather"), size("collective-permute"), f"{r['links_bytes'] / 2**20:.1f}",
            ", ".join(f"{1e3 * v:.1f}" for v in r["bounds_s"].values())]), "|")


def _gpus(rows, kept):
    card = chips.CHIPS["NVIDIA H100 80GB HBM3"]
    print("| run | micro-batches | TFLOP a card and step | least ms by products alone | hours at least | card-hours |")
    print("|" + "---|" * 6)
    for row in rows:
        r = kept[row.argv]
        seconds = r["flops"] / card.flops
        hours = r["steps"] * seconds / 3600
        print(f"| {row.name} | {r['microbatches']} | {r['flops'] / 1e12:.1f} | {1e3 * seconds:.0f} | {hours:.1f} | "
              f"{hours * r['devices']:.1f} |")


if __name__ == "__main__":
    main()
