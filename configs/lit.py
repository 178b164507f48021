"""LiT: a text tower learns to match an image tower that is locked, loaded from any run or file of weights.

    python -m simclr_jax.train --config=configs/lit.py:net=resnet50 --config.load.image=runs/simclr:backbone \
        --config.data.root='DIR/{00000..00331}.tar' --config.text.path=bpe_simple_vocab_16e6.txt.gz --workdir=runs/lit

Variants, after a colon: net=vit_b16 (vit_s16, vit_l16, resnet18, resnet50, ... as the weights are of), loss=siglip
(clip), batch=512, res=224, steps=5000, lr=0.001, dtype=float32.

Recipe: Zhai et al. 2022, arXiv:2111.07991, as big_vision's siglip_lit_coco.py sets it: rate .001, decay .01, gradient
norm 1, bias -2.71, batch 512, 5,000 steps, 3% of warm-up. The towers meet at the image tower's own width, so that all
of the image tower is locked. To train it too, slowly: `--config.method.locked='()' --config.optim.freeze='()'
--config.optim.rates='(("^image/", 0.1),)'`.

Hardware  a GPU or a few TPU chips; 84.5 zero-shot ImageNet took a ViT-g/14 and 4 TPU v4 chips two days (paper: SigLIP,
          table 1).
Expected  depends on the image tower. Not run by us at this size.
"""
from configs.common import recipes
from simclr_jax.config import base, variant
from simclr_jax.errors import UsageError

VITS = {"vit_s16": ("S", 384), "vit_b16": ("B", 768), "vit_l16": ("L", 1024)}


def get_config(arg=""):
    v = variant(arg, net="vit_b16", loss="siglip", batch=512, res=224, steps=5000, lr=1e-3, dtype="float32")
    if v.net in VITS:
        size, out = VITS[v.net]
        image = dict(name="vit", size=size, patch=16, image=v.res, pool="cls", dtype=v.dtype)
    elif v.net.removeprefix("resnet").isdigit():
        depth = int(v.net.removeprefix("resnet"))
        image, out = dict(name="resnet", depth=depth, dtype=v.dtype), 512 if depth < 50 else 2048
    else:
        raise UsageError(f"net={v.net!r}, wanted {', '.join(VITS)}, resnet18, resnet34, resnet50, resnet101 "
                         "or resnet152")
    methods = {"siglip": dict(name="siglip", scale=10.0, bias=-2.71), "clip": dict(name="clip")}
    if v.loss not in methods:
        raise UsageError(f"loss={v.loss!r}, wanted siglip or clip")
    config = base()
    config.batch, config.steps = v.batch, v.steps
    config.method = dict(locked=("image",), **methods[v.loss])
    config.nets = dict(image=image, text=dict(name="text", width=512, depth=12, heads=8, out=out, dtype=v.dtype))
    config.load = dict(image="")
    config.data = dict(name="webdataset", root="")
    config.text = dict(name="clip", path="", length=77)
    config.augment = dict(views=recipes.siglip(v.res), eval=recipes.siglip_eval(v.res))
    config.optim = dict(name="adamw", lr=v.lr, scaling="none", warmup_steps=max(int(0.03 * v.steps), 100),
                        weight_decay=0.01, clip_norm=1.0, freeze=("^image/",))
    config.checkpoint = dict(every=1000, keep=2)
    config.evals = dict(every=0, run=("retrieval",), best="")
    return config
