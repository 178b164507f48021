"""Published vision transformers in, by the same means as test_layouts.py: MoCo v3's, DINO's and DINOv2's."""
import numpy as np
import pytest

from export import published as p
from export.imports import F32, imported, outputs, pictures, same, sequential
from simclr_jax.errors import UsageError
from simclr_jax.export import dinov2, found, tensors


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
