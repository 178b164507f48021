"""BYOL on ImageNet (TFDS imagenet2012), ResNet-50.

    python -m simclr_jax.train --config=configs/byol_imagenet.py --workdir=gs://BUCKET/byol

Variants, after a colon: epochs=1000 (40, 100, 300), batch=4096, dtype=bfloat16|float32,
layout=simclr (torch; haiku: pads as the paper's code, and cannot be exported to PyTorch's libraries).

Recipe: deepmind-research byol/configs/byol.py: LARS with the rate after the momentum, by 256 rows, weight decay,
momentum of the target by epochs: 40: .45, 1e-6, .97; 100: .45, 1e-6, .99; 300: .3, 1e-6, .99; 1000: .2, 1.5e-6, .996.
10 epochs of warm-up, heads 4096-256.

Hardware  about 8 h on 512 TPU v3 cores (paper's code: byol README.md). Ours: not yet run.
Expected  linear evaluation, top-1, 1000 epochs: 74.0 to 74.5 (paper's code: byol README.md). Ours: not yet run.
"""
from configs.common import recipes
from configs.common.imagenet import imagenet
from simclr_jax.config import variant
from simclr_jax.errors import UsageError


RECIPES = {40: (0.45, 1e-6, 0.97), 100: (0.45, 1e-6, 0.99), 300: (0.3, 1e-6, 0.99), 1000: (0.2, 1.5e-6, 0.996)}


def get_config(arg=""):
    v = variant(arg, epochs=1000, batch=4096, layout="simclr", dtype="bfloat16")
    if v.epochs not in RECIPES:
        raise UsageError(f"epochs={v.epochs}, wanted one of {', '.join(map(str, RECIPES))}")
    lr, decay, momentum = RECIPES[v.epochs]
    config = imagenet(v.batch, float(v.epochs), recipes.byol(), recipes.byol_eval())
    config.method = dict(name="byol", momentum=momentum)
    head = dict(name="mlp", layers=2, hidden=4096, out=256, last_bn=False, last_bias=False, std=0.0, dtype=v.dtype)
    config.nets = dict(backbone=dict(name="resnet", depth=50, layout=v.layout, zero_init=False, dtype=v.dtype),
                       projector=head, predictor=head)
    config.optim = dict(name="lars_byol", lr=lr, scaling="linear", warmup_epochs=10.0, weight_decay=decay)
    return config
