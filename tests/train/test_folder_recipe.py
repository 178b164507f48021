"""configs/folder.py: every method of images on a folder of pictures."""
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from runs import ROOT
from simclr_jax import build, config as configs
from simclr_jax.errors import UsageError
from simclr_jax.evals.__main__ import main as evaluate
from simclr_jax.train.__main__ import main

CONFIG = f"{ROOT}/configs/folder.py"
METHODS = sorted(p.stem.removesuffix("_digits") for p in (ROOT / "configs").glob("*_digits.py") if "clip" not in p.stem)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_gets_the_pictures_views_and_a_net_of_their_size(method):
    config, _ = configs.parse(["train", f"--config={CONFIG}:method={method},size=48,width=0.5,epochs=3"])
    net = config.nets.backbone
    assert config.method.name == method and config.data.name == "folder" and (config.steps, config.epochs) == (0, 3.0)
    assert [view[0][1]["size"] for view in config.augment.views] == [48, 48]
    if method == "dinov2":
        assert (net.name, net.image, net.patch, net.width, config.augment.mask.patch) == ("vit", 48, 6, 64, 6)
    else:
        assert (net.name, net.channels) == ("convnet", (32, 64, 128))


@pytest.mark.parametrize("method", ["swav", "dino", "dinov2"])
def test_small_crops_by_choice(method):
    config, _ = configs.parse(["train", f"--config={CONFIG}:method={method},crops=3"])
    assert [view[0][1]["size"] for view in config.augment.views] == [32, 32, 16, 16, 16]
    assert {epochs for _, epochs in config.optim.hold} == {0.1}


def test_a_transformer_by_choice():
    net = configs.parse(["train", f"--config={CONFIG}:method=dino,net=vit"])[0].nets.backbone
    assert (net.name, net.image, net.patch, net.width) == ("vit", 32, 4, 128)


def test_both_nets_are_of_one_size():
    def size(net):
        config = configs.parse(["train", f"--config={CONFIG}:method=dino,net={net}"])[0]
        params, _ = jax.eval_shape(build.nets(config, axis=None)["backbone"].init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
        return build.count(params)
    assert size("convnet") < size("vit") < 1.15 * size("convnet")


@pytest.mark.parametrize("variant, message", {
    "method=clip": "no such method for a folder", "method=byo": "did you mean 'byol'", "method=dinov2,net=convnet": "for dinov2",
    "net=resnet50": "wanted convnet", "size=30": "a multiple of 8",
    "crops=2": "crops=2 for byol, wanted 0, or more for swav, dino"}.items())
def test_what_it_has_not_is_refused(variant, message):
    with pytest.raises(UsageError, match=message):
        configs.load(f"{CONFIG}:{variant}")


@pytest.mark.slow
@pytest.mark.parametrize("method", ["byol", "swav", "dinov2"])  # views, crops, masks
def test_a_run_on_pictures_is_evaluated(method, tmp_path):
    for i in range(24):
        of = tmp_path / "pictures" / ("train" if i % 3 else "test") / "ab"[i % 2]
        of.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(i).integers(0, 120 + 100 * (i % 2), (20 + i, 24, 3), np.uint8)
        Image.fromarray(noise).save(of / f"{i}.png")
    small, crops = (["--config.method.prototypes=16"], ",crops=2") if method != "byol" else ([], "")
    main(["train", f"--config={CONFIG}:method={method},size=16,width=0.1,batch=8,epochs=2{crops}", *small,
          "--config.pictures=false", f"--config.data.root={tmp_path / 'pictures'}", f"--workdir={tmp_path / 'run'}"])
    evaluate(["evals", f"--workdir={tmp_path / 'run'}", "--evals=knn", "--labels=all", "--baselines=", "--pictures=false"])
    (record,) = json.loads((tmp_path / "run/evals.json").read_text())
    assert record["accuracy"] > 0.7  # one class is twice as bright
