"""Runs of other kinds than SimCLR's: a teacher's weights, stacked layers, a tokenizer of the run's own captions."""
import json

import jax
import numpy as np
import pytest

from runs import ROOT
from simclr_jax import config as configs, export, subject, trained
from simclr_jax.errors import UsageError
from simclr_jax.export import model as models
from simclr_jax.export.__main__ import main
from simclr_jax.train.__main__ import main as train

SHORT = ["--config.steps=2", "--config.batch=32", "--config.optim.warmup_epochs=0.0", "--config.evals.every=0",
         "--config.pictures=false", "--config.checkpoint.every=100"]
VIT = ["--config.nets.backbone.width=16", "--config.nets.backbone.depth=3", "--config.nets.backbone.heads=2"]


def embedded(workdir, **inputs):
    """By the run's own method, from its checkpoint."""
    saved = json.loads((workdir / "config.json").read_text())
    run = subject.of_run(configs.from_plain(saved), saved, workdir, best=False)
    _, (params, extra), _ = run.states()
    return run, params, extra, jax.jit(run.method.embed)(params, extra, inputs)


@pytest.mark.slow
def test_of_dino_the_teacher_goes_out_with_its_own_head_and_layers_unstacked(tmp_path):
    workdir, images = tmp_path / "run", np.random.default_rng(0).random((3, 8, 8, 3), np.float32)
    train(["train", f"--config={ROOT}/configs/dino_digits.py:net=vit", f"--workdir={workdir}", *SHORT, *VIT,
           "--config.nets.backbone.scan=true", "--config.optim.hold=()", "--config.method.prototypes=8",
           "--config.method.momentum=0.5",
           "--config.nets.projector.hidden=8", "--config.nets.projector.out=4"])
    _, params, extra, want = embedded(workdir, image=images)
    assert "blocks" in params["backbone"]["stack"]  # the run's are stacked
    main(["export", f"--workdir={workdir}", "--to=flax", "--heads", f"--out={tmp_path / 'x'}"])
    apply, weights = export.load(tmp_path / "x")
    np.testing.assert_allclose(apply(weights, image=images)["image"], want["image"], rtol=1e-4, atol=1e-5)
    model = models.read(tmp_path / "x")
    assert model.meta["teacher"] and not model.nets["backbone"]["scan"]
    teacher, found = extra["teacher"]["params"], {**model.weights, **model.beside}
    for name, of in (("projector/layer1/dense/kernel", lambda p: p["projector"]["layer1"]["dense"]["kernel"]),
                     ("last/direction", lambda p: p["last"]["direction"]),
                     ("backbone/stack/block3/mlp/fc1/kernel",
                      lambda p: p["backbone"]["stack"]["blocks"]["mlp"]["fc1"]["kernel"][2])):
        np.testing.assert_array_equal(found[name].read(), of(teacher), err_msg=name)
        assert np.any(np.asarray(of(teacher)) != np.asarray(of(params))), name


@pytest.mark.slow
def test_a_tokenizer_of_the_runs_captions_goes_with_its_net(tmp_path):
    workdir = tmp_path / "run"
    train(["train", f"--config={ROOT}/configs/clip_digits.py", f"--workdir={workdir}", *SHORT,
           "--config.nets.image.name=vit", "--config.nets.image.width=16", "--config.nets.image.depth=1",
           "--config.nets.image.heads=2", "--config.nets.image.patch=4", "--config.nets.image.image=8",
           "--config.nets.image.pre_norm=true", "--config.nets.image.patch_bias=false", "--config.nets.image.out=16",
           "--config.nets.image.gelu=quick", "--config.nets.image.eps=1e-5", "--config.nets.text.width=16",
           "--config.nets.text.depth=1", "--config.nets.text.heads=2", "--config.nets.text.out=16"])
    main(["export", f"--workdir={workdir}", "--to=flax", f"--out={tmp_path / 'x'}", "--licence=CC0-1.0"])
    kept = (workdir / "tokenizer.json").read_bytes()
    assert (tmp_path / "x/tokenizer.json").read_bytes() == kept
    config = configs.fill(configs.load(f"{ROOT}/configs/clip_digits.py"))
    found = subject.of_directory(config, str(tmp_path / "x"), texts=True)
    run, *_, want = embedded(workdir, text=(ids := found.tokenizer.encode(["the digit five", "a wide nought"])))
    np.testing.assert_array_equal(ids, run.tokenizer.encode(["the digit five", "a wide nought"]))
    apply, weights = export.load(tmp_path / "x")
    np.testing.assert_allclose(apply(weights, text=ids)["text"], want["text"], rtol=1e-4, atol=1e-5)

    main(["export", f"--from-dir={tmp_path / 'x'}", "--to=flax", f"--out={tmp_path / 'again'}"])  # nothing is lost
    assert (tmp_path / "again/tokenizer.json").read_bytes() == kept
    assert models.read(tmp_path / "again").meta["licence"] == "CC0-1.0"
    main(["export", f"--from-dir={tmp_path / 'x'}", "--to=transformers", f"--out={tmp_path / 'hf'}"])
    words = json.loads((tmp_path / "hf/config.json").read_text())["text_config"]
    assert (words["pad_token_id"], words["eos_token_id"], words["bos_token_id"]) == (0, found.tokenizer.eot, ids[0, 0])
    assert (tmp_path / "hf/tokenizer.json").read_bytes() == kept + b"\n"
    card = (tmp_path / "hf/README.md").read_text()
    assert "PreTrainedTokenizerFast" in card and "Licence of the weights: CC0-1.0" in card
    main(["export", f"--from-dir={tmp_path / 'x'}", "--to=stablehlo", f"--out={tmp_path / 'hlo'}"])
    exported = jax.export.deserialize(bytearray((tmp_path / "hlo/text.stablehlo").read_bytes()))
    import safetensors.flax
    arrays = safetensors.flax.load_file(tmp_path / "hlo/model.safetensors")
    np.testing.assert_allclose(exported.call(arrays, ids), want["text"], rtol=1e-4, atol=1e-5)
    assert (tmp_path / "hlo/tokenizer.json").read_bytes() == kept
    with pytest.raises(UsageError, match="texts end with 1, and open_clip looks at the largest id"):
        main(["export", f"--from-dir={tmp_path / 'x'}", "--to=open_clip", f"--out={tmp_path / 'oc'}"])


def test_leaves_of_a_checkpoint():
    of = trained._embedding
    assert of("params/backbone/a", False) == "backbone/a" and of("params/logit_scale", False) == "logit_scale"
    assert of("extra/stats/backbone/bn/mean", False) == "backbone/stats/bn/mean"
    assert of("extra/teacher/stats/backbone/bn/mean", True) == "backbone/stats/bn/mean"
    assert of("params/backbone/a", True) is of("extra/teacher/params/backbone/a", False) is of("opt/x", False) is None
