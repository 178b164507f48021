"""Names and shapes of full-size models, as their libraries list them (tests/data/README.md): ours are the same."""
import functools
import json
import pathlib

import numpy as np
import pytest

from simclr_jax.export import hf_bert, hf_pair, hf_vit, layout, model as models, tensors, timm

DATA = pathlib.Path(__file__).parents[1] / "data/manifests.npz"
VIT_B = dict(name="vit", size="B", image=224)
BERT = lambda nets: layout.Layout(tuple(hf_bert.table("text", nets["text"])))
CASES = {
    "timm/resnet18": (dict(backbone=dict(name="resnet", depth=18, layout="torch")), None),
    "timm/resnet50": (dict(backbone=dict(name="resnet", depth=50, layout="torch")), None),
    "timm/resnet101": (dict(backbone=dict(name="resnet", depth=101, layout="torch")), None),
    "timm/vit_base_patch16_224": (dict(backbone=VIT_B), None),
    "timm/vit_small_patch14_dinov2": (
        dict(backbone=dict(name="vit", size="S", patch=14, image=518, layer_scale=1e-5)), None),
    "timm/vit_base_patch14_reg4_dinov2": (
        dict(backbone=dict(name="vit", size="B", patch=14, image=518, layer_scale=1e-5, registers=4,
                           position_on_class=False)), None),
    "hf/openai/clip-vit-base-patch32 (CLIPConfig defaults)": (
        dict(image=dict(VIT_B, patch=32, pre_norm=True, patch_bias=False, out=512),
             text=dict(name="text", vocab=49408, length=77, eot=49407, out=512)),
        lambda nets: hf_pair.layout(nets, "clip")),
    "hf/siglip-base-patch16-224 (SiglipConfig defaults)": (
        dict(image=dict(VIT_B, class_token=False, pool="map"),
             text=dict(name="text", vocab=32000, length=64, width=768, heads=12, causal=False, pool="last", out=768,
                       out_bias=True)),
        lambda nets: hf_pair.layout(nets, "siglip")),
    "hf/dinov2-base (Dinov2Config hidden 768, image 518, patch 14)": (
        dict(backbone=dict(name="vit", size="B", patch=14, image=518, layer_scale=1.0, mask_token=True)),
        lambda nets: hf_vit.layout("backbone", nets["backbone"], "dinov2", "memory")),
    "hf/bert-base-uncased (BertConfig defaults)": (
        dict(text=dict(name="bert", vocab=30522, pool="pooler")), BERT),
    "hf/roberta-base": (
        dict(text=dict(name="bert", vocab=50265, length=512, pad=1, types=1, positions="roberta", pool="pooler")),
        BERT),
}


@functools.cache
def manifests():
    with np.load(DATA) as z:
        return json.loads(z["manifests"].tobytes())


def test_every_list_is_used():
    assert set(CASES) == set(manifests())


@pytest.mark.scorecard(44)
@pytest.mark.parametrize("name", CASES)
def test_names_and_shapes_are_the_librarys(name):
    nets, table = CASES[name]
    size = nets.get("backbone", nets.get("image", {})).get("image", 224)
    model = models.Model({role: models.filled(net) for role, net in nets.items()}, {}, {},
                         {"eval": [["resize", {"size": size}]]})
    weights = {n: tensors.Tensor(leaf.shape, np.dtype(np.float32), None)
               for role in nets for n, leaf in models.shapes(model, role).items()}
    if len(nets) == 2:
        scalars = ("logit_scale", "logit_bias") if nets["image"].get("pool") == "map" else ("logit_scale",)
        weights |= {n: tensors.Tensor((), np.dtype(np.float32), None) for n in scalars}
    made = table(model.nets) if table else timm.package(model).layout
    found = {n: list(t.shape) for n, t in layout.theirs(made, weights, {}, name).items()}
    wanted = {n: shape for n, shape in manifests()[name].items() if not n.startswith(("fc.", "head."))}
    assert found == wanted
