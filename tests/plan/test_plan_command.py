"""The command on simulated devices: what it prints, and what it refuses."""
import json
import math

import jax
import numpy as np
import pytest

from runs import ROOT
from simclr_jax import build, config as configs, dist
from simclr_jax.errors import UsageError
from simclr_jax.plan import measure, report, stand_in
from simclr_jax.plan.__main__ import main

DIGITS = f"--config={ROOT}/configs/simclr_digits.py"
SMALL = ["--config.batch=64", "--config.nets.backbone.channels=(4,8)"]
FIELDS = {"topology", "devices", "batch", "fits", "memory_bytes", "collectives", "flops", "time_bound_s", "bound_by",
          "compiler_time_s", "images_per_s"}


def plan(capsys, *argv):
    main(["plan", DIGITS, *SMALL, *argv, "--json"])
    return json.loads(capsys.readouterr().out)


def test_one_object_with_the_fields(capsys):
    r = plan(capsys, "--topology=cpu:8", "--nolargest")
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
    assert sum(held.values()) + 4 == m["arguments"]  # and the number of the step
    assert r["steps"] == 1297 * 100 // 64 + 1


def test_micro_batches_make_the_forward_pass_twice(capsys):
    one, two = (plan(capsys, "--topology=cpu:8", "--nolargest", f"--config.microbatches={n}")["flops"] for n in (1, 2))
    assert 1.25 * one < two < 1.5 * one


def test_text_says_what_json_does(capsys):
    main(["plan", DIGITS, *SMALL, "--topology=cpu:2", "--nolargest"])
    out = capsys.readouterr().out
    assert out.startswith("cpu:2: 2 devices (cpu), batch 64, 32 rows a device\n") and ": fits\n" in out
    assert "all-reduce" in out and "no bound" in out and "temporary" in out


@pytest.mark.slow
def test_the_largest_batch_is_one_that_fits(capsys, monkeypatch):
    monkeypatch.setattr(measure.topologies, "memory", lambda device, count: 3_000_000)
    r = plan(capsys, "--topology=cpu:2")
    most = r["largest_batch"]
    assert r["fits"] and most > 64 and most % 2 == 0 and f"{most:,} fits" in r["tried"]
    assert not plan(capsys, "--topology=cpu:2", "--nolargest", f"--config.batch={2 * most}")["fits"]


@pytest.mark.slow
def test_search_recommends_what_fits(capsys, monkeypatch):
    monkeypatch.setattr(measure.topologies, "memory", lambda device, count: 2_500_000)
    assert not plan(capsys, "--topology=cpu:2", "--nolargest", "--config.batch=512")["fits"]
    r = plan(capsys, "--topology=cpu:2", "--search", "--config.batch=512")
    assert r["fits"] and r["settings"].get("microbatches", 1) > 1 and r["batch"] == 512
    assert len(r["searched"]) > 2 and not r["searched"][0]["fits"] and r["searched"][0]["settings"] == {}


@pytest.mark.parametrize("argv, why", [
    (["--topology=cpu:16"], "this machine has 8"), (["--topology=gpu"], "cpu devices only"), (["--topology=moon"], "wanted v2"),
    (["--topology=cpu:8", "--examples=-1"], "--examples=-1"), (["--topology=cpu:8", "--config.batch=60"], "does not divide"),
    (["--topology=cpu:8", "--config.method.comm=pigeon"], "comm='pigeon'"), (["--topolgy=cpu:8"], "topology"),
])
def test_refusals(argv, why):
    with pytest.raises(UsageError, match=why) as e:
        main(["plan", DIGITS, *SMALL, *argv])
    assert "\n" not in str(e.value)


def parsed(name, *argv):
    return configs.parse(["plan", f"--config={ROOT}/configs/{name}.py", *argv])[0]


def test_data_that_is_not_here_has_known_numbers():
    config = parsed("simclr_imagenet", "--config.data.data_dir=/nowhere")
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
        stand_in.tokenizer(parsed("clip_vit_b32", "--config.text.name=hf", "--config.text.path=/nowhere/tokenizer.json"))


def test_what_asks_for_too_much_is_an_answer(mesh, monkeypatch):
    said = ("RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. "
            "Used 31.91G of 15.75G hbm. Exceeded hbm capacity by 16.17G.")

    class Traced:
        jaxpr = jax.jit(lambda x: x).trace(1.0).jaxpr

        def lower(self):
            raise jax.errors.JaxRuntimeError(said)
    monkeypatch.setattr(build.Step, "trace", lambda self: Traced())
    r = measure.run(parsed("simclr_digits", *SMALL), jax.devices()[:2], "cpu:2")
    assert not r["fits"] and r["memory_bytes"]["total"] == int(31.91 * 2**30) and r["collectives"] is None
    assert "does not fit" in report.text(r) and math.isfinite(r["flops"])
    monkeypatch.setattr(jax.errors.JaxRuntimeError, "__str__", lambda e: "INTERNAL: broken", raising=False)
    with pytest.raises(jax.errors.JaxRuntimeError):
        measure.run(parsed("simclr_digits", *SMALL), jax.devices()[:2], "cpu:2")


def test_time_is_bound_by_the_slowest_of_three():
    r = dict(flops_in_passes=61.5e12, memory_traffic_bytes=450e9, links_bytes=656e9, steps=1800, batch=4096, devices=128,
             in_a_loop=False)
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
