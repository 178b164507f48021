"""What an optimised program says: its collectives and its traffic with memory, a loop's body as often as it runs.

The text is that of `jax.stages.Compiled.as_text`: computations, each "%name (parameters) -> result {" and a line for
each instruction.
"""
import collections
import math
import re

WIDTH = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f32": 4, "s32": 4, "u32": 4, "f64": 8,
         "s64": 8, "u64": 8}
KINDS = "all-gather", "reduce-scatter", "all-reduce", "collective-permute", "all-to-all"
STILL = ("parameter", "tuple", "get-tuple-element", "bitcast", "constant", "iota", "while", "call", "conditional",
         "custom-call")  # move nothing themselves
_SHAPE = rf"\b({'|'.join(WIDTH)})\[([\d,]*)\]"


def collectives(text: str) -> dict:
    """{(times executed, kind): [how many, bytes of their results, bytes sent]}, of one device.

    Sent is what a device must send, or receive where that is more.

    kind is one of `KINDS`, before it "async " where other work runs meanwhile, and after it " for KIND" where the
    compiler has put one in place of what the source asks, or ", combined".
    """
    bodies, entry = _bodies(text)
    devices = int((re.search(r"num_partitions=(\d+)", text) or [0, 1])[1])
    found, parts = collections.defaultdict(lambda: [0, 0, 0]), set()
    for name, times in _times(bodies, entry).items():
        for m in re.finditer(rf"= (.*?) ({'|'.join(KINDS)})(-start)?\((.*)", bodies[name]):
            result, kind, start, rest = m.groups()
            part = re.search(r'channel_id=(\d+).*chain_id="(\d+)"', rest)  # of one that is spread over other work
            if part and part.groups() in parts:
                continue
            parts |= {part and part.groups()}
            label = ("async " if start or part else "") + kind + _origin(kind, result, rest, bodies)
            size = _bytes(result, both_ends=start and kind in ("all-gather", "collective-permute"))
            entry = found[1 if part else times, label]
            entry[0] += 1
            entry[1] += size
            entry[2] += size * _factor(kind, _group(rest, devices))
    return found


def by_kind(found: dict) -> dict:
    """{kind: {"count", "bytes"}} of `collectives`, executions of a step all counted."""
    out = {}
    for (times, label), (count, size, _) in sorted(found.items()):
        kind = next(k for k in KINDS if label.removeprefix("async ").startswith(k))
        own = out.setdefault(kind, {"count": 0, "bytes": 0})
        own["count"] += times * count
        own["bytes"] += times * size
    return out


def sent(found: dict) -> float:
    """Bytes that a device sends, or receives where that is more, in all of a step's `collectives`."""
    return sum(times * entry[2] for (times, _), entry in found.items())


def cells(found: dict) -> tuple[str, str]:
    """(executed once, executed in a loop) as text: how many of which kind, and in brackets the MiB of their results."""
    def cell(times):
        parts = [(n, kind, size / 2 ** 20) for (t, kind), (n, size, _) in sorted(found.items()) if t == times]
        return ", ".join(f"{n} {kind} ({'<0.1' if size < 0.1 else f'{size:.1f}'})" for n, kind, size in parts)
    loops = sorted({times for times, _ in found if times > 1})
    return cell(1) or "none", "; ".join(f"{times} times {cell(times)}" for times in loops) or "none"


def traffic(text: str) -> int:
    """Bytes to and from memory: operands and results of every instruction executed, a fusion as one, tiles filled up.

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
            if found[3] == "slice":
                read = [result]
            elif " dynamic-update-slice(" in inside:
                stack = max(read)
                read = [x for x in read if x < stack]
                result = max(result - stack, 0) + sum(read)
            elif " dynamic-slice(" in inside:
                most = max([result, *(_stored(cut) for cut in re.findall(r"= (\S+) dynamic-slice\(", inside))])
                read = [min(x, most) for x in read]
            starts = found[3].endswith("-start")  # a transfer, which lists its operands among its results
            total += times * (max(result, sum(read)) if starts else sum(read) + result)
    return total


def loops(text: str) -> int:
    """How many loops the program has."""
    return len(re.findall(r" while\(", text))


def largest(text: str, count: int) -> list[tuple[int, str, str]]:
    """(bytes, shape, what made it) of the largest results of instructions that memory holds; not all at once."""
    bodies, entry = _bodies(text)
    found = {}
    for name in _times(bodies, entry, calls=False):
        for m in re.finditer(r"%(\S+) = (\([^()]*(?:\([^()]*\)[^()]*)*\)|\S+) ([\w-]+)\((.*)", bodies[name]):
            result, op, rest = m[2], m[3], m[4]
            if op in STILL or op.endswith("-done") or result.startswith("("):
                continue
            origin = re.search(r'op_name="([^"]*)"', rest)
            shape = re.match(r"\w+\[[\d,]*\]", result)
            if shape and (size := _stored(result)):
                found[m[1]] = size, shape[0], _short(origin[1]) if origin else op
    return sorted(found.values(), reverse=True)[:count]


def _factor(kind, group):
    """Bytes sent for each byte of the result, among `group` devices."""
    share = (group - 1) / group
    return {"all-reduce": 2 * share, "all-gather": share, "reduce-scatter": group - 1, "all-to-all": share}.get(kind, 1)


def _group(rest, devices):
    """How many devices a collective is among: all without replica_groups={{0,1},{2,3}}, [2,2]<=[4] or
    mesh['x'=2,'y'=4] {'y'}."""
    if named := re.search(r"replica_groups=mesh\[(.*?)\] \{(.*?)\}", rest):
        sides = dict(re.findall(r"('\w+')=(\d+)", named[1]))
        return math.prod(int(sides[axis]) for axis in re.findall(r"'\w+'", named[2]))
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", rest):
        return len(listed[1].split(","))
    shaped = re.search(r"replica_groups=\[\d+,(\d+)\]", rest)
    return int(shaped[1]) if shaped else devices


def _short(name: str) -> str:
    """The end of an op's path, where the layer is."""
    wrapped = r"(jit|jvp|transpose|shard_map|vmap|while|body|closed_call)\b"
    return "/".join([p for p in name.split("/") if not re.match(wrapped, p)][-4:])


def _bodies(text):
    """({computation: its lines}, the one that is executed first)"""
    found = re.finditer(r"^(?:ENTRY )?%(\S+) \(.*?\{\n(.*?)^\}", text, re.M | re.S)
    return {m[1]: m[2] for m in found}, re.search(r"^ENTRY %(\S+)", text, re.M)[1]


def _times(bodies, entry, calls=True):
    """How often each computation runs: a loop's body as often as the compiler says. calls: fusions too."""
    times, todo = {entry: 1}, [entry]
    reached = r"(?:body|calls|to_apply)=%([\w.-]+)" if calls else r"body=%([\w.-]+)|(?<=call\().*to_apply=%([\w.-]+)"
    while todo:
        name = todo.pop()
        for line in bodies[name].splitlines():
            bound = _bound(line, bodies) if " while(" in line else 1
            for m in re.findall(reached, line):
                called = m if isinstance(m, str) else m[0] or m[1]
                if called in bodies and called not in times:
                    times[called] = times[name] * bound
                    todo.append(called)
    return times


def _bound(line, bodies):
    """How often the loop in a line runs: as the compiler notes, else the constant in its condition, else 1."""
    if noted := re.search(r'known_trip_count\W+n\W+(\d+)', line):
        return int(noted[1])
    condition = re.search(r"condition=%([\w.-]+)", line)
    return max((int(n) for n in re.findall(r"s32\[\]\S* constant\((\d+)\)", bodies[condition[1]])), default=1)


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
    """Bytes in memory of shapes such as bf16[12,64]{1,0:T(8,128)(2,1)}; S(1) and the like is memory on the chip."""
    total = 0
    form = r"(\w+)\[([\d,]*)\](?:\{([\d,]*)(?::T\(([\d,]*)\))?([^}]*)\})?"
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
    sizes = [WIDTH[t] * math.prod(int(n) for n in dims.split(",") if n) for t, dims in re.findall(_SHAPE, result)]
    return max(sizes) if both_ends else sum(sizes)
