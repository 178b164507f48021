"""Whether a run can start here, and what to do if not. Composition, for the command.

    python -m simclr_jax.plan --doctor                                     # the machine alone
    python -m simclr_jax.plan --doctor --config=FILE --workdir=DIR         # and this run on it; `--seconds` of loading
"""
import contextlib
import importlib.metadata
import importlib.util
import math
import os
import pathlib
import platform
import shutil
import tempfile
from typing import NamedTuple

import jax
from etils import epath

from simclr_jax import bench, build, config as configs, data, dist
from simclr_jax.data import memory
from simclr_jax.errors import UsageError
from simclr_jax.life import job
from simclr_jax.train import workdir as workdirs
from simclr_jax.train.state import state_shapes

OK, NOTE, BAD = "ok", "note", "bad"  # BAD: training would not start
PACKAGES = "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "ml-collections", "tensorflow", "tensorflow-cpu", "libtpu"
GIB = 2 ** 30


class Finding(NamedTuple):
    level: str
    what: str
    text: str
    fix: str = ""  # what to do; empty where nothing is wrong

    def __str__(self):
        return f"{self.level:<5} {self.what:<14} {self.text}" + (f"\n{'':20} -> {self.fix}" if self.fix else "")


def doctor(config=None, workdir=None, *, seconds: float = 2.0) -> list[Finding]:
    """What was found, one thing after the other; training can start if nothing is BAD. Writes nothing that stays.

    Args:
      config: of the run, or None for what does not depend on it; workdir: of the run, or None.
      seconds: how long to measure the loader for; 0: not.
    """
    found = [_versions(), _processes(), *_devices(), _machine(), _compile_cache(config)]
    if workdir is not None:
        found.append(_workdir(workdir))
    if config is None:
        return found
    try:
        mesh, source = build.mesh(config), build.source(config)
        data.check(source, batch=config.batch, process=dist.share(mesh))
        recipe = build.recipe(config)
        with tempfile.TemporaryDirectory() as folder:
            tokenizer = build.tokenizer(config, source, epath.Path(workdir or folder))
        method = build.method(config, axis=dist.rows_axis(mesh), examples=source.size, tokenizer=tokenizer)
        rows = build.rows(config, recipe, tokenizer)
        state = state_shapes(method, build.optimiser(config, source.size).tx, rows, seed=config.seed)
    except UsageError as e:
        return [*found, Finding(BAD, "run", str(e))]
    layout = " x ".join(f"{name} {size}" for name, size in mesh.shape.items())
    found.append(Finding(OK, "run", f"{config.method.name}, batch {config.batch} over mesh {layout}; "
                                    f"data: {source.describe}"))
    if workdir is not None and (room := _room(config, state, workdir)):
        found.append(room)
    if seconds:
        found.append(_loader(config, source, recipe, seconds))
    return found


def _versions():
    have = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            have[name] = importlib.metadata.version(name)
    text = f"Python {platform.python_version()}, " + ", ".join(f"{k} {v}" for k, v in have.items())
    if not {"tensorflow", "tensorflow-cpu"} & set(have):
        return Finding(NOTE, "versions", f"{text}; no TensorFlow",
                       "pip install tensorflow-cpu, unless all data is arrays or a cache")
    return Finding(OK, "versions", text)


def _processes():
    """Of which job this is, by what launchers leave in the environment."""
    e = os.environ
    if job.detected() and "SLURM_JOB_ID" in e:
        name = f"SLURM job {e['SLURM_JOB_ID']}"
    elif "TPU_WORKER_HOSTNAMES" in e or "TPU_PROCESS_ADDRESSES" in e:
        name = "GKE TPU slice"
    elif job.detected():
        name = "TPU VM or MPI job"
    else:
        if "SLURM_JOB_ID" in e:
            return Finding(NOTE, "processes", f"one, within SLURM job {e['SLURM_JOB_ID']} but not started by srun",
                           "start it by srun, as launch/slurm.sbatch does, to use all tasks of the job")
        return Finding(OK, "processes", "one; no SLURM, TPU pod, GKE or MPI job in the environment")
    return Finding(OK, "processes", f"{name}: {jax.process_count()} processes, this is number {jax.process_index()}")


def _devices():
    first = jax.local_devices()[0]
    stats = first.memory_stats() or {}
    size = f", {stats['bytes_limit'] / GIB:.1f} GiB each" if "bytes_limit" in stats else ""
    yield Finding(OK, "devices", f"{jax.device_count()} {first.platform} ({first.device_kind}){size}, "
                                 f"{jax.local_device_count()} here")
    if first.platform != "cpu" or os.environ.get("JAX_PLATFORMS") == "cpu":
        return
    if pathlib.Path("/proc/driver/nvidia/version").exists():
        yield Finding(NOTE, "devices", "an NVIDIA driver is here, and JAX uses the CPU", "pip install -e '.[gpu]'")
    vfio = importlib.util.find_spec("libtpu") and pathlib.Path("/dev/vfio/0").exists()  # other devices are there too
    if vfio or any(pathlib.Path("/dev").glob("accel[0-9]*")):
        yield Finding(NOTE, "devices", "a TPU is here, and JAX uses the CPU",
                      "pip install -e '.[tpu]'; end what else uses the TPU")


def _machine():
    pages = {name: os.sysconf(name) * os.sysconf("SC_PAGE_SIZE") / GIB for name in ("SC_PHYS_PAGES", "SC_AVPHYS_PAGES")}
    return Finding(OK, "machine", f"{memory.cores()} cores, {pages['SC_PHYS_PAGES']:.1f} GiB of memory, {platform.platform()}")


def _compile_cache(config):
    place = jax.config.jax_compilation_cache_dir or (config is None or config.compile_cache) and "WORKDIR/compiled"
    if not place:
        return Finding(NOTE, "compile cache", "none: each start compiles anew", "leave config.compile_cache at true")
    return Finding(OK, "compile cache", str(place))


def _workdir(workdir):
    """Writes a file next to where the run will, and takes it away."""
    there = workdir
    while "://" not in str(there) and not there.exists():
        there = there.parent
    try:
        if "://" in str(there):
            probe = there / ".doctor"
            probe.write_text("x")
            probe.unlink()
            return Finding(OK, "workdir", f"{workdir} can be written")
        with tempfile.NamedTemporaryFile(dir=there, prefix=".doctor"):
            pass
    except Exception as e:  # each store raises its own kinds
        cause = f"{type(e).__name__}: {' '.join(str(e).split())[:120]}"
        return Finding(BAD, "workdir", f"{workdir} cannot be written ({cause})", "give another --workdir, or ask for access")
    return Finding(OK, "workdir", f"{workdir} can be written, {shutil.disk_usage(there).free / GIB:.1f} GiB free")


def _room(config, state, workdir):
    """Whether the checkpoints that are kept, the best one and one that is being written fit; None for object stores."""
    while "://" not in str(workdir) and not workdir.exists():
        workdir = workdir.parent
    if "://" in str(workdir):
        return None
    each = sum(x.dtype.itemsize * math.prod(x.shape) for x in jax.tree.leaves(state))
    count, free = config.checkpoint.keep + 1 + bool(config.evals.best), shutil.disk_usage(workdir).free
    text = f"{each / GIB:.2f} GiB each, {count} at once, of {free / GIB:.1f} GiB free"
    if config.checkpoint.keep_every:
        text += f"; every {config.checkpoint.keep_every:,} steps one more"
    if free < count * each:
        return Finding(BAD, "checkpoints", text, "make room, or lower --config.checkpoint.keep")
    return Finding(OK, "checkpoints", text)


def _loader(config, source, recipe, seconds):
    try:
        rate = bench.feed_rate(config, source, recipe, config.augment.where, seconds)
    except UsageError as e:
        return Finding(BAD, "loader", str(e))
    return Finding(OK, "loader", f"{rate:,.0f} images/s, where={config.augment.where}; a step may wait for it: see "
                                 "python -m simclr_jax.data --bench")


def main(argv: list[str]) -> None:
    """The command; SystemExit(2) if training would not start."""
    options, config = dict(doctor=True, workdir="", seconds="2"), None
    if any(a.startswith("--config=") for a in argv) or "--help" in argv:
        config, flags = configs.parse(argv, **options)
        configs.check(config)
        build.start_devices(build.cpu_devices(config))
    else:
        flags = configs.options(argv, **options)
    try:
        seconds = float(flags["seconds"])
    except ValueError:
        raise UsageError(f"--seconds={flags['seconds']}, wanted a number, 0 to leave the loader out") from None
    job.start()  # a host of a pod sees its devices only with the others
    workdir = workdirs.resolve(flags["workdir"]) if flags["workdir"] else None
    found = doctor(config, workdir, seconds=seconds)
    print(*found, sep="\n")
    bad = [f.what for f in found if f.level == BAD]
    if bad:
        print(f"not ready: {', '.join(bad)}")
        raise SystemExit(2)
    print("ready" + ("" if config is not None and workdir is not None else " as far as looked at; --config=FILE and "
                     "--workdir=DIR look further"))
