"""The command on real runs: out as every target, in again, and what is refused."""
import json
import os

import jax
import numpy as np
import pytest

from simclr_jax import config as configs, export
from simclr_jax.errors import UsageError
from simclr_jax.export import model as models, tensors
from simclr_jax.export.__main__ import main
from runs import train

@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The workdir of a short run."""
    workdir = tmp_path_factory.mktemp("export") / "run"
    train(workdir)
    return workdir


def features_of_run(workdir, images):
    """By the run's own method, from its checkpoint."""
    from simclr_jax import subject
    saved = json.loads((workdir / "config.json").read_text())
    run = subject.of_run(configs.from_plain(saved), saved, workdir, best=False)
    _, (params, extra), _ = run.states()
    return np.asarray(jax.jit(lambda p, e, x: run.method.embed(p, e, {"image": x})["image"])(params, extra, images))


def test_a_run_goes_out_for_flax_and_five_lines_give_its_features(run, tmp_path):
    main(["export", f"--workdir={run}", "--to=flax", f"--out={tmp_path / 'x'}"])
    images = np.random.default_rng(0).random((3, 8, 8, 3), np.float32)
    embed, params = export.load(tmp_path / "x")
    np.testing.assert_allclose(embed(params, image=images)["image"], features_of_run(run, images), rtol=1e-5, atol=1e-6)
    model = models.read(tmp_path / "x")
    assert model.meta["method"] == "simclr" and model.meta["step"] == 6 and list(model.nets) == ["backbone"]
    with pytest.raises(UsageError, match="there is no tower for 'text'; it has image"):
        embed(params, text=np.zeros((1, 4), np.int32))


RESNET = dict(name="resnet", depth=18, width=0.0625, stem="cifar", layout="simclr")


def test_timm_gets_the_same_arrays_and_a_card_that_opens_them(tmp_path):
    model = made(tmp_path / "x", **RESNET)
    main(["export", f"--from-dir={tmp_path / 'x'}", "--to=timm", f"--out={tmp_path / 'timm'}", "--licence=CC0-1.0"])
    card = (tmp_path / "timm/README.md").read_text()
    assert all(text in card for text in ("CC0-1.0", "strict=True", "model.maxpool = torch.nn.Identity()", "8 x 8"))
    main(["export", "--from=timm", f"--weights={tmp_path / 'timm'}", f"--out={tmp_path / 'back'}"])
    again = models.read(tmp_path / "back")
    assert model.weights.keys() == again.weights.keys()
    for name, tensor in model.weights.items():
        np.testing.assert_array_equal(again.weights[name].read(), tensor.read())
    assert {k: again.nets["backbone"][k] for k in RESNET} == RESNET
    assert again.image["eval"][-1] == ["normalize", {"mean": [0.5] * 3, "std": [0.25] * 3}]
    with pytest.raises(UsageError, match=r"channels \(4, 4, 8, 16, 32\), and torchvision's ResNets are"):
        main(["export", f"--from-dir={tmp_path / 'x'}", "--to=torchvision", f"--out={tmp_path / 'torchvision'}"])
    assert not (tmp_path / "torchvision").exists()


@pytest.mark.slow
def test_stablehlo_runs_without_this_project(run, tmp_path):
    main(["export", f"--workdir={run}", "--to=stablehlo", f"--out={tmp_path / 'x'}"])
    exported = jax.export.deserialize(bytearray((tmp_path / "x/image.stablehlo").read_bytes()))
    assert exported.platforms == ("cpu", "cuda", "tpu")
    import safetensors.flax
    weights = safetensors.flax.load_file(tmp_path / "x/model.safetensors")
    for rows in (1, 3):  # one file for any batch
        images = np.random.default_rng(0).random((rows, 8, 8, 3), np.float32)
        np.testing.assert_allclose(exported.call(weights, images), features_of_run(run, images), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("flags, text", [
    (["--to=keras", "--out=x"], "--to=keras: wanted one of torchvision, timm"),
    (["--to=timm"], "--to=timm needs --out"),
    (["--to=timm", "--out=x"], "give one of --workdir .a run. and --from-dir"),
    (["--from=timm", "--out=x"], "--from=timm needs --weights"),
    (["--from=keras", "--weights=x", "--out=x"], "--from=keras: wanted one of timm"),
    (["--features", "--out=x"], "--features needs --from-dir"),
    (["--to=timm", "--out=x", "--workdir=nowhere"], "there is no config.json in it"),
    (["--to=timm", "--out=x", "--from-dir=nowhere"], "there is no config.json; wanted a directory"),
])
def test_refusals(flags, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=text):
        main(["export", *flags])
    assert not os.listdir(tmp_path)


def made(folder, **changes):
    """A directory of ours with a small random net, a ViT if not told otherwise."""
    vit = dict(name="vit", width=8, depth=1, heads=2, mlp=16, patch=4, image=8)
    spec = changes if "name" in changes else vit | changes
    view = [["resize", {"size": 8}], ["normalize", dict(mean=(0.5,) * 3, std=(0.25,) * 3)]]
    model = models.Model({"backbone": spec}, {}, {}, {"eval": view})
    rng, weights = np.random.default_rng(0), {}
    for name, leaf in models.shapes(model, "backbone").items():
        x = rng.standard_normal(leaf.shape).astype(np.float32)
        weights[name] = tensors.of(np.abs(x) if name.endswith("var") else x)
    models.write(folder, model._replace(weights=weights))
    return models.read(folder)


def test_pixels_are_normalised_within_embed(tmp_path):
    model = made(tmp_path / "x")
    images = np.random.default_rng(1).random((2, 8, 8, 3), np.float32)
    net, (params, stats) = models.build(model.nets["backbone"]), models.tree(model, "backbone")
    want = net.apply(params, stats, (images - 0.5) / 0.25, train=False)[0]["pooled"]
    embed, params = export.load(tmp_path / "x")
    np.testing.assert_allclose(embed(params, image=images)["image"], want, rtol=1e-5, atol=1e-6)


def test_damage_is_refused_and_nothing_is_left(tmp_path):
    model = made(tmp_path / "x")
    config = json.loads((tmp_path / "x/config.json").read_text())

    def changed(**new):
        (tmp_path / "x/config.json").write_text(json.dumps(config | new))
    changed(nets={"backbone": config["nets"]["backbone"] | {"width": 16}})
    with pytest.raises(UsageError, match="has shape .* and nets/vit wants"):
        export.load(tmp_path / "x")
    changed(nets={"backbone": config["nets"]["backbone"] | {"registers": 2}})
    with pytest.raises(UsageError, match="the weights have no 'backbone/registers/embedding' of shape"):
        export.load(tmp_path / "x")
    changed(nets={"backbone": config["nets"]["backbone"] | {"wdith": 2}})
    with pytest.raises(UsageError, match="unknown key 'wdith'"):
        export.load(tmp_path / "x")
    (tmp_path / "x/config.json").write_text("{")
    with pytest.raises(UsageError, match="is no JSON"):
        export.load(tmp_path / "x")
    nan = {n: tensors.of(t.read() * (np.nan if n.endswith("norm/bias") else 1)) for n, t in model.weights.items()}
    models.write(tmp_path / "nan", model._replace(weights=nan))
    with pytest.raises(UsageError, match="NaN or infinite"):
        main(["export", f"--from-dir={tmp_path / 'nan'}", "--to=timm", f"--out={tmp_path / 'out'}"])
    assert not (tmp_path / "out").exists() and not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


@pytest.mark.parametrize("target, changes, text", [
    ("timm", dict(pool="pooler"), "pool='pooler', which timm has no net for"),
    ("transformers", dict(registers=2), "registers=2, which transformers has no net for"),
    ("torchvision", dict(layer_scale=0.1), "layer_scale=0.1"),
    ("open_clip", {}, "writes an image tower vit or modified_resnet and a tower text"),
    ("timm", dict(pre_norm=True), "timm has a bias on the patches exactly where"),
])
def test_a_net_that_a_library_has_not_is_refused(target, changes, text, tmp_path):
    made(tmp_path / "x", **changes)
    with pytest.raises(UsageError, match=text):
        main(["export", f"--from-dir={tmp_path / 'x'}", f"--to={target}", f"--out={tmp_path / 'out'}"])
    assert not (tmp_path / "out").exists()


def test_features_of_a_folder(tmp_path):
    from PIL import Image
    made(tmp_path / "x")
    (tmp_path / "pictures/a").mkdir(parents=True)
    rng = np.random.default_rng(0)
    pixels = {f"a/{i}.png": rng.integers(0, 256, (8, 8, 3), np.uint8) for i in range(3)}
    for name, array in pixels.items():
        Image.fromarray(array).save(tmp_path / "pictures" / name)
    main(["export", "--features", f"--from-dir={tmp_path / 'x'}", f"--images={tmp_path / 'pictures'}",
          f"--out={tmp_path / 'f.npz'}", "--batch=2"])
    embed, params = export.load(tmp_path / "x")
    with np.load(tmp_path / "f.npz") as z:
        assert list(z["paths"]) == list(pixels)
        want = embed(params, image=np.stack(list(pixels.values())) / np.float32(255))["image"]
        np.testing.assert_allclose(z["embeddings"], want, rtol=1e-4, atol=1e-5)
