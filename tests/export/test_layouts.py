"""Published checkpoints in: files of random numbers with the published code's names, and what those nets compute.

The features of the imported nets are those that plain NumPy makes of the file's own arrays, so an array in a wrong
place, a transposed one, and another padding, stride, epsilon or number of heads show.
"""
import numpy as np
import pytest

from export import published as p
from export.imports import C, F32, imported, outputs, pictures, same, sequential, torch_features
from simclr_jax.errors import UsageError
from simclr_jax.export.__main__ import main


HEADS = {  # of each version of MoCo: what its fc is, how that is filled
    1: ("", lambda w, at, n: w.linear(at, n, 6)),
    2: ("lal", lambda w, at, n: (w.linear(f"{at}.0", n, n), w.linear(f"{at}.2", n, 6))),
    3: ("lnaln", lambda w, at, n: (w.linear(f"{at}.0", n, 10, bias=False), w.batch_norm(f"{at}.1", 10),
                                   w.linear(f"{at}.3", 10, 6, bias=False), w.batch_norm(f"{at}.4", 6, affine=False))),
}


@pytest.mark.parametrize("version, depth", [pytest.param(1, 50, marks=pytest.mark.slow), (2, 18),
                                            pytest.param(3, 50, marks=pytest.mark.slow)])
def test_moco_resnets(tmp_path, version, depth):
    at, other = ("base_encoder.", "momentum_encoder.") if version == 3 else ("encoder_q.", "encoder_k.")
    at, other = ("state_dict." * (version == 2) + "module." + x for x in (at, other))
    w, (layers, fill) = p.Weights(), HEADS[version]
    get, n = p.torch_resnet(w, at, depth, C), 8 * C * (4 if depth == 50 else 1)
    fill(w, f"{at}fc", n)
    w |= {other + name.removeprefix(at): a + 1 for name, a in w.items()}
    w["module.queue" if version == 1 else "state_dict.module.queue"] = np.ones((6, 8), np.float32)
    if version == 3:
        w.linear("module.predictor.0", 6, 10, bias=False)
    model = imported(tmp_path, "moco", w)
    x, want = torch_features(get, depth, 40)
    same(outputs(model, "backbone", x), want)
    head = (want @ w[f"{at}fc.weight"].T.astype(np.float64) + w[f"{at}fc.bias"] if version == 1 else
            sequential(w, want, f"{at}fc", layers))
    same(outputs(model, "projector", want), head, F32)
    assert not model.beside and list(model.nets) == ["backbone", "projector"]
    assert model.image["eval"] == [
        ["resize", dict(size=256, shorter=True, antialias=True, method="bilinear")], ["center_crop", dict(size=224)],
        ["normalize", dict(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])]]
    kernel = model.weights["backbone/stage2/block1/downsample/conv/kernel"].read()
    np.testing.assert_array_equal(kernel, w[f"{at}layer2.0.downsample.0.weight"].transpose(2, 3, 1, 0))


@pytest.mark.slow
def test_dino_resnets(tmp_path):
    w = p.Weights()
    get = p.torch_resnet(w, "", 50, C)
    model = imported(tmp_path, "dino", w)
    x, want = torch_features(get, 50, 40)
    same(outputs(model, "backbone", x), want)
    assert list(model.nets) == ["backbone"] and model.nets["backbone"]["layout"] == "torch"


@pytest.mark.parametrize("depth", [18, pytest.param(50, marks=pytest.mark.slow)])
def test_swav(tmp_path, depth):
    """Its picture is padded by 1 and the convolution by 2; its head's first layer has a bias before the norm."""
    w, at = p.Weights(), "module."
    get, n = p.torch_resnet(w, at, depth, C), 8 * C * (4 if depth == 50 else 1)
    w.linear(f"{at}projection_head.0", n, 10)
    w.batch_norm(f"{at}projection_head.1", 10)
    w.linear(f"{at}projection_head.3", 10, 6)
    w.put(f"{at}prototypes.weight", 20, 6)
    model = imported(tmp_path, "swav", w)
    x = pictures(40)
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    by_two = lambda size, window, stride: (2, 2) if window == 7 else p.symmetric(size, window, stride)
    want = p.resnet(padded, depth, C, get, by_two, p.symmetric, project=False)
    same(outputs(model, "backbone", x), want)
    same(outputs(model, "projector", want), sequential(w, want, f"{at}projection_head", "lnal"), F32)
    assert list(model.beside) == [f"{at}prototypes.weight"] and model.nets["backbone"]["width"] == C / 64
    assert model.image["eval"][-1] == ["normalize", dict(mean=[0.485, 0.456, 0.406], std=[0.228, 0.224, 0.225])]


def byol(depth):
    """(checkpoint, its encoder) as byol/utils/checkpointing.py writes it, named tuples as dicts."""
    params, state, w = {}, {}, p.Weights(1)
    get, n = p.haiku_resnet(params, state, depth, C), 8 * C * (4 if depth == 50 else 1)
    for role, width in (("projector", n), ("predictor", 6)):
        w.put("w", width, 10, fan_in=width)
        w.put("b", 10, fan_in=4)
        params[f"{role}/linear"] = {"w": w["w"], "b": w["b"]}
        p.haiku_norm(w, params, state, f"{role}/batch_norm", (1, 10))
        w.put("w", 10, 6, fan_in=10)
        params[f"{role}/linear_1"] = {"w": w["w"]}
    params["classifier"] = {"w": np.ones((n, 3), np.float32), "b": np.ones(3, np.float32)}
    other = lambda tree: {m: {k: a + 1 for k, a in leaves.items()} for m, leaves in tree.items()}
    experiment = dict(online_params=params, target_params=other(params), online_state=state, target_state=other(state),
                      opt_state={"mu": other(params)})
    return dict(experiment_state=experiment, step=5, rng=np.zeros((8, 2), np.uint32)), get


@pytest.mark.parametrize("depth, side", [(18, 40), pytest.param(18, 37, marks=pytest.mark.slow),
                                         pytest.param(50, 40, marks=pytest.mark.slow)])
def test_byol(tmp_path, depth, side):
    """Haiku pads all strided windows as SAME, which on even sides is not symmetric."""
    checkpoint, get = byol(depth)
    model = imported(tmp_path, "byol", checkpoint)
    x = pictures(side)
    want = p.resnet(x, depth, C, get, p.same, p.same)
    same(outputs(model, "backbone", x), want)
    assert model.nets["backbone"]["layout"] == "haiku"
    params, state = (checkpoint["experiment_state"][f"online_{x}"] for x in ("params", "state"))
    norm = params["projector/batch_norm"]
    averages = [state[f"projector/batch_norm/~/{x}_ema"]["average"] for x in ("mean", "var")]
    h = want @ params["projector/linear"]["w"].astype(np.float64) + params["projector/linear"]["b"]
    h = np.maximum(p.batch_norm(h, norm["scale"], norm["offset"], *averages), 0)
    same(outputs(model, "projector", want), h @ params["projector/linear_1"]["w"], F32)
    crop = ["center_crop", dict(proportion=0.875, floor=True)]
    assert model.image["eval"][:2] == [crop, ["resize", dict(size=224)]]
    assert sorted(model.beside) == [f"experiment_state/online_params/classifier/{x}" for x in "bw"]
    for target in ("timm", "torchvision"):
        with pytest.raises(UsageError, match=f"--to={target}: nets/resnet has layout='haiku', which"):
            main(["export", f"--from-dir={tmp_path / 'ours'}", f"--to={target}", f"--out={tmp_path / target}"])


@pytest.mark.parametrize("tf2, depth, side", [(False, 18, 16), *(pytest.param(*c, marks=pytest.mark.slow) for c in (
    (True, 18, 16), (True, 50, 40), (False, 50, 40)))])
def test_simclr_tf(tmp_path, tf2, depth, side):
    """Convolutions padded alike on both sides, the max-pool as SAME; each stage begins with a projected shortcut."""
    w, stem, n = p.Weights(), 3 if side < 32 else 7, 8 * C * (4 if depth == 50 else 1)
    get, end = p.keras_resnet(w, depth, C, stem, tf2), "/.ATTRIBUTES/VARIABLE_VALUE" if tf2 else ""
    of = "model/_projection_head/linear_layers/{}" if tf2 else "head_contrastive/nl_{}"
    norm = "/bn_relu/bn" if tf2 else "/batch_normalization"
    for i, out in enumerate((n, n, 6)):
        w.put(f"{of.format(i)}/dense/kernel{end}", n, out, fan_in=n)
        p.keras_norm(w, of.format(i) + norm, out, end, center=i < 2)
    supervised = ("model/supervised_head" if tf2 else "head_supervised") + f"/linear_layer/dense/kernel{end}"
    w.put(supervised, n, 3)
    slot = f"model/_projection_head/linear_layers/0/dense/kernel/.OPTIMIZER_SLOT/optimizer/momentum{end}"
    w.put(slot if tf2 else "base_model/conv2d/kernel/Momentum", 3)
    w["optimizer/iter" + end if tf2 else "global_step"] = np.int64(5)
    model = imported(tmp_path, "simclr_tf", w)
    x = pictures(side)
    want = p.resnet(x, depth, C, get, p.symmetric, p.same, stem)
    same(outputs(model, "backbone", x), want)
    h = want
    for i in range(3):
        kernel, *moments = (w[of.format(i) + name + end].astype(np.float64) for name in (
            "/dense/kernel", *(f"{norm}/{x}" for x in ("gamma", "moving_mean", "moving_variance"))))
        offset = 0.0 if i == 2 else w[f"{of.format(i)}{norm}/beta{end}"]
        h = p.batch_norm(h @ kernel, moments[0], offset, *moments[1:])
        h = h if i == 2 else np.maximum(h, 0)
    same(outputs(model, "projector", want), h, F32)
    assert list(model.beside) == [supervised]
    assert model.image["eval"] == ([["resize", dict(size=32)]] if stem == 3 else
                                   [["center_crop", dict(proportion=0.875)], ["resize", dict(size=224)]])
