"""DINOv2 on scikit-learn's 8x8 handwritten digits.

    python -m simclr_jax.train --config=configs/dinov2_digits.py --workdir=runs/dinov2_digits
    python -m simclr_jax.evals --workdir=runs/dinov2_digits

Variants, after a colon: steps=2000, crops=4.

Data, net and views are those of simclr_digits.py. The net is a small ViT; four small crops beside them. Ours, not
published.

Hardware  2 CPU cores, some minutes.
Expected  ours: not yet run at full length.
"""
from configs.common import recipes
from configs.common.digits import digits
from simclr_jax.config import variant


def get_config(arg=""):
    v = variant(arg, steps=2000, crops=4)
    config = digits(v.steps)
    head = dict(name="mlp", layers=3, hidden=256, out=64, hidden_bn=False, last_bn=False, activation="gelu", std=0.02)
    config.method = dict(name="dinov2", prototypes=1024, momentum=0.99)
    config.nets.backbone = dict(name="vit", patch=2, image=8, width=64, depth=4, heads=4, mask_token=True, registers=1,
                                layer_scale=1e-1, drop_path=0.1)
    config.nets.projector, config.nets.patch_projector = head, head
    config.augment.views, config.augment.mask = recipes.digits_crops(crops=v.crops), dict(patch=2)
    config.optim.lr, config.optim.clip_norm, config.optim.hold = 0.002, 3.0, (("^(patch_)?last/", 1.0),)
    config.optim.weight_decay, config.optim.weight_decay_final, config.optim.layer_decay = 0.04, 0.2, 0.9
    return config
