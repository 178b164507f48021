"""What is read of and written for other libraries beside arrays: pictures, classifiers, texts, settings."""
import json

import numpy as np
import pytest

from simclr_jax.errors import UsageError
from simclr_jax.export import check, found, hf, hf_vit, model as models, open_clip, tensors, texts, timm, torchvision

VIT = dict(name="vit", width=8, depth=1, heads=2, mlp=16, patch=4, image=8)
WIDE = found.view(8, **found.IMAGENET)


def model(net, image=WIDE, beside=()):
    arrays = {n: tensors.of(np.zeros(shape, np.float32)) for n, shape in dict(beside).items()}
    return models.Model({"backbone": models.filled(net)}, {}, arrays, image)


def test_a_resized_side_comes_back_whatever_it_is():
    for size in (17, 32, 224):
        for to in range(size, 2 * size):
            for squash in (False, True):
                image = found.view(size, **found.IMAGENET, crop=found.share(size, to), squash=squash)
                assert image["eval"][0][1]["size"] == to and found.side(image) == size
                assert int(size / found.crop(image)) == to and found.squashed(image) == squash


def test_pictures_of_a_preprocessor_config():
    dinov2 = dict(size=dict(shortest_edge=256), do_center_crop=True, crop_size=dict(height=224, width=224), resample=3)
    image = hf.view(518, dinov2, found.IMAGENET)  # the positions are for 518, the pictures are of 224
    assert [kwargs["size"] for _, kwargs in image["eval"][:2]] == [256, 224]
    old = dict(size=224, resample=2, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    image = hf.view(224, old, found.HALVES, squash=True)
    assert found.squashed(image) and found.method(image) == "bilinear" and found.side(image) == 224
    old = dict(size=224, do_center_crop=True, crop_size=224)
    assert not found.squashed(hf.view(224, old, found.CLIP)) and found.crop(hf.view(224, old, found.CLIP)) == 1
    assert found.moments(hf.view(8, dict(do_normalize=False), found.CLIP))["std"] == (1.0,) * 3
    for image in (WIDE, found.view(8, **found.HALVES, squash=True), found.view(8, **found.HALVES, crop=0.8),
                  found.view(8, **found.HALVES, crop=0.8, squash=True, method="bilinear")):
        written = json.loads(hf.preprocessor(image, "ViTImageProcessor"))
        assert hf.view(99, written, found.IMAGENET) == image
        # The class of the model's own squeezes pictures and does not cut them.
        assert ("crop_size" in written) == (written["image_processor_type"] == "CLIPImageProcessor")


def test_vit_is_as_its_class_has_it_where_the_config_is_silent():
    net = models.filled(VIT)
    weights = {p.name: tensors.of(np.zeros((1, 5, 8) if "position" in p.name else (8, 3, 4, 4), np.float32))
               for r in hf_vit.layout("backbone", net, "vit").rows for p in r.parts}
    weights["encoder.layer.0.intermediate.dense.weight"] = tensors.of(np.zeros((16, 8), np.float32))
    read = hf_vit.read(weights, dict(model_type="vit"), {}, "x")
    assert read.nets["backbone"] | dict(heads=12, eps=1e-12, mlp=16, image=8) == read.nets["backbone"]
    assert found.squashed(read.image) and found.method(read.image) == "bilinear"


def test_classifiers_go_out_with_a_constructor_that_has_them():
    made = torchvision.package(model(VIT, beside={"heads.head.weight": (7, 8), "heads.head.bias": (7,)}))
    assert "num_classes=7" in made.lines[1] and not any("Identity" in line for line in made.lines)
    assert made.call[0] == "model.heads = torch.nn.Identity()"
    made = torchvision.package(model(dict(name="resnet", depth=18, layout="torch"), beside={"fc.weight": (7, 512)}))
    assert "resnet18(num_classes=7)" in made.lines[1] and made.call[0] == "model.fc = torch.nn.Identity()"
    assert "model.fc = torch.nn.Identity()" in torchvision.package(model(dict(name="resnet", depth=18))).lines
    made = timm.package(model(VIT, beside={"head.weight": (7, 8)}))
    assert json.loads(made.files["config.json"])["num_classes"] == 7 and "pre_logits=True" in made.call[0]


def test_what_no_array_tells_of_a_net_is_in_the_config():
    net = dict(name="resnet", depth=50, layout="simclr")  # differs from PyTorch's in how its pool pads
    weights = {p.name: tensors.Tensor(tuple(s.shape), np.dtype(np.float32), None)
               for p, s in _torch_arrays(net)}
    for library in (timm, torchvision):
        config = json.loads(library.package(model(net, found.view(64, **found.HALVES, crop=0.8))).files["config.json"])
        read = library.read(weights, config, "x")
        assert read.nets["backbone"]["layout"] == "simclr" and read.nets["backbone"]["depth"] == 50
        assert found.crop(read.image) == 0.8 and found.side(read.image) == 64
        assert library.read(weights, {}, "x").nets["backbone"]["layout"] == "torch"


def _torch_arrays(net):
    made = model(net, found.view(32, **found.IMAGENET))
    from simclr_jax.export import layout, torch_resnet
    ours = {n: tensors.Tensor(tuple(leaf.shape), np.dtype(np.float32), None)
            for n, leaf in models.shapes(made, "backbone").items()}
    out = layout.theirs(torch_resnet.layout("backbone", made.nets["backbone"]), ours, {}, "x")
    return [(layout.Part(n), t) for n, t in out.items()]


def test_names_of_timms_architectures():
    assert timm._named("vit_base_patch32_clip_quickgelu_224") == dict(act_layer="quick_gelu")
    assert timm._named("vit_gigantic_patch14_clip_quickgelu_224") == dict(act_layer="quick_gelu", num_heads=16)
    assert timm._named("vit_so400m_patch14_siglip_384") == {} == timm._named("vit_base_patch16_224")


def test_positions_that_a_library_does_not_interpolate():
    large = found.view(16, **found.IMAGENET)
    with pytest.raises(UsageError, match="are 16 wide and the positions of nets/vit are for 8, and torchvision"):
        torchvision.package(model(VIT, large))
    asked = hf_vit.package(model(VIT, large)).call[0]
    assert "interpolate_pos_encoding=True" in asked and "interpolate" not in hf_vit.package(model(VIT)).call[0]
    sines = timm.package(model(VIT | dict(posemb="sincos"), large))  # which are computed for the pictures at hand
    assert sines.layout.filled["pos_embed"].shape == (1, 17, 8)
    assert json.loads(sines.files["config.json"])["model_args"]["img_size"] == 16


def test_ids_of_texts():
    own = dict(pool="eot", vocab=49408, length=77, eot=49407)
    wanted = dict(bos_token_id=49406, eos_token_id=49407, pad_token_id=49407)  # CLIPTokenizer's
    for net in (own, own | dict(pool="argmax")):
        assert {k: v for k, v in texts.ids("clip", net, b"").items() if k in wanted} == wanted
    assert texts.ids("clip", dict(pool="argmax", vocab=9, length=4, eot=-1), b"")["eos_token_id"] == texts.LARGEST
    assert "CLIPTokenizer" in texts.lines(own, {}, b"", transformers=True)[0]
    assert "open_clip.SimpleTokenizer(context_length=77)" in texts.lines(own, {}, b"", transformers=False)[0]


def test_settings_of_open_clip_that_no_array_tells_are_refused():
    weights = {"visual.class_embedding": None}
    for part, setting in (("text_cfg", dict(no_causal_mask=True)), ("vision_cfg", dict(pool_type="avg"))):
        with pytest.raises(UsageError, match=f"{part}.{next(iter(setting))}=.*, which no net here does"):
            open_clip.read(weights, {part: setting}, "x")
    assert found.squashed(open_clip._view(8, dict(resize_mode="squash"), "x"))
    with pytest.raises(UsageError, match="resize_mode='longest'"):
        open_clip._view(8, dict(resize_mode="longest"), "x")


def test_libraries_are_named_as_pip_calls_them(monkeypatch):
    def absent(name):
        raise ImportError(name)
    monkeypatch.setattr(check.importlib, "import_module", absent)
    lines = ("import safetensors.torch, timm, torch", "from open_clip import x", 'y = "import nothing"')
    package = found.Package(None, "", {}, lines, ())
    assert check.library(package) == "open_clip_torch, safetensors, timm, torch"
