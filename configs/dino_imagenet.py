"""DINO on ImageNet (TFDS imagenet2012), ViT.

    python -m simclr_jax.train --config=configs/dino_imagenet.py --workdir=gs://BUCKET/dino

Variants, after a colon: size=S (B), patch=16 (8), epochs=100, batch=512, boost=false, dtype=bfloat16|float32.

Recipe: facebookresearch/dino README.md: AdamW at 5e-4 by 256 rows, 10 epochs of warm-up, to 1e-6, weight decay .04 to
.4, each tensor clipped at 3.0, momentum .996, 65,536 prototypes whose layer waits an epoch, stochastic depth .1,
teacher at T .04. boost: T from .04 to .07 in 30 epochs, lengths of the last layer learned; for 300 epochs.

Hardware  8 GPUs of 64 rows each; boost: 16 (paper's code). Ours: not yet run.
Expected  k-NN and linear, top-1: ViT-S/16 69.3 and 74.0 after 100 epochs, boosted 73.3 and 76.0 after 300; released
          S/16 74.5 and 77.0, S/8 78.3 and 79.7, B/16 76.1 and 78.2, B/8 77.4 and 80.1 (dino README.md). Ours: not yet
          run.
"""
from configs.common import recipes
from configs.common.imagenet import imagenet
from simclr_jax.config import variant


def get_config(arg=""):
    v = variant(arg, size="S", patch=16, epochs=100.0, batch=512, boost=False, dtype="bfloat16")
    config = imagenet(v.batch, v.epochs, recipes.dino(), recipes.torch_eval(method="bicubic"))
    config.method = dict(name="dino", norm_last_layer=not v.boost, teacher_temperature=0.07 if v.boost else 0.04,
                         warmup_teacher_epochs=30.0 if v.boost else 0.0)
    config.nets = dict(
        backbone=dict(name="vit", size=v.size, patch=v.patch, drop_path=0.1, dtype=v.dtype),
        projector=dict(name="mlp", layers=3, hidden=2048, out=256, hidden_bn=False, last_bn=False, activation="gelu",
                       std=0.02, dtype=v.dtype),
    )
    config.optim = dict(name="adamw", lr=5e-4, scaling="linear", schedule="dino", warmup_epochs=10.0, weight_decay=0.04,
                        weight_decay_final=0.4, clip_each=3.0, hold=(("^last/", 1.0),))
    config.optim.final = 1e-6 / (5e-4 * v.batch / 256)
    return config
