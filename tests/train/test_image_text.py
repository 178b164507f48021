"""CLIP and SigLIP from the command line: digits with sentences, small towers, the real code."""
import json

import numpy as np
import pytest

from runs import ROOT, launch, numbers
from simclr_jax.errors import UsageError
from simclr_jax.life import Life
from simclr_jax.evals.__main__ import main as evaluate
from simclr_jax.train.__main__ import main
from simclr_jax.train.checkpoint import Checkpoints

# A ViT has no batch statistics, so that micro-batches change nothing; drop path draws by row in both towers.
SMALL = ["--config.batch=64", "--config.steps=4", "--config.log_every=1", "--config.checkpoint.every=2",
         "--config.pictures=false", "--config.evals.every=0", "--config.text.size=300",
         "--config.nets.image.name=vit", "--config.nets.image.width=16", "--config.nets.image.depth=1",
         "--config.nets.image.heads=2", "--config.nets.image.patch=4", "--config.nets.image.image=8",
         "--config.nets.image.out=8", "--config.nets.image.drop_path=0.3",
         "--config.nets.text.width=16", "--config.nets.text.depth=1", "--config.nets.text.heads=2", "--config.nets.text.out=8",
         "--config.nets.text.drop_path=0.3", "--config.optim.name=sgd", "--config.optim.lr=0.5",
         "--config.optim.warmup_epochs=0.1"]


def train(workdir, *more, loss="clip"):
    main(["train", f"--config={ROOT}/configs/clip_digits.py:loss={loss}", f"--workdir={workdir}", *SMALL, *more])


@pytest.fixture(scope="module", params=["clip", pytest.param("siglip", marks=pytest.mark.slow)])
def run(request, tmp_path_factory):
    workdir = tmp_path_factory.mktemp(request.param)
    train(workdir, "--config.devices=1", loss=request.param)
    return request.param, workdir


def close(workdir, other):
    for got, want in zip(numbers(workdir), numbers(other), strict=True):
        for name in ("train/loss", "train/grad_norm", "train/scale", "train/positive"):
            np.testing.assert_allclose(got[name], want[name], rtol=1e-4, err_msg=name)


@pytest.mark.slow  # in small: tests/methods/test_laws.py
@pytest.mark.parametrize("how", [["--config.devices=4", "--config.microbatches=2"], ["--config.devices=8"],
                                 ["--config.devices=1", "--config.microbatches=4"]],
                         ids=str)
def test_any_split_of_the_batch_trains_the_same(run, tmp_path, how):
    loss, whole = run
    train(tmp_path, *how, loss=loss)
    close(tmp_path, whole)


def test_every_step_logs_the_health_of_the_similarities(run):
    loss, workdir = run
    for row in numbers(workdir):
        assert {f"train/{k}" for k in ("accuracy", "positive", "negative", "scale")} <= set(row)
        assert ("train/bias" in row) == (loss == "siglip")
        assert -1 <= row["train/negative"] <= 1 and 0 <= row["train/accuracy"] <= 1


@pytest.mark.slow
def test_the_tokenizer_is_kept_and_read_again(run, tmp_path, monkeypatch):
    loss, whole = run
    monkeypatch.setattr(Life, "stops", lambda self, at: at == 3)
    with pytest.raises(SystemExit):
        train(tmp_path, "--config.devices=1", loss=loss)
    monkeypatch.undo()
    kept = (tmp_path / "tokenizer.json").read_bytes()
    assert kept == (whole / "tokenizer.json").read_bytes()
    train(tmp_path, "--config.devices=1", loss=loss)
    assert numbers(tmp_path) == numbers(whole)  # a resumed run is the unbroken one, to the last digit
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UsageError, match="tokenizer.json"):
        train(tmp_path, "--config.devices=1", loss=loss)


def test_evals_of_a_run_with_captions(run, capsys):
    _, workdir = run
    evaluate(["evals", f"--workdir={workdir}"])
    records = {r["eval"]: r for r in json.loads((workdir / "evals.json").read_text())}
    assert set(records) == {"zero_shot", "retrieval"} and records["zero_shot"]["classes"] == 10
    assert records["zero_shot"]["templates"] == 2 and records["retrieval"]["n_texts"] == 6 * records["retrieval"]["n_images"]
    assert (workdir / "images" / "similarity.png").exists()
    assert "zero-shot" in capsys.readouterr().out


@pytest.mark.slow
def test_search_prints_and_draws_the_nearest(run, capsys):
    loss, workdir = run
    evaluate(["evals", f"--workdir={workdir}", "--search=a thin seven", "--k=5"])
    out = capsys.readouterr().out
    assert (workdir / "images" / "search_a_thin_seven.png").exists() and out.count("example") == 5


@pytest.mark.slow
def test_scores_on_another_source_with_names_of_its_own(run, tmp_path, capsys):
    _, workdir = run
    names = tmp_path / "names.txt"
    names.write_text("\n".join("zero one two three four five six seven eight nine".split()))
    evaluate(["evals", f"--workdir={workdir}", "--evals=zero_shot,knn", "--data=digits:captions=false", f"--classes={names}",
              "--templates=a handwritten {}", "--labels=all", "--baselines=", "--pictures=false"])
    records = json.loads((workdir / "evals.json").read_text())
    assert {(r["eval"], r["features"]) for r in records} >= {("zero_shot", f"{run[0]} on digits:captions=false"),
                                                            ("knn", f"{run[0]} on digits:captions=false")}
    with pytest.raises(UsageError, match="retrieval: digits .* has no captions"):
        evaluate(["evals", f"--workdir={workdir}", "--evals=retrieval", "--data=digits:captions=false"])
    names.write_text("zero\none")
    with pytest.raises(UsageError, match="names 2 classes.*has 10"):
        evaluate(["evals", f"--workdir={workdir}", "--evals=zero_shot", f"--classes={names}"])


@pytest.mark.slow
def test_scores_while_it_trains(tmp_path, capsys):
    train(tmp_path, "--config.evals.every=2", "--config.evals.limit=50", "--config.evals.best=retrieval", "--config.devices=2",
          "--config.evals.run=('zero_shot','retrieval','knn')")
    rows = [r for r in numbers(tmp_path) if "eval/zero_shot" in r]
    assert [r["step"] for r in rows] == [2, 4] and all("eval/retrieval" in r and "eval/knn" in r for r in rows)
    assert Checkpoints(tmp_path / "best", writable=False).steps()


@pytest.mark.slow
def test_a_scale_at_its_cap_is_said_once(tmp_path, capsys):
    train(tmp_path, "--config.method.temperature=0.0101", "--config.optim.lr=1.0", "--config.optim.bounds=(('logit_scale$',0.0,4.0),)")
    out = capsys.readouterr().out
    assert out.count("warning: step 1: logit_scale sits at its upper bound 4 (config.optim.bounds)") == 1
    assert out.count("sits at its upper bound") == 1
    assert all(r["train/scale"] <= np.exp(4.0) * (1 + 1e-5) for r in numbers(tmp_path)[1:])


REFUSED = {
    "--config.method.locked=('image',)": "locked names 'image'",
    "--config.method.locked=('picture',)": "locked names 'picture'",
    "--config.data.captions=false": "has no captions",
    "--config.text.size=10": "size=10",
    "--config.nets.text.out=4": "the towers end at different widths",
    "--config.evals.every=1 --config.evals.run=('zeroshot',)": "there is no 'zeroshot'; did you mean 'zero_shot'",
    "--config.load.imag=/nowhere/at/all": "has no field 'load.imag'; did you mean 'load.image'",
    "--config.method.name=simclr": "config.augment.views has 1 views, wanted 2",
}


@pytest.mark.parametrize("given", REFUSED)
def test_bad_input_is_refused_before_anything_is_written(given, tmp_path):
    with pytest.raises(UsageError) as error:
        train(tmp_path / "run", *given.split())
    assert REFUSED[given] in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_two_processes_train_as_one(run, tmp_path):
    loss, whole = run
    job, output = launch(tmp_path, config=f"{ROOT}/configs/clip_digits.py:loss={loss}", small=SMALL, wait=120)
    assert job.returncode == 0 and "2 process(es)" in output, output
    close(tmp_path, whole)
