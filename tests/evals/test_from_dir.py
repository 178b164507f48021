"""The evaluation command on an export directory and a recipe, without a run."""
import json

import jax
import numpy as np
import pytest

from runs import ROOT
from simclr_jax import build, config as configs, names
from simclr_jax.errors import UsageError
from simclr_jax.evals.__main__ import main as evaluate
from simclr_jax.export import model as models, tensors
from simclr_jax.train import stored

EVAL = [["resize", {"size": 8, "method": "bilinear"}], ["normalize", {"mean": [0.5] * 3, "std": [0.5] * 3}]]
IMAGE = {"name": "convnet", "channels": [8]}
COMMAND = ["evals", f"--config={ROOT}/configs/simclr_digits.py", "--nopictures"]


def write(directory, nets, text={}, seed=0):
    """An export directory of nets as they are initialised."""
    weights = {}
    for role, spec in nets.items():
        shape, dtype = ((1, spec["length"]), np.int32) if role == "text" else ((1, 8, 8, 3), np.float32)
        params, stats = names.make("nets", spec, axis=None).init(jax.random.key(seed),
                                                                 jax.ShapeDtypeStruct(shape, dtype))
        arrays = stored.named(params) | {f"stats/{n}": a for n, a in stored.named(stats).items()}
        weights |= {f"{role}/{n}": tensors.of(a) for n, a in arrays.items()}
    models.write(str(directory), models.Model(nets, weights, {}, {"eval": EVAL}, text, {"step": 12}))


def test_probes_and_fine_tuning_of_a_published_net(tmp_path, capsys):
    write(tmp_path / "net", {"backbone": IMAGE}, seed=3)
    found = {}
    for seed, name in ((3, "linear,finetune"), (4, "linear")):
        workdir = tmp_path / str(seed)
        evaluate([*COMMAND, f"--from-dir={tmp_path / 'net'}", f"--workdir={workdir}", f"--evals={name}", "--labels=20",
                  "--draws=1", "--finetune_epochs=1", "--baselines=random_init", f"--config.seed={seed}"])
        found |= {(seed, r["eval"], r["features"]): r for r in json.loads((workdir / "evals.json").read_text())}
    assert {key[2] for key in found} == {"net", "random_init"} and {r["step"] for r in found.values()} == {12}
    of = lambda *key: found[key]["accuracy"]
    # The directory's weights are those that seed 3 starts from, and no others.
    assert of(3, "linear", "net") == of(3, "linear", "random_init") == of(4, "linear", "net")
    assert of(4, "linear", "net") != of(4, "linear", "random_init")
    assert of(3, "finetune", "net") == of(3, "finetune", "random_init")
    assert of(3, "linear", "net") > 0.4 and found[3, "finetune", "net"]["n_train"] == 200
    assert "fine-tuned: test accuracy" in capsys.readouterr().out


@pytest.mark.slow
def test_zero_shot_and_retrieval_of_a_published_pair(tmp_path):
    text = {"name": "bpe", "size": 300}
    source = build.source(configs.fill(configs.load(f"{ROOT}/configs/clip_digits.py")))
    sentences = lambda: (t for i in range(100) for t in source.captions(i))
    tokenizer = names.make("data.tokenizers", text, captions=sentences, file=str(tmp_path / "none.json"))
    directory = tmp_path / "pair"
    words = {"name": "text", "width": 8, "depth": 1, "heads": 1, "out": 8, **build.given(tokenizer)}
    write(directory, {"image": IMAGE, "text": words}, text)
    with pytest.raises(UsageError, match="there is no tokenizer.json in it"):
        evaluate([*COMMAND, f"--from-dir={directory}", f"--workdir={tmp_path / 'out'}", "--config.data.captions=true"])
    evaluate([*COMMAND, f"--from-dir={directory}", f"--workdir={tmp_path / 'knn'}", "--evals=knn", "--labels=all",
              "--baselines="])  # needs none
    (directory / "tokenizer.json").write_bytes(tokenizer.keep)
    evaluate([*COMMAND, f"--from-dir={directory}", f"--workdir={tmp_path / 'out'}", "--config.data.captions=true"])
    records = {r["eval"]: r for r in json.loads((tmp_path / "out/evals.json").read_text())}
    assert records.keys() == {"zero_shot", "retrieval"} and records["zero_shot"]["n_test"] == 500
    assert all(r["features"] == "pair" for r in records.values())


def test_refusals(tmp_path):
    write(tmp_path / "text", {"text": {"name": "text", "vocab": 9, "length": 4, "eot": 8, "width": 4, "depth": 1,
                                       "heads": 1}})
    for flags, says in [([f"--workdir={tmp_path}"], "it has text, wanted a net for images"), ([], "no --workdir given"),
                        ([f"--workdir={tmp_path}", "--config.data.rot=x"], "the config has no field 'data.rot'"),
                        ([f"--workdir={tmp_path}", f"--from-dir={tmp_path}"], "there is no config.json")]:
        with pytest.raises(UsageError, match=says) as e:
            evaluate([*COMMAND, f"--from-dir={tmp_path / 'text'}", *flags])
        assert "\n" not in str(e.value)
