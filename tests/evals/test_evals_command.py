"""The evaluation command on a real run, from training to table: SimCLR beats chance, the untrained net and pixels."""
import json
import pathlib

import pytest

from simclr_jax.errors import UsageError
from simclr_jax.evals.__main__ import main as evaluate
from simclr_jax.train.__main__ import main as train

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The demo's recipe for a tenth of its steps, evaluated half way."""
    workdir = tmp_path_factory.mktemp("digits")
    train(["train", f"--config={ROOT}/configs/simclr_digits.py", f"--workdir={workdir}", "--config.steps=200",
           "--config.optim.warmup_epochs=4.0", "--config.evals.every=100", "--config.log_every=50"])
    return workdir


def test_pretraining_beats_chance_the_untrained_net_and_pixels(run, capsys):
    evaluate(["evals", f"--workdir={run}", "--labels=5,all", "--draws=4"])
    out = capsys.readouterr().out
    records = {(r["eval"], r["features"], r["labels_per_class"]): r
               for r in json.loads((run / "evals.json").read_text())}
    assert len(records) == 2 * 3 * 2
    for name in ("knn", "linear"):
        ours, untrained, pixels = (records[name, kind, 5]["accuracy"] for kind in ("simclr", "random_init", "pixels"))
        assert ours > 0.85 and ours > untrained + 0.08 and ours > pixels + 0.03
        assert records[name, "simclr", "all"]["accuracy"] > 0.95
    for r in records.values():
        assert r["n_test"] == 500 and r["step"] == 200 and r["draws"] == (4 if r["labels_per_class"] == 5 else 1)
    assert "weighted kNN" in out and "linear probe" in out and "random_init" in out
    for picture in ("views.png", "loss.png", "embedding.png", "neighbours.png"):
        assert (run / "images" / picture).stat().st_size > 5000 and picture in out or picture == "views.png"


def test_evaluations_in_training_are_logged_and_the_best_is_kept(run):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    scores = {r["step"]: r["eval/knn"] for r in rows if "eval/knn" in r}
    assert set(scores) == {100, 200}
    best = max(scores, key=lambda s: (scores[s], -s))
    assert [p.name for p in (run / "best").iterdir()] == [str(best)]
    evaluate(["evals", f"--workdir={run}", "--best", "--evals=knn", "--labels=all", "--baselines=", "--nopictures"])
    assert any(r["step"] == best for r in json.loads((run / "evals.json").read_text()))


def test_running_it_again_changes_nothing(run):
    def records():
        evaluate(["evals", f"--workdir={run}", "--evals=knn", "--labels=1", "--draws=2", "--baselines=",
                  "--nopictures"])
        return json.loads((run / "evals.json").read_text())
    assert records() == records()


@pytest.mark.slow
def test_a_pretrained_net_tuned_on_a_hundredth_of_the_labels_beats_an_untrained_one(run, capsys):
    evaluate(["evals", f"--workdir={run}", "--evals=finetune", "--labels=1%", "--draws=2", "--finetune_epochs=300",
              "--nopictures"])
    records = {r["features"]: r for r in json.loads((run / "evals.json").read_text()) if r["eval"] == "finetune"}
    assert records["simclr"]["accuracy"] > records["random_init"]["accuracy"] + 0.08
    assert all(r["n_train"] == 10 and r["labels_per_class"] == "1%" and r["share"] == 10 / 1297 and r["draws"] == 2
               for r in records.values())
    assert "fine-tuned: test accuracy in %, mean ± std of 2 draws, step 200" in capsys.readouterr().out


@pytest.mark.parametrize("flags, message", [
    (["--workdir=nowhere"], "no config.json in it"),
    ([], "no --workdir given"),
    (["--evals=knnn"], "--evals=knnn; did you mean 'knn'"),
    (["--knn=dion"], "--knn=dion; did you mean 'dino'"),
    (["--labels=5,many"], "'many', wanted whole numbers, shares or all"),
    (["--labels=95%"], "'95%', wanted a share above 0 and up to 80%"),
    (["--evals=finetune", "--finetune_lr=-1"], "wanted numbers above 0"),
    (["--evals=finetune", "--labels=1", "--finetune_lr=1e30", "--finetune_epochs=10"],
     "diverged: .* a lower --finetune_lr"),
    (["--from-dir=DIR"], "no --config given"),
    (["--protocol=lbgfs"], "lbgfs"),
    (["--baselines=pixel"], "--baselines=pixel; did you mean 'pixels'"),
    (["--wrokdir=x"], "unknown flag; did you mean 'workdir'"),
])
def test_refusals(run, flags, message):
    where = [] if not flags or "dir" in flags[0] else [f"--workdir={run}"]
    with pytest.raises(UsageError, match=message) as e:
        evaluate(["evals", *where, *flags])
    assert "\n" not in str(e.value)


@pytest.mark.slow
def test_a_folder_without_classes_trains_and_is_drawn_in_place_of_scored(tmp_path, capsys):
    import numpy as np
    from PIL import Image
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for i in range(20):
        noise = np.random.default_rng(i).integers(0, 256, (12 + i, 20, 3), np.uint8)
        Image.fromarray(noise).save(pictures / f"{i}.png")
    (pictures / "broken.jpg").write_bytes(b"not a picture")
    command = ["train", f"--config={ROOT}/configs/simclr_folder.py:size=16,net=convnet,width=0.1,batch=8,epochs=2",
               f"--config.data.root={pictures}", f"--workdir={tmp_path / 'run'}"]
    train([*command, "--config.data.max_bad=0.1"])
    evaluate(["evals", f"--workdir={tmp_path / 'run'}"])
    assert "without labels" in capsys.readouterr().out
    assert (tmp_path / "run/images/neighbours.png").exists() and not (tmp_path / "run/evals.json").exists()
    with pytest.raises(UsageError, match=r"1 images cannot be read, and max_bad=0.0 .*broken.jpg"):
        train([*command[:-1], f"--workdir={tmp_path / 'strict'}", "--config.data.max_bad=0.0"])
    assert not list(tmp_path.glob("strict/checkpoints/*"))
