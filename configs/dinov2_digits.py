"""DINOv2 on scikit-learn's 8x8 handwritten digits.

    python -m simclr_jax.train --config=configs/dinov2_digits.py --workdir=runs/dinov2_digits
    python -m simclr_jax.evals --workdir=runs/dinov2_digits

Variants, after a colon: steps=2000, crops=2.

Data, net and views are those of simclr_digits.py. The net is a small ViT; two small crops beside them. Heads
normalise as in dino_digits.py; iBOT and KoLeo weigh a tenth of the paper's, as at full weight they keep so small a net
at the plateau of DINO's loss for its first hundreds of steps. Chosen on a stratified fifth of the training images. Ours,
not published.

Hardware  2 CPU cores, some minutes.
Expected  see docs/results.md, every method (ours).
"""
from configs.common import recipes
from configs.common.digits import digits
from simclr_jax.config import variant


def get_config(arg=""):
    v = variant(arg, steps=2000, crops=2)
    config = digits(v.steps)
    head = dict(name="mlp", layers=3, hidden=256, out=64, last_bn=False, activation="gelu", std=0.0)
    config.method = dict(name="dinov2", prototypes=256, momentum=0.99, koleo_weight=0.01, patch_weight=0.1)
    config.nets.backbone = dict(name="vit", patch=2, image=8, width=64, depth=2, heads=4, mask_token=True, registers=1)
    config.nets.projector, config.nets.patch_projector = head, head
    config.augment.views, config.augment.mask = recipes.digits_crops(crops=v.crops), dict(patch=2)
    config.optim.lr, config.optim.clip_norm, config.optim.hold = 0.002, 3.0, (("^(patch_)?last/", 1.0),)
    config.optim.weight_decay, config.optim.weight_decay_final = 0.04, 0.2
    return config
