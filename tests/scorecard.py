"""The reliability scorecard: `python -m pytest -m scorecard --scorecard=docs/reliability.md` runs its rows and writes
the table. Tests name the row they hold by `@pytest.mark.scorecard(row)`; several may hold one."""
import collections
import pathlib

ROWS = {
    1: "NT-Xent: loss and parameter gradient are those of one device, on 2, 4 and 8",
    2: "the same for InfoNCE, CLIP, SigLIP (gather and ring), Barlow Twins, VICReg, DINO, BYOL's regression",
    3: "a gather without gradient, a dropped and a doubled mean turn row 1 red",
    4: "swapped views and a permuted batch lose the same; no row is a negative of itself",
    5: "random embeddings lose ln(2N - 1), N the global batch",
    6: "batch statistics on several devices are those of the whole batch",
    7: "LARS is NumPy's, with warm-up and masks",
    8: "a teacher's schedule at start, middle, end and after a restore; it gets no gradient",
    9: "a temperature thrown past its bound is brought back, and reported",
    10: "the same command twice: the same bytes and the same log",
    11: "10 steps and, in a new process, 10 more are 20, bit for bit, with the same examples",
    12: "the same after SIGKILL between steps and during a save",
    13: "resumed on fewer devices: the same examples, losses within 1e-4",
    14: "resumed on one process instead of two: no example twice or missed in an epoch",
    15: "the rate is a function of the step across a resume; a changed length is named",
    16: "a changed run is refused with the field and both values",
    17: "processes with other parameters are found before step 1, and every so many steps",
    18: "one flipped bit in any file: refused by step and leaf, the one before is taken",
    19: "a truncated, empty or missing file: the same",
    20: "SIGKILL at any time of a save: a whole step loads, temporaries are cleaned",
    21: "a full disk: one line at the next save, older steps whole",
    22: "an unwritable workdir is refused before anything compiles",
    23: "the last step is always saved, a state that is not finite never",
    24: "exactly the steps to keep are kept, and the best",
    25: "a save that one process alone calls is found by the watchdog",
    26: "SIGTERM to one process: all save one step and leave within 15 s, the next run goes on there",
    27: "SIGTERM while compiling, evaluating, waiting for data: saved or left within 20 s",
    28: "a second signal leaves at once",
    29: "SIGKILL of one process: the others leave within heartbeat + 10 s and name it",
    30: "a process that is alive and stuck is named, and ended with stacks",
    31: "uneven batches are refused before step 1; data that ends, ends all",
    32: "a port in use, a wrong count, an absent coordinator: one line with address and time",
    33: "two hosts, two epochs: disjoint, complete, another order and other pairings",
    34: "augmentation keys differ by view, image, epoch; pixels do not depend on workers",
    35: "damaged and odd images: counted and named up to a limit, then stopped with the list",
    36: "an evaluation that nothing divides counts each example once",
    37: "tar members that lead out of the shard: nothing written, none followed",
    38: "too few shards, an empty folder, a batch too large: refused with the numbers",
    39: "a NaN or Inf: skipped alike everywhere, counted, named, given up after K with state and batch",
    40: "a gradient 1e4 times as long: skipped, later losses in their band",
    41: "out of memory: one line with what to do",
    42: "every key mistyped, values of the wrong kind: one line, exit code 2, nothing made",
    43: "weights that carry a pickle: refused, nothing runs",
    44: "exported weights have the names and shapes that libraries load strictly, and come back to the bit",
    45: "a constant encoder shows in one evaluation",
}
GATES = 1, 11, 12, 18, 20, 26, 30, 33

_found = collections.defaultdict(dict)  # row -> {test without its parameters: [outcomes]}


def addoption(parser):
    parser.addoption("--scorecard", default="", help="write the table of the rows that were run to this file")


def rows_of(item):
    return [mark.args[0] for mark in item.iter_markers("scorecard")]


def collected(items):
    """Every row is one of the table's, and every gate has a fast test."""
    fast = {row for item in items if item.get_closest_marker("slow") is None for row in rows_of(item)}
    everything = {row for item in items for row in rows_of(item)}
    assert everything <= set(ROWS), f"no such rows: {everything - set(ROWS)}"
    return fast


def mark(item, report):
    """Where a test runs: its report carries its rows to the process that writes the table."""
    report.user_properties += [("scorecard", row) for row in rows_of(item)]


def note(report):
    if report.when == "call" or report.outcome != "passed":
        for row in (value for key, value in report.user_properties if key == "scorecard"):
            _found[row].setdefault(report.nodeid.split("[")[0], []).append(report.outcome)


def write(path, versions):
    lines = ["# Reliability", "",
             "What a run is held to when things go wrong, and the test that holds it. Made by", "",
             "    python -m pytest -m scorecard --scorecard=docs/reliability.md", "",
             f"with {versions}. Gates, which `make test` runs as well, are bold. A row without a test is open.", ""]
    passed = sum(_result(row) == "passed" for row in ROWS)
    lines += [f"{passed} of {len(ROWS)} passed.", "", "| row | what must hold | result | tests |", "|---|---|---|---|"]
    for row, text in ROWS.items():
        number = f"**{row}**" if row in GATES else str(row)
        tests = "<br>".join(f"`{name}`" + (f" ({len(o)} cases)" if len(o) > 1 else "") for name, o in sorted(
            _found[row].items()))
        lines.append(f"| {number} | {text} | {_result(row)} | {tests} |")
    lines += ["", "One row alone: `python -m pytest 'TEST'` with the name in the table. Not covered here,",
              "for want of the machines: faults of ICI and NCCL, memory of accelerators running out, object stores that",
              "throttle or refuse, real maintenance events, and the order of sums in bfloat16.", ""]
    pathlib.Path(path).write_text("\n".join(lines))


def _result(row):
    outcomes = [o for many in _found[row].values() for o in many]
    return "open" if not outcomes else "passed" if set(outcomes) == {"passed"} else "failed"
