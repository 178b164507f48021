"""What the TPU compiler makes of each loss, forward and backward, on a pod that need not be there.

    python benchmarks/losses_on_tpu.py --topology v5e:8x8 v3:8x8 --batch 32768

libtpu (`pip install -e '.[tpu]'`) holds the compiler and compiles for a topology by name. From the optimised program
come a device's temporary memory (HBM; small buffers live on the chip and are not counted), the collectives, and the
largest tile of the matrix of rows by rows, b x B on a device, which must not be whole.
"""
import argparse
import collections
import functools
import importlib.metadata
import importlib.util
import math
import os
import re
import sys
import time

# Before jax is imported: no TPU is looked for here, by driver or by metadata server, nor locked against others. The
# last two only keep libtpu from warning that it found none.
os.environ |= {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
               "TPU_WORKER_HOSTNAMES": "localhost", "TPU_ACCELERATOR_TYPE": "v5litepod-4"}
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
from jax.experimental import topologies  # noqa: E402
from jax.sharding import NamedSharding, PartitionSpec as P  # noqa: E402

from simclr_jax import dist  # noqa: E402
from simclr_jax.life import command  # noqa: E402
from simclr_jax.errors import UsageError  # noqa: E402
from simclr_jax.losses.clip import clip  # noqa: E402
from simclr_jax.losses.info_nce import info_nce  # noqa: E402
from simclr_jax.losses.nt_xent import nt_xent  # noqa: E402
from simclr_jax.losses.siglip import siglip  # noqa: E402
from simclr_jax.losses.sweep import TILE  # noqa: E402

QUEUE = 65536
DTYPES = {"f32": jnp.float32, "bf16": jnp.bfloat16}
WIDTH = {"f32": 4, "bf16": 2, "s32": 4, "u32": 4, "pred": 1}
STILL = "parameter", "tuple", "get-tuple-element", "bitcast", "constant", "iota", "while", "custom-call"  # move nothing
KINDS = "all-gather", "reduce-scatter", "all-reduce", "collective-permute", "all-to-all"

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
    if importlib.util.find_spec("libtpu") is None:
        raise UsageError("libtpu, which holds the TPU compiler, is not installed; pip install -e '.[tpu]'")
    versions = ", ".join(f"{p} {importlib.metadata.version(p)}" for p in ("jax", "libtpu"))
    for topology in flags.topology:
        mesh = pod(topology)
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


def pod(topology):
    """The mesh of a pod by name, data over all devices; a v4 chip is one device, as it is to a JAX that runs there."""
    how = {"chip_config_name": "megacore"} if topology.startswith("v4:") else {}
    try:
        devices = topologies.get_topology_desc(platform="tpu", topology_name=topology, **how).devices
    except Exception as e:
        raise UsageError(f"--topology={topology}: libtpu does not know it ({str(e).splitlines()[0][:120]}); wanted a "
                         "name such as v5e:8x8") from e
    return dist.make_mesh({"data": -1}, devices)


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
    once, hops = cells(collectives(text))
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


# The text of an optimised program: computations, each "%name (parameters) -> result {" and an instruction a line.


def _largest(text, dim):
    """The largest f32 shape in the program that has no side D; also inside a fusion, where nothing is stored."""
    shapes = {tuple(map(int, s.split(","))) for s in re.findall(r"f32\[([\d,]+)\]", text)}
    squeezed = {tuple(n for n in s if n > 1) for s in shapes if dim not in s}
    return max(squeezed, key=math.prod, default=())


def collectives(text):
    """{(times executed, kind): [how many, bytes of their results]}"""
    bodies, entry = _bodies(text)
    found, parts = collections.defaultdict(lambda: [0, 0]), set()
    for name, times in _times(bodies, entry).items():
        for m in re.finditer(rf"= (.*?) ({'|'.join(KINDS)})(-start)?\((.*)", bodies[name]):
            result, kind, start, rest = m.groups()
            part = re.search(r'channel_id=(\d+).*chain_id="(\d+)"', rest)  # of one that is spread over other work
            if part and part.groups() in parts:
                continue
            parts |= {part and part.groups()}
            label = ("async " if start or part else "") + kind + _origin(kind, result, rest, bodies)
            entry = found[1 if part else times, label]
            entry[0] += 1
            entry[1] += _bytes(result, both_ends=start and kind in ("all-gather", "collective-permute"))
    return found


def cells(found):
    """(executed once, executed in a loop) as text: how many of which kind, and in brackets the MiB of their results."""
    def cell(times):
        parts = [(n, kind, size / 2 ** 20) for (t, kind), (n, size) in sorted(found.items()) if t == times]
        return ", ".join(f"{n} {kind} ({'<0.1' if size < 0.1 else f'{size:.1f}'})" for n, kind, size in parts)
    loops = sorted({times for times, _ in found if times > 1})
    return cell(1) or "none", "; ".join(f"{times} times {cell(times)}" for times in loops) or "none"


def traffic(text):
    """Bytes to and from HBM: operands and results of every instruction executed, a fusion as one, tiles filled up.

    Of a stack of layers that is cut or written in place, as much as the largest cut or written part at most.
    """
    total, (bodies, entry) = 0, _bodies(text)
    for name, times in _times(bodies, entry, calls=False).items():
        stored = {}
        for line in bodies[name].splitlines():
            found = re.match(r"\s+(?:ROOT )?%(\S+) = (\((?:[^()]|\([^()]*\))*\)|\S+) ([\w-]+)\((.*?)\)(?:, |$)", line)
            stored |= {found[1]: _stored(found[2])} if found else {}
            if not found or found[3] in STILL or found[3].endswith("-done"):
                continue
            called = re.search(r"calls=%([\w.-]+)", line)
            inside = line + "\n" + bodies.get(called[1], "") if called else line
            result, read = stored[found[1]], [stored.get(x, 0) for x in re.findall(r"%([\w.-]+)", found[4])]
            if passed := re.search(r"= (\S+) all-gather\(.*chain_id=", inside):
                gathered = _stored(passed[1])  # a part of one that other work carries along, in and out
                read, result = [x for x in read if x != gathered], max(result - 2 * gathered, 0)
            if " dynamic-update-slice(" in inside:
                stack = max(read)
                read = [x for x in read if x < stack]
                result = max(result - stack, 0) + sum(read)
            elif " dynamic-slice(" in inside:
                most = max([result, *(_stored(cut) for cut in re.findall(r"= (\S+) dynamic-slice\(", inside))])
                read = [min(x, most) for x in read]
            starts = found[3].endswith("-start")  # a transfer, which lists its operands among its results
            total += times * (max(result, sum(read)) if starts else sum(read) + result)
    return total


def _bodies(text):
    """({computation: its lines}, the one that is executed first)"""
    found = re.finditer(r"^(?:ENTRY )?%(\S+) \(.*?\{\n(.*?)^\}", text, re.M | re.S)
    return {m[1]: m[2] for m in found}, re.search(r"^ENTRY %(\S+)", text, re.M)[1]


def _times(bodies, entry, calls=True):
    """How often each computation runs: a loop's body as often as its condition's bound says. calls: fusions too."""
    times, todo = {entry: 1}, [entry]
    while todo:
        name = todo.pop()
        for line in bodies[name].splitlines():
            loop = re.search(r" while\(.*condition=%([\w.-]+)", line)
            bound = int(max(re.findall(r"s32\[\]\S* constant\((\d+)\)", bodies[loop[1]]), key=int)) if loop else 1
            for called in re.findall(r"(?:body|calls)=%([\w.-]+)" if calls else r"body=%([\w.-]+)", line):
                if called not in times:
                    times[called] = times[name] * bound
                    todo.append(called)
    return times


def _origin(kind, result, rest, bodies):
    """" for ..." where the compiler has put one kind in place of that of the source, which the metadata still name."""
    if kind == "all-reduce" and "f32[]" in result and re.search(r"f32\[\d", result):
        return ", combined"  # the mean of the loss and another, under the name of one of them
    added, name = re.search(r"to_apply=%([\w.-]+)", rest), r'op_name="([^"]*)"'
    names = re.findall(name, rest) or re.findall(name, bodies[added[1]] if added else "")
    for source in ("all-gather", "reduce-scatter", "all-to-all"):
        if source != kind and any(source.replace("-", "_") in n.split("/")[-1] for n in names):
            return f" for {source}"
    return ""


def _stored(shapes):
    """Bytes in HBM of shapes such as bf16[12,64]{1,0:T(8,128)(2,1)}; S(1) and the like is memory on the chip."""
    total = 0
    form = r"(\w+)\[([\d,]*)\]\{([\d,]*)(?::T\(([\d,]*)\))?([^}]*)\}"
    for kind, dims, order, tile, rest in re.findall(form, shapes):
        if kind in WIDTH and "S(" not in rest:
            sides = [int(n) for n in dims.split(",") if n]
            for i, side in zip(order.split(","), reversed(tile.split(","))):
                if i and side:
                    sides[int(i)] += -sides[int(i)] % int(side)
            total += WIDTH[kind] * math.prod(sides)
    return total


def _bytes(result, both_ends):
    """Of a result such as (f32[8,4]{1,0}, s32[8]{0}); where it starts a transfer it lists what goes and what comes."""
    sizes = [WIDTH[t] * math.prod(int(n) for n in dims.split(",") if n)
             for t, dims in re.findall(r"(f32|bf16|s32)\[([\d,]*)\]", result)]
    return max(sizes) if both_ends else sum(sizes)


if __name__ == "__main__":
    command(main)
