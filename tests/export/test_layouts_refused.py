"""Published nets: refusals in one line, heads that stay behind, and the nets as torchvision builds them."""
import numpy as np
import pytest
import safetensors.numpy

from export import published as p
from export.imports import B, C, imported, outputs, pictures
from export.test_layouts import byol
from simclr_jax.errors import UsageError
from simclr_jax.export.__main__ import main


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
