"""Published checkpoints in: files of random numbers with the published code's names, and what those nets compute.

The features of the imported nets are those that plain NumPy makes of the file's own arrays, so an array in a wrong
place, a transposed one, and another padding, stride, epsilon or number of heads show.
"""
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from export import published as p
from nets import weights as tables
from simclr_jax.errors import UsageError
from simclr_jax.export import dinov2, found, model as models, tensors
from simclr_jax.export.__main__ import main

C, B = 4, 2  # channels of the stems, rows


def imported(tmp_path, source, arrays, *flags):
    """The model that `--from` makes of a file of arrays; a nested dict becomes a pickle."""
    nested = any(isinstance(a, dict) for a in arrays.values())
    file = tmp_path / ("w.pkl" if nested else "w.npz" if "state_dict" in next(iter(arrays)) else "w.safetensors")
    if nested:
        file.write_bytes(pickle.dumps(arrays, protocol=2))
    elif file.suffix == ".npz":
        np.savez(file, **arrays)
    else:
        safetensors.numpy.save_file({n: np.ascontiguousarray(a) for n, a in arrays.items()}, file)
    main(["export", f"--from={source}", f"--weights={file}", f"--out={tmp_path / 'ours'}", *flags])
    return models.read(tmp_path / "ours")


def outputs(model, role, x):
    """What an imported net computes, in f64."""
    with jax.enable_x64(True):
        net = models.build(model.nets[role])
        params, stats = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), models.tree(model, role))
        run = tables.jit(lambda p, s, x: net.apply(p, s, x, train=False)[0]["pooled"])
        return np.asarray(run(params, stats, jnp.asarray(x, jnp.float64)))


def pictures(side):
    return np.random.default_rng(7).normal(size=(B, side, side, 3))


def same(ours, theirs, tolerance=1e-9):
    """tolerance: of the largest value."""
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * np.abs(theirs).max())


F32 = 2e-6  # nets/mlp computes in f32 whatever it is given


def sequential(w, x, at, layers, act=lambda x: np.maximum(x, 0)):
    """What an nn.Sequential of linears, norms and activations makes of x; layers: "l", "n" and "a", one a module."""
    for i, kind in enumerate(layers):
        name = f"{at}.{i}"
        if kind == "l":
            x = x @ w[f"{name}.weight"].astype(np.float64).T + w.get(f"{name}.bias", 0.0)
        elif kind == "n":
            n = x.shape[1]
            x = p.batch_norm(x, w.get(f"{name}.weight", np.ones(n)), w.get(f"{name}.bias", np.zeros(n)),
                             w[f"{name}.running_mean"], w[f"{name}.running_var"])
        else:
            x = act(x)
    return x


def torch_features(get, depth, side):
    x = pictures(side)
    return x, p.resnet(x, depth, C, get, p.symmetric, p.symmetric, project=False)


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


def sincos(side, width):
    """MoCo v3's positions, as its vits.py makes them."""
    rows, columns = (a.reshape(-1, 1) for a in np.meshgrid(np.arange(side), np.arange(side), indexing="ij"))
    omega = 1 / 10000 ** (np.arange(width // 4) / (width // 4))
    y, x = rows * omega, columns * omega
    table = np.concatenate([np.sin(y), np.cos(y), np.sin(x), np.cos(x)], axis=1)
    return np.concatenate([np.zeros((1, width)), table])[None].astype(np.float32)


def transformer(w, at, width, mlp, depth, patch, side, blocks="blocks.{}.", **more):
    """Fills w with a vision transformer of DINO's names; returns what stands before the names of its blocks."""
    w.put(f"{at}patch_embed.proj.weight", width, 3, patch, patch, fan_in=3 * patch ** 2)
    w.put(f"{at}patch_embed.proj.bias", width, fan_in=4)
    w.put(f"{at}cls_token", 1, 1, width, fan_in=1)
    w.put(f"{at}pos_embed", 1, side ** 2 + 1, width, fan_in=1)
    names = [at + blocks.format(i) for i in range(depth)]
    for name in names:
        p.vit_block(w, name, width, mlp, **more)
    w.norm(f"{at}norm", width)
    return names


@pytest.mark.parametrize("fixed", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_moco_v3_transformers_have_twelve_heads_and_fixed_positions(tmp_path, fixed):
    """Twelve whatever the width; timm's small one has six. Positions that were trained since are learned ones."""
    w, at = p.Weights(), "module.base_encoder."
    blocks = transformer(w, at, 24, 32, 2, 4, 3)
    if fixed:
        w[f"{at}pos_embed"] = sincos(3, 24)
    w.linear(f"{at}head.0", 24, 10, bias=False)
    w.batch_norm(f"{at}head.1", 10)
    w.linear(f"{at}head.3", 10, 10, bias=False)
    w.batch_norm(f"{at}head.4", 10)
    w.linear(f"{at}head.6", 10, 6, bias=False)
    w.batch_norm(f"{at}head.7", 6, affine=False)
    model = imported(tmp_path, "moco", w)
    x = pictures(12)
    want = p.vit(w, x, at, blocks, 12, 4)
    same(outputs(model, "backbone", x), want, 1e-6 if fixed else 1e-9)  # the file's sines are f32
    same(outputs(model, "projector", want), sequential(w, want, f"{at}head", "lnalnaln"), F32)
    assert model.nets["backbone"]["posemb"] == ("sincos" if fixed else "learned")
    assert ("backbone/positions/embedding" in model.weights) != fixed


@pytest.mark.parametrize("whole", [pytest.param(False, marks=pytest.mark.slow), True])
def test_dino_transformers(tmp_path, whole):
    w, at = p.Weights(), "teacher.backbone." if whole else ""
    blocks = transformer(w, at, 8, 32, 2, 4, 3)
    if whole:
        for i, (n, out) in enumerate([(8, 10), (10, 10), (10, 6)]):
            w.linear(f"teacher.head.mlp.{2 * i}", n, out)
        w.put("teacher.head.last_layer.weight_v", 20, 6)
        w.put("teacher.head.last_layer.weight_g", 20, 1)
        w |= {name.replace("teacher.", "student.module."): a + 1 for name, a in w.items()}
        w["dino_loss.center"] = np.ones((1, 20), np.float32)
    model = imported(tmp_path, "dino", w, "--net=heads=2")
    x = pictures(12)
    want = p.vit(w, x, at, blocks, 2, 4)
    same(outputs(model, "backbone", x), want)
    assert model.image["eval"][0] == ["resize", dict(size=int(12 / 0.875), shorter=True, antialias=True)]  # bicubic
    if whole:
        same(outputs(model, "projector", want), sequential(w, want, "teacher.head.mlp", "lalal", p.gelu), F32)
        assert sorted(model.beside) == ["teacher.head.last_layer.weight_g", "teacher.head.last_layer.weight_v"]
        assert model.nets["projector"]["activation"] == "gelu"


@pytest.mark.slow
def test_dino_resnets(tmp_path):
    w = p.Weights()
    get = p.torch_resnet(w, "", 50, C)
    model = imported(tmp_path, "dino", w)
    x, want = torch_features(get, 50, 40)
    same(outputs(model, "backbone", x), want)
    assert list(model.nets) == ["backbone"] and model.nets["backbone"]["layout"] == "torch"


@pytest.mark.parametrize("kind", ["trained", pytest.param("released", marks=pytest.mark.slow),
                                  pytest.param("registers", marks=pytest.mark.slow)])
def test_dinov2(tmp_path, kind):
    """Released nets; one with registers; a teacher in two chunks with a gated MLP."""
    w, at, gated = p.Weights(), "teacher.backbone." if kind == "trained" else "", kind == "trained"
    form = "blocks.<{}>" if gated else "blocks.{}."
    blocks = transformer(w, at, 8, 16, 3, 4, 3, blocks=form, scaled=True, gated=gated)
    if gated:  # chunks of two: 0.0, 0.1, 1.2
        chunked = lambda n: n.replace("<0>", "0.0.").replace("<1>", "0.1.").replace("<2>", "1.2.")
        for name in list(w):
            w[chunked(name)] = w.pop(name)
        blocks = [chunked(name) for name in blocks]
        w.put("teacher.dino_head.last_layer.weight_v", 4, 4)
    w.put(f"{at}mask_token", 1, 8)
    if kind == "registers":
        w.put("register_tokens", 1, 4, 8, fan_in=1)
    model = imported(tmp_path, "dinov2", w, "--net=heads=2")
    x = pictures(12)
    same(outputs(model, "backbone", x), p.vit(w, x, at, blocks, 2, 4))
    np.testing.assert_array_equal(model.weights["backbone/mask_token/embedding"].read(), w[f"{at}mask_token"])
    net = model.nets["backbone"]
    assert net["registers"] == (4 if kind == "registers" else 0) and net["mlp"] == 16
    assert net["mlp_kind"] == ("swiglu" if gated else "gelu") and net["position_resize"] == "offset"
    assert not model.beside


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


def test_positions_of_released_dinov2_nets_for_pictures_of_224():
    """37 by 37 of them; with registers interpolated with antialiasing, as timm does and transformers does not."""
    nets = []
    for registers in (0, 4):
        w = p.Weights()
        transformer(w, "", 8, 16, 1, 14, 37, scaled=True)
        w.put("mask_token", 1, 8)
        w |= {"register_tokens": np.zeros((1, 4, 8), np.float32)} if registers else {}
        read = dinov2.read({n: tensors.of(a) for n, a in w.items()}, {}, "x")
        nets.append(read.nets["backbone"])
        assert found.side(read.image) == 224 and nets[-1]["image"] == 518
    assert [net["position_resize"] for net in nets] == ["offset", "antialias"]
    found.refuse_resize("timm", nets[1], read.image, "antialias")
    found.refuse_resize("transformers", nets[1], found.view(518, **found.IMAGENET), "size")
    with pytest.raises(UsageError, match="--to=transformers: nets/vit has position_resize='antialias', which"):
        found.refuse_resize("transformers", nets[1], read.image, "size")


def test_heads_stay_behind_where_a_library_has_no_place_for_them(tmp_path):
    w = p.Weights()
    p.torch_resnet(w, "module.encoder_q.", 18, C)
    w.linear("module.encoder_q.fc", 8 * C, 6)
    imported(tmp_path, "moco", w)
    main(["export", f"--from-dir={tmp_path / 'ours'}", "--to=timm", f"--out={tmp_path / 'timm'}"])
    written = safetensors.numpy.load_file(tmp_path / "timm/model.safetensors")
    assert {f"module.encoder_q.{n}" for n in written} == {n for n in w if ".fc." not in n}
    for n, a in written.items():
        if "tracked" not in n:
            np.testing.assert_array_equal(a, w[f"module.encoder_q.{n}"])


def broken(kind):
    """(--from, arrays) of a file that is refused."""
    w = p.Weights()
    if kind in ("unknown", "missing"):
        p.torch_resnet(w, "module.", 18, C)
        w.put("module.layer3.1.conv9.weight", 2)
        if kind == "missing":
            w["module.layer3.0.bn3.running_mean"] = w.pop("module.layer3.0.bn2.running_mean")
        return "swav", w
    if kind == "sk":
        w.put("base_model/conv2d/kernel", 3, 3, 3, 2)
        w.put("base_model/conv2d_1/kernel", 3, 3, 2, 2)
        return "simclr_tf", w
    if kind == "deep":
        for k in range(7):
            w.put("base_model/conv2d" + (f"_{k}" if k else "") + "/kernel", 1, 1, 4, 4)
        return "simclr_tf", w
    if kind == "v2":
        checkpoint, _ = byol(18)
        checkpoint["experiment_state"]["online_params"]["res_net18/~/final_batchnorm"] = {"scale": np.ones(4)}
        return "byol", checkpoint
    name = {"saved": "trainable_variables_list/0/.ATTRIBUTES/VARIABLE_VALUE", "xcit": "cls_attn_blocks.0.norm1.weight",
            "conv": "module.base_encoder.patch_embed.proj.0.weight"}.get(kind, "x")
    w.put(name, 2)
    return {"saved": "simclr_tf", "xcit": "dino", "conv": "moco"}.get(kind, kind), w


@pytest.mark.parametrize("kind, text", [
    ("unknown", r"1 of its arrays have no place \(module.layer3.1.conv9.weight\)"),
    ("missing", r"1 of its arrays are missing \(module.layer3.0.bn2.running_mean; is module.layer3.0.bn3.running_mean"),
    ("sk", "selective kernels"), ("deep", r"no ResNet of depth 18, .* \(it has 7 convolutions\)"), ("v2", "resnet_v2"),
    ("saved", "it is a SavedModel"), ("xcit", "it is an XCiT"), ("conv", "begins with convolutions"),
    *((source, "wanted a ") for source in ("moco", "dino", "dinov2", "swav", "byol", "simclr_tf")),
])
def test_what_is_refused(tmp_path, kind, text):
    source, arrays = broken(kind)
    with pytest.raises(UsageError, match=text) as e:
        imported(tmp_path, source, arrays)
    assert "\n" not in str(e.value) and not (tmp_path / "ours").exists()


@pytest.mark.slow
def test_moco_and_swav_as_torch_builds_them(tmp_path):
    """The published encoder itself, torchvision's; SwAV's differs from it by how the first padding is shared out."""
    torch = pytest.importorskip("torch")
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    net = torchvision.models.resnet18(num_classes=6).eval()
    x = pictures(40).astype(np.float32)
    for name, n in net.named_buffers():
        if name.endswith(("mean", "var")):
            n.uniform_(0.5, 1.5)
    with torch.no_grad():
        head = net(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).numpy()
        net.fc = torch.nn.Identity()
        want = net(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).numpy()
    state = torchvision.models.resnet18(num_classes=6).state_dict() | net.state_dict()
    assert head.shape == (B, 6)
    for source, at in (("moco", "module.encoder_q."), ("swav", "module.")):
        arrays = {at + n: a.numpy() for n, a in state.items() if source == "moco" or not n.startswith("fc.")}
        (tmp_path / source).mkdir()
        ours = outputs(imported(tmp_path / source, source, arrays), "backbone", x)
        np.testing.assert_allclose(ours, want, rtol=0, atol=1e-4 * np.abs(want).max())
