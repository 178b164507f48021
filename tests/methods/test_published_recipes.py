"""Recipes on CIFAR-10 and ImageNet, traced at full size with nothing computed: nets, heads and views as published."""
import jax
import jax.numpy as jnp
import pytest

from runs import ROOT
from simclr_jax import build, config as configs, dist
from simclr_jax.data.source import Source

IMAGENET, CIFAR10 = 1_281_167, 50_000
# Parameters without a classifier. ResNet-50: torchvision's 25,557,032 but for 2,049,000 of its last layer; ResNet-18
# with the CIFAR stem: github.com/kuangliu/pytorch-cifar's 11,173,962 but for 5,130; ViTs: timm's vit_*_patch16_224 with
# num_classes=0, here without the table of 197 positions where those are sines, and with what DINOv2 adds: LayerScale
# twice a block and a mask token.
R50, R18, S16, B16, L16 = 23_508_032, 11_168_832, 21_665_664, 85_798_656, 303_301_632
TWO, SIX, EIGHT = {"views": (2, 224, 224, 3)}, {"crops": (6, 96, 96, 3)}, {"crops": (8, 96, 96, 3)}
SMALL, FOUR = {"views": (2, 32, 32, 3)}, {"crops": (4, 16, 16, 3)}


def dense(role, layer, width, out):
    return {f"{role}/layer{layer}/dense/kernel": (width, out)}


# Recipe: global batch, parameters of the backbone, shapes of an example, and those of what else the paper names.
RECIPES = {
    "moco_imagenet": (256, R50, TWO, {"queue": (65536, 128)}),
    "moco_imagenet:v=1": (256, R50, TWO, {"queue": (65536, 128)}),
    "moco_v3_imagenet": (4096, R50, TWO, dense("projector", 2, 4096, 256) | dense("predictor", 2, 4096, 256)),
    "moco_v3_imagenet:net=S": (4096, S16 - 197 * 384, TWO, dense("projector", 3, 4096, 256)),
    "moco_v3_imagenet:net=B": (4096, B16 - 197 * 768, TWO, dense("projector", 3, 4096, 256)),
    "byol_imagenet": (4096, R50, TWO, dense("projector", 2, 4096, 256) | dense("predictor", 1, 256, 4096)),
    "simsiam_imagenet": (512, R50, TWO, dense("projector", 3, 2048, 2048) | dense("predictor", 1, 2048, 512)),
    "swav_imagenet": (4096, R50, TWO | SIX, {"prototypes": (3000, 128)}),
    "swav_imagenet:batch=256,queue=3840,epochs=200": (256, R50, TWO | SIX, {"queue": (2, 3840, 128)}),
    "dino_imagenet": (512, S16, TWO | EIGHT, {"last/direction": (65536, 256), "center": (65536,)}),
    "dino_imagenet:size=B,boost": (512, B16, TWO | EIGHT, {"last/gain": (65536,)}),
    "dinov2_imagenet": (2048, L16 + 48 * 1024 + 1024, TWO | EIGHT | {"mask": (2, 196)},
                        {"last/direction": (65536, 256), "patch_last/direction": (65536, 256)}),
    "moco_cifar10": (256, R18, SMALL, {"queue": (32768, 256)}),
    "moco_v3_cifar10": (256, R18, SMALL, dense("predictor", 2, 4096, 256)),
    "byol_cifar10": (256, R18, SMALL, dense("predictor", 2, 4096, 256)),
    "simsiam_cifar10": (512, R18, SMALL, dense("predictor", 2, 512, 2048)),
    "swav_cifar10": (256, R18, SMALL | FOUR, {"prototypes": (3000, 128), "queue": (2, 3840, 128)}),
    "dino_cifar10": (256, R18, SMALL | FOUR, {"last/direction": (4096, 256)}),
    # Ours: 9 blocks of width w = 192, in each 12 w^2 + 13 w and LayerScale's 2 w; patches of 48 numbers and a bias; 65
    # positions; class token, mask token and 4 registers; a norm.
    "dinov2_cifar10": (256, 9 * (12 * 192 ** 2 + 15 * 192) + 192 * (49 + 65 + 6 + 2), SMALL | FOUR | {"mask": (2, 64)},
                       {"patch_last/direction": (4096, 256)}),
}


def leaves(tree):
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_traces_and_is_what_was_published(recipe):
    batch, backbone, example, named = RECIPES[recipe]
    file, _, variant = recipe.partition(":")
    config, _ = configs.parse(["train", f"--config={ROOT}/configs/{file}.py" + f":{variant}" * bool(variant)])
    configs.check(config)
    size, shape = (IMAGENET, None) if "imagenet" in file else (CIFAR10, (32, 32))
    source = Source(size, None, shape, (), "not here", list)
    method = build.method(config, axis=dist.DATA, examples=source.size)
    optimiser = build.optimiser(config, source.size)
    made = build.step(config, build.mesh(config, jax.devices()[:1]), method, optimiser.tx, build.recipe(config), source)
    rows = {k: x.shape for k, x in made.rows.items() if k not in ("label", "id")}
    assert rows == {k: (batch, *shape) for k, shape in example.items()}
    params, extra = made.state.params, made.state.extra
    assert build.count(params["backbone"]) == backbone
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(params))
    there = leaves(params) | leaves(extra)
    assert {name: there[name].shape for name in named} == named
    assert optimiser.report(params) is not None  # every rule of the recipe names a parameter
    after, metrics = made.trace().out_info
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(lambda x: (x.shape, x.dtype), made.state)
    assert metrics["loss"].shape == () and {"spread", "grad_norm"} <= set(metrics)
