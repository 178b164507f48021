"""MoCo v3 on ImageNet (TFDS imagenet2012), ResNet-50 or ViT.

    python -m simclr_jax.train --config=configs/moco_v3_imagenet.py --workdir=gs://BUCKET/moco_v3

Variants, after a colon: net=r50 (S, B), epochs=100 (300, 1000; ViT: 300), batch=4096, dtype=bfloat16|float32.

Recipe: facebookresearch/moco-v3 README.md, CONFIG.md. ResNet-50: LARS by 256 rows at .6, .3, .3, weight decay 1e-6,
1e-6, 1.5e-6, key momentum .99, .99, .996 for 100, 300, 1000 epochs, T 1.0. ViT: AdamW at 1.5e-4 by 256 rows, weight
decay 0.1, 40 epochs of warm-up, T 0.2, patches as drawn; its ViT-S has 12 heads. Heads 4096-256.

Hardware  see the README of moco-v3. Ours: not yet run.
Expected  linear evaluation, top-1: ResNet-50 68.9, 72.8, 74.6 after 100, 300, 1000 epochs; ViT-S 73.2, ViT-B 76.7 after
          300 (moco-v3 README.md). Ours: not yet run.
"""
from configs.common import recipes
from configs.common.imagenet import imagenet, resnet50
from simclr_jax.config import variant
from simclr_jax.errors import UsageError


RECIPES = {100: (0.6, 1e-6, 0.99), 300: (0.3, 1e-6, 0.99), 1000: (0.3, 1.5e-6, 0.996)}


def get_config(arg=""):
    v = variant(arg, net="r50", epochs=0, batch=4096, dtype="bfloat16")
    epochs = v.epochs or (100 if v.net == "r50" else 300)
    if v.net not in ("r50", "S", "B") or v.net == "r50" and epochs not in RECIPES:
        raise UsageError(f"net={v.net!r}, epochs={epochs}: wanted r50 for {', '.join(map(str, RECIPES))} epochs, S "
                         "or B")
    vit = v.net != "r50"
    config = imagenet(v.batch, float(epochs), recipes.moco_v3(lowest=0.08 if vit else 0.2), recipes.torch_eval())
    heads = dict(name="mlp", hidden=4096, out=256, last_scale=False, std=0.0, dtype=v.dtype)
    config.nets = dict(
        backbone=dict(name="vit", size=v.net, heads=12, posemb="sincos", dtype=v.dtype) if vit else resnet50(v.dtype),
        projector=dict(heads, layers=3 if vit else 2),
        predictor=dict(heads, layers=2, last_bn=vit),
    )
    lr, decay, momentum = RECIPES.get(epochs, RECIPES[300])
    if vit:
        config.method = dict(name="moco_v3", temperature=0.2, momentum=0.99)
        config.optim = dict(name="adamw", lr=1.5e-4, scaling="linear", warmup_epochs=40.0, weight_decay=0.1,
                            decay=((".*", 1.0),), freeze=("^backbone/patches/",))
    else:
        config.method = dict(name="moco_v3", temperature=1.0, momentum=momentum)
        config.optim = dict(name="lars_byol", lr=lr, scaling="linear", warmup_epochs=10.0, weight_decay=decay)
    return config
