"""SwAV on ImageNet (TFDS imagenet2012), ResNet-50.

    python -m simclr_jax.train --config=configs/swav_imagenet.py --workdir=gs://BUCKET/swav

Variants, after a colon: epochs=100 (200, 400, 800), batch=4096, queue=0, crops=6, dtype=bfloat16|float32;
for a small batch: batch=256,queue=3840,epochs=200.

Recipe: facebookresearch/swav README.md, scripts/: LARC at 4.8 to .0048, which is LARS on all parameters with the rate
after the momentum (its ratio has |g| + wd |p| where ours has |g + wd p|), 10 epochs of warm-up from .3, weight decay
1e-6, T .1, epsilon .05, 3 iterations, 3000 prototypes that wait an epoch, head 2048-128. With a queue: 0.6 for 256
rows.

Hardware  64 GPUs (paper's code). Ours: not yet run.
Expected  linear evaluation, top-1, 4096 rows: 72.1, 73.9, 74.6, 75.3 after 100, 200, 400, 800 epochs; 256 rows and a
          queue of 3840: 72.7 after 200 (swav README.md). Ours: not yet run.
"""
from configs.common import recipes
from configs.common.imagenet import imagenet, resnet50
from simclr_jax.config import variant


def get_config(arg=""):
    v = variant(arg, epochs=100.0, batch=4096, queue=0, crops=6, dtype="bfloat16")
    config = imagenet(v.batch, v.epochs, recipes.swav(crops=v.crops), recipes.torch_eval(normalize=recipes.SWAV))
    config.method = dict(name="swav", prototypes=3000, queue=v.queue)
    config.nets = dict(
        backbone=resnet50(v.dtype, zero_init=False),
        projector=dict(name="mlp", layers=2, hidden=2048, out=128, last_bn=False, std=0.0, dtype=v.dtype),
    )
    every = ((".*", 1.0),)
    config.optim = dict(name="lars_byol", lr=0.6 if v.queue else 0.3, scaling="linear", schedule="dino",
                        warmup_epochs=0.0 if v.queue else 10.0, warmup_start=0.0625, final=0.001, weight_decay=1e-6,
                        decay=every, adapt=every, hold=(("^prototypes$", 1.0),), unit=("^prototypes$",))
    return config
