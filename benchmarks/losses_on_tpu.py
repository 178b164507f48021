"""What the TPU compiler makes of each loss, forward and backward, on a pod that need not be there.

    python benchmarks/losses_on_tpu.py --topology v5e:8x8 v3:8x8 --batch 32768

libtpu (`pip install -e '.[tpu]'`) holds the compiler and compiles for a topology by name. From the optimised program
come a device's temporary memory (HBM; small buffers live on the chip and are not counted), the collectives, and the
largest tile of the matrix of rows by rows, b x B on a device, which must not be whole.
"""
from simclr_jax.plan import environment

environment.prepare_or_exit("v5e:8x8")  # before jax is imported

import argparse  # noqa: E402
import functools  # noqa: E402
import importlib.metadata  # noqa: E402
import math  # noqa: E402
import re  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
from jax.sharding import NamedSharding, PartitionSpec as P  # noqa: E402

from simclr_jax import dist  # noqa: E402
from simclr_jax.life import command  # noqa: E402
from simclr_jax.errors import UsageError  # noqa: E402
from simclr_jax.losses.clip import clip  # noqa: E402
from simclr_jax.losses.info_nce import info_nce  # noqa: E402
from simclr_jax.losses.nt_xent import nt_xent  # noqa: E402
from simclr_jax.losses.siglip import siglip  # noqa: E402
from simclr_jax.losses.sweep import TILE  # noqa: E402
from simclr_jax.plan import hlo, topology as topologies  # noqa: E402

QUEUE = 65536
DTYPES = {"f32": jnp.float32, "bf16": jnp.bfloat16}

# name: (f(x, y, queue, number, axis=, comm=), rows of the matrix per example, whether rows meet other shards' rows)
LOSSES = {
    "nt_xent": (lambda x, y, queue, t, **how: nt_xent(x, y, temperature=t, **how), 2, True),
    "clip": (lambda x, y, queue, t, **how: clip(x, y, scale=t, **how), 1, True),
    "siglip": (lambda x, y, queue, t, **how: siglip(x, y, scale=t, bias=-t, **how), 1, True),
    "info_nce": (lambda x, y, queue, t, **how: info_nce(x, y, temperature=t, **how), 1, True),
    "info_nce, queue": (lambda x, y, queue, t, **how: info_nce(x, y, negatives=queue, temperature=t, **how), 1, False),
}


def main(argv):
    flags = _flags(argv[1:])
    versions = ", ".join(f"{p} {importlib.metadata.version(p)}" for p in ("jax", "libtpu"))
    for topology in flags.topology:
        mesh = dist.make_mesh({dist.DATA: -1}, topologies.devices(topology))
        if flags.batch % mesh.size:
            raise UsageError(f"--batch={flags.batch} does not divide over the {mesh.size} devices of {topology}")
        for dtype in flags.dtype:
            print(f"\n{topology}, {mesh.size} devices ({mesh.devices.flat[0].device_kind}), {flags.batch:,} examples "
                  f"or pairs, D = {flags.dim}, {dtype}; {versions}\n")
            print("| loss | comm | temporary memory, MiB | collectives (MiB) | in a loop (MiB) | tile / (b x B) |")
            print("|---|---|---|---|---|---|")
            for name in flags.only or LOSSES:
                for comm in ("gather", "ring") if LOSSES[name][2] else ("none",):
                    print(_line(name, comm, mesh, flags.batch, flags.dim, DTYPES[dtype]), flush=True)


def _flags(argv):
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--topology", nargs="+", default=["v5e:8x8", "v3:8x8"])
    p.add_argument("--batch", type=int, default=32768, help="examples or pairs in all")
    p.add_argument("--dim", type=int, default=512)
    p.add_argument("--dtype", nargs="+", default=["f32"], choices=DTYPES)
    p.add_argument("--only", nargs="+", choices=LOSSES)
    return p.parse_args(argv)


def _line(name, comm, mesh, batch, dim, dtype):
    start = time.perf_counter()
    compiled = _compile(name, comm, mesh, batch, dim, dtype)
    text = compiled.as_text()
    per_example, meets = LOSSES[name][1:]
    candidates = batch * per_example if meets else QUEUE
    rows = batch * per_example // mesh.size
    # A table of embeddings is told from a tile by its side D, so D must not be the number of rows too.
    narrow = dim // 2 if dim == rows else dim
    tile = _largest(text if narrow == dim else _compile(name, comm, mesh, batch, narrow, dtype).as_text(), narrow)
    share = math.prod(tile) / (rows * candidates)
    if share >= 1 and math.prod(tile) > TILE:  # smaller ones are kept whole on purpose
        raise AssertionError(f"{name}, {comm}: a buffer f32{list(tile)} where b = {rows} and B = {candidates}")
    once, hops = hlo.cells(hlo.collectives(text))
    temporary = compiled.memory_analysis().temp_size_in_bytes / 2 ** 20
    row = [name, comm, f"{temporary:.1f}", once, hops, f"{'x'.join(map(str, tile))} = 1/{1 / share:.0f}"]
    print(f"{name}, {comm}: {time.perf_counter() - start:.0f} s", file=sys.stderr)
    return "| " + " | ".join(row) + " |"


def _compile(name, comm, mesh, batch, dim, dtype):
    loss = functools.partial(LOSSES[name][0], axis=dist.DATA, **({"comm": comm} if LOSSES[name][2] else {}))
    specs = P(dist.DATA), P(dist.DATA), P(), P()
    shapes = [jax.ShapeDtypeStruct((batch, dim), dtype)] * 2 + [jax.ShapeDtypeStruct((QUEUE, dim), dtype),
                                                                 jax.ShapeDtypeStruct((), jnp.float32)]
    # The queue holds past keys, without gradient.
    step = jax.value_and_grad(lambda x, y, queue, t: dist.pmean(loss(x, y, queue, t), dist.DATA), argnums=(0, 1, 3))
    step = jax.shard_map(step, mesh=mesh, in_specs=specs, out_specs=(P(), (specs[0], specs[1], P())))
    placed = tuple(NamedSharding(mesh, s) for s in specs)
    return jax.jit(step, in_shardings=placed).lower(*shapes).compile()


def _largest(text, dim):
    """The largest f32 shape in the program that has no side D; also inside a fusion, where nothing is stored."""
    shapes = {tuple(map(int, s.split(","))) for s in re.findall(r"f32\[([\d,]+)\]", text)}
    squeezed = {tuple(n for n in s if n > 1) for s in shapes if dim not in s}
    return max(squeezed, key=math.prod, default=())


if __name__ == "__main__":
    command(main)
