"""The published image-text recipes, traced at full size: what they say they are, by number of parameters and by name."""
import re

import jax
import jax.numpy as jnp
import pytest

from runs import ROOT
from simclr_jax import build, config as configs, dist
from simclr_jax.data.tokenizer import Tokenizer
from simclr_jax.errors import UsageError
from simclr_jax.train.state import state_shapes
from simclr_jax.train.step import make_step

CLIP = Tokenizer(None, 49408, 77, 49407, 0, "", 0)
C4 = Tokenizer(None, 32000, 64, 1, 1, "", 0)
TRAINED = Tokenizer(None, 4096, 32, 2, 0, "", 0)


def traced(file, tokenizer, *flags, batch=16, devices=4):
    """The config, the state's and the metrics' shapes after one step on `devices`."""
    config, _ = configs.parse(["train", f"--config={ROOT}/configs/{file}", f"--config.batch={batch}", *flags])
    mesh = dist.make_mesh({"data": devices}, jax.devices()[:devices])
    method = build.method(config, axis=dist.DATA, examples=1_000_000, tokenizer=tokenizer)
    optimiser = build.optimiser(config, 1_000_000)
    rows = build.rows(config, build.recipe(config), tokenizer)
    assert rows["views"].shape[:3] == (batch, 1, config.augment.eval[0][1]["size"])
    state = state_shapes(method, optimiser.tx, rows, seed=0)
    step = make_step(method, optimiser.tx, mesh, seed=0, microbatches=config.microbatches)
    after, metrics = jax.eval_shape(step, state, rows)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(lambda x: (x.shape, x.dtype), state)
    return config, optimiser, state, metrics


# Parameters of the released nets: open_clip's model profile for the first two; transformers' google/siglip-base-patch16-224.
@pytest.mark.parametrize("file, tokenizer, count", [
    ("clip_vit_b32.py", CLIP, 151_277_313), pytest.param("clip_rn50.py", CLIP, 102_007_137, marks=pytest.mark.slow),
    pytest.param("siglip_vit_b16.py", C4, 203_155_970, marks=pytest.mark.slow)])
def test_a_recipe_is_the_published_net_and_decays_its_kernels_alone(file, tokenizer, count):
    config, _, state, metrics = traced(file, tokenizer)
    assert build.count(state.params) == count
    assert {"loss", "accuracy", "positive", "negative", "scale", "grad_norm"} <= set(metrics)
    assert ("bias" in metrics) == file.startswith("siglip")
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(state.params))
    names = ["/".join(k.key for k in path) for path, _ in jax.tree_util.tree_flatten_with_path(state.params)[0]]
    decays = [n for n in names if next(v for r, v in config.optim.decay if re.search(r, n))]
    assert not [n for n in decays if re.search("bias|scale|norm|bn", n.split("/", 1)[1] if "/" in n else n)]
    assert any("stack" in n for n in decays) and len(decays) > 20


@pytest.mark.slow
def test_a_smaller_or_larger_image_is_a_variant():
    _, _, state, _ = traced("siglip_vit_b16.py:res=256,scan", C4)
    assert any(256 in x.shape for x in jax.tree.leaves(state.params["image"]))  # (256 / 16)^2 positions
    assert max(x.ndim for x in jax.tree.leaves(state.params["text"])) == 3  # kernels of all layers in one


@pytest.mark.parametrize("net", ["resnet18", pytest.param("vit_b16", marks=pytest.mark.slow)])
def test_lit_trains_the_text_tower_alone(net):
    _, optimiser, state, _ = traced(f"lit.py:net={net}", CLIP, "--config.load.image=x")
    held = build.count(state.params["image"])
    assert build.count(jax.tree.map(lambda x: x, state.opt_state)) < 2.01 * (build.count(state.params) - held)
    assert any("frozen" in line for line in optimiser.report(state.params))


@pytest.mark.slow
def test_folder_recipe_traces_for_both_losses():
    for loss in ("clip", "siglip"):
        config, *_ = traced(f"siglip_folder.py:loss={loss},batch=16", TRAINED)
        assert config.method.name == loss


def test_a_locked_tower_needs_weights():
    config, _ = configs.parse(["train", f"--config={ROOT}/configs/lit.py"])
    with pytest.raises(UsageError, match="locked names 'image'.*--config.load.image=WORKDIR:backbone"):
        configs.check(config)
