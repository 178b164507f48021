"""MoCo v1 and v2 on ImageNet (TFDS imagenet2012), ResNet-50.

    python -m simclr_jax.train --config=configs/moco_imagenet.py --workdir=gs://BUCKET/moco

Variants, after a colon: v=2 (1), epochs=200, batch=256, bn=rows=32 (global), dtype=bfloat16|float32.

Recipe: facebookresearch/moco main_moco.py: SGD at 0.03, momentum 0.9, weight decay 1e-4 on everything, a queue of
65,536, key momentum 0.999, 128 dimensions; v1: T 0.07, a linear head, a tenth of the rate at epochs 120 and 160; v2: T
0.2, two layers, a cosine, blur. Batch statistics of 32 rows, the keys' images dealt out anew; bn=global takes those of
all rows, and then deals nothing.

Hardware  8 GPUs of 32 rows each (paper's code). Ours: not yet run.
Expected  linear evaluation, top-1, 200 epochs: v1 60.8, v2 67.5; v2 after 800 epochs 71.1 (moco README.md). Ours: not
          yet run.
"""
from configs.common import recipes
from configs.common.imagenet import imagenet, resnet50
from simclr_jax.config import variant
from simclr_jax.errors import UsageError


def get_config(arg=""):
    v = variant(arg, v=2, epochs=200.0, batch=256, bn="rows=32", dtype="bfloat16")
    if v.v not in (1, 2):
        raise UsageError(f"v={v.v}, wanted 1 or 2; version 3 is moco_v3_imagenet.py")
    config = imagenet(v.batch, v.epochs, recipes.moco_v1() if v.v == 1 else recipes.moco_v2(), recipes.torch_eval())
    config.method = dict(name="moco", temperature=0.07 if v.v == 1 else 0.2, shuffle=v.bn != "global")
    config.nets = dict(
        backbone=resnet50(v.dtype, bn=v.bn, zero_init=False),
        projector=dict(name="mlp", layers=v.v, out=128, hidden_bn=False, last_bn=False, std=0.0, dtype=v.dtype),
    )
    config.optim = dict(name="sgd", lr=0.03, scaling="linear", warmup_epochs=0.0, weight_decay=1e-4,
                        decay=((".*", 1.0),), schedule="steps" if v.v == 1 else "cosine")
    return config
