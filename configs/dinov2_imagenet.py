"""DINOv2 on ImageNet (TFDS imagenet2012), ViT-L/16.

    python -m simclr_jax.train --config=configs/dinov2_imagenet.py --workdir=gs://BUCKET/dinov2

Variants, after a colon: size=L, patch=16, registers=0, steps=125000, batch=2048, dtype=bfloat16|float32.

Recipe: facebookresearch/dinov2 configs/train/vitl16_short.yaml, ssl_default_config.yaml: 100 times 1250 steps of 2048
rows, AdamW at 4e-3 by sqrt(rows / 1024), 12,500 steps of warm-up, weight decay .04 to .4, clipping at 3.0 (there net by
net), layer-wise decay .9, patches at a fifth of the rate, stochastic depth .3 (there the same in all blocks), momentum
.992, T from .04 to .07 in 37,500 steps, KoLeo .1, iBOT 1.0 with shares of .1 to .5 in half of the views. As in its
larger recipes, heads are separate and the teacher's scores are shared out by Sinkhorn-Knopp. Last layers wait 1250
steps; there their rate is 0, under which Adam's averages go on.

Hardware  32 A100 for about a day (paper's code: dinov2 README.md). Ours: not yet run.
Expected  k-NN and linear, top-1: 81.6 and 82.9 (dinov2 README.md). Ours: not yet run.
"""
from configs.common import recipes
from configs.common.imagenet import imagenet
from simclr_jax.config import variant


def get_config(arg=""):
    v = variant(arg, size="L", patch=16, registers=0, steps=125_000, batch=2048, dtype="bfloat16")
    epoch = 1250 * v.batch / 1_281_167  # of the original, in epochs
    views = recipes.dinov2(small=98 if v.patch == 14 else 96)
    config = imagenet(v.batch, 100.0, views, recipes.torch_eval(method="bicubic"))
    config.steps, config.remat = v.steps, True
    head = dict(name="mlp", layers=3, hidden=2048, out=256, hidden_bn=False, last_bn=False, activation="gelu", std=0.02,
                dtype=v.dtype)
    config.method = dict(name="dinov2", warmup_teacher_epochs=30 * epoch)
    config.nets = dict(
        backbone=dict(name="vit", size=v.size, patch=v.patch, registers=v.registers, mask_token=True, layer_scale=1e-5,
                      drop_path=0.3, dtype=v.dtype),
        projector=head, patch_projector=head,
    )
    config.augment.mask = dict(patch=v.patch)
    config.optim = dict(name="adamw", lr=4e-3 / 32, scaling="sqrt", warmup_steps=12_500, weight_decay=0.04,
                        weight_decay_final=0.4, clip_norm=3.0, layer_decay=0.9, rates=((r"^backbone/patches/", 0.2),),
                        hold=(("^(patch_)?last/", epoch),), final=1e-6 / (4e-3 * (v.batch / 1024) ** 0.5))
    return config
