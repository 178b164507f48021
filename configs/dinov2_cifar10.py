"""DINOv2 on CIFAR-10 (TFDS), ResNet-18 with the CIFAR stem.

    python -m simclr_jax.train --config=configs/dinov2_cifar10.py --workdir=runs/dinov2_c10
    python -m simclr_jax.evals --workdir=runs/dinov2_c10 --evals=knn,linear

Variants, after a colon: batch=256, epochs=1000, crops=4.

A ViT of 9 blocks on patches of 4 (so not a ResNet); crops of 16 beside the views of SimCLR on CIFAR. Ours, not
published.

Hardware  one GPU or TPU core for 1000 epochs.
Expected  no published number. Ours: not yet run.
"""
from configs.common import recipes
from configs.common.cifar import cifar10
from simclr_jax.config import variant


def get_config(arg=""):
    v = variant(arg, batch=256, epochs=1000.0, crops=4)
    config = cifar10(v.batch, v.epochs)
    head = dict(name="mlp", layers=3, hidden=2048, out=256, hidden_bn=False, last_bn=False, activation="gelu", std=0.02)
    config.method = dict(name="dinov2", prototypes=4096)
    config.nets.backbone = dict(name="vit", patch=4, image=32, width=192, depth=9, heads=3, mask_token=True,
                                registers=4, layer_scale=1e-5, drop_path=0.1)
    config.nets.projector, config.nets.patch_projector = head, head
    config.augment.views, config.augment.mask = recipes.cifar_crops(crops=v.crops), dict(patch=4)
    config.optim = dict(name="adamw", lr=1e-3 / 16, scaling="sqrt", warmup_epochs=10.0, final=1e-3, weight_decay=0.04,
                        weight_decay_final=0.4, clip_norm=3.0, layer_decay=0.9, hold=(("^(patch_)?last/", 1.0),))
    return config
