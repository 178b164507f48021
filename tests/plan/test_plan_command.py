"""The command on simulated devices: what it prints, and what it refuses."""
import json
import math

import jax
import numpy as np
import pytest

from runs import ROOT
from simclr_jax import build, config as configs, dist
from simclr_jax.errors import UsageError
from simclr_jax.plan import measure, report, search, stand_in
from simclr_jax.plan.__main__ import main

DIGITS = f"--config={ROOT}/configs/simclr_digits.py"
SMALL = ["--config.batch=64", "--config.nets.backbone.channels=(4,)", "--config.augment.where=host"]
FIELDS = {"topology", "devices", "batch", "fits", "memory_bytes", "collectives", "flops", "time_bound_s", "bound_by",
          "compiler_time_s", "images_per_s"}


def plan(capsys, *argv):
    main(["plan", DIGITS, *SMALL, *argv, "--json"])
    return json.loads(capsys.readouterr().out)


def test_one_object_with_the_fields(capsys):
    r = plan(capsys, "--topology=cpu:8", "--nolargest", "--config.augment.where=device")
    assert FIELDS <= r.keys()
    assert (r["topology"], r["devices"], r["batch"], r["fits"]) == ("cpu:8", 8, 64, True)
    m = r["memory_bytes"]
    assert m.keys() == {"arguments", "temporary", "output", "total", "limit"}
    assert 0 < m["temporary"] <= m["total"] < m["limit"] and m["total"] < m["arguments"] + m["temporary"] + m["output"]
    # A processor has no published peak here, so there is no bound, and the compiler gives it no time.
    assert r["time_bound_s"] is r["bound_by"] is r["compiler_time_s"] is r["images_per_s"] is None
    assert r["collectives"]["all-reduce"]["count"] > 0 and r["flops"] > 0 and r["flops_exact"]
    # The state is on every device whole, the batch in eight parts: pictures, labels and two numbers of u32.
    held = r["takes"]
    assert held["batch"] == 8 * (8 * 8 * 3 + 4 + 8) and held["optimiser"] >= held["parameters"]
    labels, counts = 8 * 4, 4 + 16  # the step's number and the guard's four; SimCLR does not look at labels, so the program does not take them
    assert sum(held.values()) - labels + counts == m["arguments"]
    assert r["steps"] == 2000 and r["hours"] is None
    said = report.text(r)
    assert said.startswith("cpu:8: 8 devices (cpu), batch 64, 8 rows a device\n") and ": fits\n" in said
    assert "all-reduce" in said and "no bound" in said and f"{m['temporary'] / 2**10:.2f} KiB temporary" in said


@pytest.mark.slow
def test_the_largest_batch_is_one_that_fits(capsys, monkeypatch):
    monkeypatch.setattr(measure.topologies, "memory", lambda device, count: 1_500_000)
    r = plan(capsys, "--topology=cpu:2")
    most = r["largest_batch"]
    assert r["fits"] and most > 64 and most % 2 == 0 and f"{most:,} fits" in r["tried"]
    assert not plan(capsys, "--topology=cpu:2", "--nolargest", f"--config.batch={2 * most}")["fits"]


def test_without_compiling_there_is_arithmetic(capsys):
    r = plan(capsys, "--topology=cpu:8", "--nocompile")
    assert FIELDS <= r.keys() and r["fits"] is r["collectives"] is None and "largest_batch" not in r
    assert r["flops"] > 0 and r["takes"]["parameters"] > 0 and "not compiled" in report.text(r)


def made_up(asked, limit):
    """`measure.run` by a rule: rows of a piece cost memory, further passes cost time, the loss's tile costs both."""
    def run(config, devices, topology, examples):
        asked.append(config)
        rows = config.batch // len(devices)
        passes = 1 + 0.3 * (config.microbatches > 1) + 0.01 * config.microbatches
        total = 1000 + 100 * rows // config.microbatches + 10 * (config.method.comm == "gather") * config.batch
        return {"fits": total <= limit, "time_bound_s": passes, "bound_by": "products",
                "memory_bytes": {"total": total, "limit": limit}}
    return run


@pytest.mark.parametrize("limit, microbatches, comm", [(10**6, 1, "gather"), (14_000, 1, "ring"), (9_000, 2, "ring"),
                                                        (6_000, 4, "ring")])
def test_search_recommends_the_quickest_that_fits(limit, microbatches, comm, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(measure, "run", made_up(asked, limit))
    config = parsed("simclr_digits", "--config.batch=256")
    found = search.run(config, say=print, devices=jax.devices()[:2], topology="cpu:2", examples=0)
    assert found["fits"] and len(asked) == len(found["searched"]) <= 12
    settings = {"microbatches": 1, "method.comm": "gather"} | found["settings"]
    assert settings["microbatches"] == microbatches and settings["method.comm"] == comm
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("recommended: ")
    more = int(lines[1].removeprefix("up to ").split(" more settings to compile")[0])
    assert len(asked) - 1 == more if limit == 10**6 else len(asked) - 1 <= more  # all that is left to try, where it fits


@pytest.mark.slow
def test_search_plans_each_setting(capsys):
    r = plan(capsys, "--topology=cpu:2", "--search")
    assert r["fits"] and r["batch"] == 64 and len(r["searched"]) >= 2 and r["searched"][0]["settings"] == {}
    assert {"method.comm": "ring"} in [s["settings"] for s in r["searched"]]


@pytest.mark.parametrize("argv, why", [
    (["--topology=cpu:16"], "this machine has 8"), (["--topology=gpu"], "cpu devices only"),
    (["--topology=moon"], "wanted v2"), (["--topology=cpu:8", "--examples=-1"], "--examples=-1"),
    (["--topology=cpu:8", "--config.batch=60"], "does not divide"),
    (["--topology=cpu:8", "--config.method.comm=pigeon"], "comm='pigeon'"), (["--topolgy=cpu:8"], "topology"),
])
def test_refusals(argv, why):
    with pytest.raises(UsageError, match=why) as e:
        main(["plan", DIGITS, *SMALL, *argv])
    assert "\n" not in str(e.value)


def parsed(name, *argv):
    return configs.parse(["plan", f"--config={ROOT}/configs/{name}.py", *argv])[0]


def test_data_that_is_not_here_has_known_numbers(monkeypatch):
    def nowhere(config):
        raise UsageError("not here")
    monkeypatch.setattr(build, "source", nowhere)
    config = parsed("simclr_imagenet")
    source, size = stand_in.source(config)
    assert size == source.size == 1281167 and source.shape is None
    config = parsed("clip_vit_b32")
    source, size = stand_in.source(config)
    assert size is None and build.steps(config, source.size) > 0
    assert stand_in.source(config, 400_000_000)[1] == 400_000_000
    text = stand_in.tokenizer(config)
    assert (text.vocab, text.length, text.eot) == (49408, 77, 49407)
    assert stand_in.tokenizer(parsed("siglip_vit_b16")).vocab == 32000
    assert stand_in.tokenizer(parsed("siglip_folder")).vocab == 4096
    assert stand_in.tokenizer(parsed("simclr_digits")) is None
    with pytest.raises(UsageError, match="not here"):
        stand_in.tokenizer(parsed("clip_vit_b32", "--config.text.name=hf", "--config.text.path=/nowhere"))


@pytest.mark.parametrize("said, total, limit", [
    ("Ran out of memory in memory space hbm. Used 31.91G of 15.75G hbm. Exceeded hbm capacity by 16.17G.", 31.91, 15.75),
    ("Program hbm requirement (17.50G) exceeds available HBM (15.75G)", 17.5, 15.75), ("Out of memory while trying", None, None)])
def test_what_asks_for_too_much_is_an_answer(said, total, limit, monkeypatch):
    class Traced:
        jaxpr = jax.jit(lambda x: x).trace(1.0).jaxpr

        def lower(self):
            raise jax.errors.JaxRuntimeError(f"{kind}: {said}")
    monkeypatch.setattr(build.Step, "trace", lambda self: Traced())
    kind, given = "RESOURCE_EXHAUSTED", (parsed("simclr_digits", *SMALL), jax.devices()[:2], "cpu:2")
    r = measure.run(*given)
    assert not r["fits"] and r["memory_bytes"]["total"] == (total and int(total * 2**30)) and r["collectives"] is None
    assert limit is None or r["memory_bytes"]["limit"] == int(limit * 2**30)  # what the compiler leaves of the chip's memory
    assert "does not fit" in report.text(r) and r["time_bound_s"] is None
    kind = "INTERNAL"  # anything else is a bug, and is said as one
    with pytest.raises(jax.errors.JaxRuntimeError):
        measure.run(*given)


def test_time_is_bound_by_the_slowest_of_three():
    r = dict(flops_in_passes=61.5e12, memory_traffic_bytes=450e9, links_bytes=656e9, steps=1800, batch=4096,
             devices=128, in_a_loop=False)
    compiled = type("Compiled", (), {"cost_analysis": lambda self: {"optimal_seconds": 0.05}})()
    t = measure._time(r, compiled, "TPU v3", "tpu")
    assert t["bounds_s"] == {"products": 1.0, "memory": 1.0, "links": 2.0} and t["bound_by"] == "links"
    assert (t["time_bound_s"], t["hours"], t["chip_hours"], t["images_per_s"]) == (2.0, 1.0, 64.0, 2048.0)
    assert t["compiler_time_s"] == 0.05
    assert measure._time(r | {"in_a_loop": True}, compiled, "TPU v3", "tpu")["compiler_time_s"] is None
    compiled.cost_analysis = lambda: {"optimal_seconds": -1.0}
    assert measure._time(r, compiled, "TPU v3", "tpu")["compiler_time_s"] is None


@pytest.mark.parametrize("where", ["host", "device"])
def test_what_a_plan_takes_for_the_batch_is_what_the_feed_hands_over(where):
    config = parsed("simclr_digits", *SMALL, f"--config.augment.where={where}")
    recipe, source = build.recipe(config), build.source(config)
    made = next(build.feed(config, source, recipe))
    given = build.delivered(config, recipe, source)
    assert {k: (v.shape, v.dtype) for k, v in made.items()} == {k: (v.shape, v.dtype) for k, v in given.items()}


@pytest.mark.slow
@pytest.mark.parametrize("where", ["host", "device"])
def test_so_it_is_for_pictures_of_any_size(where, tmp_path):
    from PIL import Image
    for i in range(8):
        Image.fromarray(np.zeros((12 + i, 14, 3), np.uint8)).save(tmp_path / f"{i}.png")
    config = parsed("simclr_digits", "--config.batch=4", "--config.data.name=folder", f"--config.data.root={tmp_path}",
                    f"--config.augment.where={where}")
    recipe, source = build.recipe(config), build.source(config)
    made = next(build.feed(config, source, recipe))
    given = build.delivered(config, recipe, stand_in.source(config)[0])
    assert {k: (v.shape, v.dtype) for k, v in made.items()} == {k: (v.shape, v.dtype) for k, v in given.items()}


@pytest.mark.slow
def test_a_compiled_step_takes_the_batch_that_comes(mesh):
    from simclr_jax.train.state import init_state
    config = parsed("simclr_digits", *SMALL)
    recipe, source = build.recipe(config), build.source(config)
    method, tx = build.method(config, axis=dist.DATA, examples=source.size), build.optimiser(config, source.size).tx
    step = build.step(config, mesh(2), method, tx, recipe, source)
    state = init_state(method, tx, mesh(2), step.rows, seed=config.seed)
    assert jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), state) == jax.tree.map(
        lambda x: (x.shape, x.dtype, x.sharding), step.state)
    batch = dist.place_batch(next(build.feed(config, source, recipe)), mesh(2))
    _, metrics = build.compiled(step.trace())(state, batch)
    assert math.isfinite(metrics["loss"])
