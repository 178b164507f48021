"""State dicts of libraries in and out: the same trees as the tests' own tables, and the same bytes back.

That those trees give the originals' numbers is held by tests/nets, with the same weights.
"""
import numpy as np
import pytest

from nets import weights as tables
from simclr_jax.errors import UsageError
from simclr_jax.export import hf_bert, hf_vit, layout, open_clip, tensors, timm, torch_resnet, transformers


def of(arrays):
    return {name: tensors.of(a) for name, a in arrays.items()}


HF = dict(hidden_act="gelu", num_attention_heads=4, layer_norm_eps=1e-6)
TOWER = dict(num_hidden_layers=2, num_attention_heads=4)
CASES = {
    "timm_vit": (timm, dict(num_heads=4), {"backbone": tables.timm_vit(2)}),
    "timm_vit_reg_ls": (timm, dict(num_heads=4), {"backbone": tables.timm_vit(2)}),
    "hf_dinov2": (transformers, dict(HF, model_type="dinov2", mlp_ratio=3), {"backbone": tables.hf_dinov2(2)}),
    "hf_clip": (transformers, dict(model_type="clip", text_config=dict(TOWER, eos_token_id=2), vision_config=TOWER),
                dict(zip(("image", "text"), tables.hf_clip(2)))),
    "hf_siglip": (transformers, dict(model_type="siglip", text_config=TOWER, vision_config=TOWER), None),
    "openclip_vit": (open_clip, dict(vision_cfg=dict(head_width=8), text_cfg=dict(heads=4)),
                     dict(image=tables.openai_vit(2), text=tables.openai_text(2))),
    "openclip_modified_resnet": (open_clip, dict(vision_cfg=dict(head_width=32), text_cfg=dict(heads=4)),
                                 dict(image=tables.openai_resnet((1, 1, 1, 1))[0], text=tables.openai_text(2))),
}


@pytest.mark.scorecard(44)
@pytest.mark.parametrize("name", CASES)
def test_a_state_dict_is_read_as_the_tables_say_and_written_back_to_the_bit(name):
    module, config, expected = CASES[name]
    arrays = tables.Oracle(name).weights
    if module is open_clip:  # the file of the residual net has no text tower, and neither has a scale
        text = {n: a for n, a in tables.Oracle("openclip_vit").weights.items() if not n.startswith("visual.")}
        arrays = text | arrays | {"logit_scale": np.float32(4.6)}
    found = module.read(of(arrays), config, "x")
    ours, beside = layout.ours(found.layout, of(arrays), "x")
    if name == "hf_siglip":
        arrays_cut = tables.siglip_head(arrays)
        expected = dict(zip(("image", "text"), tables.hf_siglip(2)))
    for role, table in expected.items():
        for leaf, want in tables.flat(tables.convert(arrays_cut if name == "hf_siglip" else arrays, table)).items():
            np.testing.assert_array_equal(ours[f"{role}/{leaf}"].read(), want, err_msg=leaf)
            assert ours[f"{role}/{leaf}"].shape == want.shape
    back = layout.theirs(found.layout, ours, beside, "x")
    assert {n: t.shape for n, t in back.items() if n in arrays} == {n: a.shape for n, a in arrays.items()}
    assert not {n for n in set(back) - set(arrays) if "num_batches_tracked" not in n}
    for n, a in arrays.items():
        np.testing.assert_array_equal(back[n].read(), a, err_msg=n)
        assert back[n].read().dtype == a.dtype


def random(shapes, seed=0):
    rng = np.random.default_rng(seed)
    return {n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()}


def resnet_shapes(blocks, channels, deep, stem=64, kernel=7):
    """Written out from torchvision's resnet.py."""
    out, at = {"conv1.weight": (stem, 3, kernel, kernel)}, stem

    def bn(name, c):
        out.update({f"{name}.{k}": (c,) for k in ("weight", "bias", "running_mean", "running_var")})
    bn("bn1", stem)
    for i, (n, c) in enumerate(zip(blocks, channels), 1):
        for j in range(n):
            name, wide = f"layer{i}.{j}", c * (4 if deep else 1)
            convs = [(c, at, 1), (c, c, 3), (wide, c, 1)] if deep else [(c, at, 3), (c, c, 3)]
            for k, (o, inside, side) in enumerate(convs, 1):
                out[f"{name}.conv{k}.weight"] = (o, inside, side, side)
                bn(f"{name}.bn{k}", o)
            if j == 0 and (at != wide or i > 1):
                out[f"{name}.downsample.0.weight"] = (wide, at, 1, 1)
                bn(f"{name}.downsample.1", wide)
            at = wide
    return out


@pytest.mark.parametrize("depth, blocks, deep, channels", [(18, (2, 2, 2, 2), False, (64, 128, 256, 512)),
                                                           (34, (3, 4, 6, 3), False, (8, 16, 32, 64)),
                                                           (50, (3, 4, 6, 3), True, (4, 8, 12, 16))])
def test_a_resnet_is_known_by_its_names_and_shapes(depth, blocks, deep, channels):
    arrays = random(resnet_shapes(blocks, channels, deep, stem=channels[0] if depth == 34 else 64))
    found = timm.read(of(arrays), {}, "x")
    net = found.nets["backbone"]
    assert net["depth"] == depth and net["layout"] == "torch" and net["stem"] == "imagenet"
    assert torch_resnet.widths(net) == ((channels[0] if depth == 34 else 64), *channels)
    ours, beside = layout.ours(found.layout, of(arrays), "x")
    assert not beside and len(ours) == len(arrays)
    np.testing.assert_array_equal(ours["backbone/stage2/block1/conv2/kernel"].read(),
                                  arrays["layer2.0.conv2.weight"].transpose(2, 3, 1, 0))
    np.testing.assert_array_equal(ours["backbone/stats/stage4/block2/bn1/var"].read(),
                                  arrays["layer4.1.bn1.running_var"])
    back = layout.theirs(found.layout, ours, {}, "x")
    assert {n for n in back if n.endswith("num_batches_tracked")} == {n.replace("running_var", "num_batches_tracked")
                                                                      for n in arrays
                                                                    if n.endswith("running_var")}
    for n, a in arrays.items():
        np.testing.assert_array_equal(back[n].read(), a)


def test_missing_and_unknown_names_are_listed_in_one_line():
    arrays = tables.Oracle("timm_vit").weights
    fewer = {n: a for n, a in arrays.items() if n != "blocks.1.norm1.bias"}
    found = timm.read(of(arrays), dict(num_heads=4), "x")
    with pytest.raises(UsageError, match=r"^w: 1 of its arrays are missing \(blocks.1.norm1.bias\); it is of another"):
        layout.ours(found.layout, of(fewer), "w")
    meant = r"missing \(blocks.1.norm1.bias; is blocks.1.norm1.bais blocks.1.norm1.bias\?\) and 1 of its"
    with pytest.raises(UsageError, match=meant):
        layout.ours(found.layout, of(fewer | {"blocks.1.norm1.bais": np.zeros(32)}), "w")
    with pytest.raises(UsageError, match="has shape"):
        layout.ours(found.layout, of(arrays | {"cls_token": np.float32(0)}), "w")


def test_both_spellings_of_transformers_vit():
    net = dict(name="vit", width=8, depth=2, heads=2, mlp=16, patch=4, image=8, gelu="erf", eps=1e-6)
    sizes = {"qkv/kernel": (8, 24), "qkv/bias": (24,), "out/kernel": (8, 8), "fc1/kernel": (8, 16), "fc1/bias": (16,),
             "fc2/kernel": (16, 8), "patches/kernel": (4, 4, 3, 8), "class_token/embedding": (1, 8),
             "positions/embedding": (5, 8)}
    shapes = {r.ours: sizes.get("/".join(r.ours.split("/")[-2:]), (8,))
              for r in hf_vit.layout("backbone", net, "vit").rows}
    ours = of(random(shapes))
    spelt = {naming: layout.theirs(hf_vit.layout("backbone", net, "vit", naming), ours, {}, "x")
             for naming in ("hub", "memory")}
    assert "encoder.layer.1.attention.attention.key.bias" in spelt["hub"]
    assert "layers.1.attention.k_proj.bias" in spelt["memory"]
    assert len(spelt["hub"]) == len(spelt["memory"])
    for theirs in spelt.values():
        assert hf_vit.spelling(theirs) == ("hub" if theirs is spelt["hub"] else "memory")
        back, _ = layout.ours(hf_vit.layout("backbone", net, "vit", hf_vit.spelling(theirs)), theirs, "x")
        for n, t in ours.items():
            np.testing.assert_array_equal(back[n].read(), t.read())


def test_berts_rows_are_the_tables():
    for kind, at in (("bert", ""), ("roberta", "roberta.")):
        net = dict(name="bert", depth=2, width=8, pool="pooler")
        rows = {r.ours.removeprefix("text/"): tuple(p.name for p in r.parts) for r in hf_bert.table("text", net, at)}
        assert rows == {ours: tuple(theirs) for ours, (_, *theirs) in tables.hf_bert(2, at).items()}


def test_a_part_of_a_joined_array_is_cut_and_put_back():
    whole = np.arange(24, dtype=np.float32).reshape(6, 4)
    rows = (layout.row("a", "linear", layout.Part("w", 0, 1, 3)), layout.row("b", "linear", layout.Part("w", 1, 3, 3)))
    made, _ = layout.ours(layout.Layout(rows), of({"w": whole}), "x")
    np.testing.assert_array_equal(made["a"].read(), whole[:2].T)
    np.testing.assert_array_equal(made["b"].read(), whole[2:].T)
    np.testing.assert_array_equal(layout.theirs(layout.Layout(rows), made, {}, "x")["w"].read(), whole)
