"""DINO on scikit-learn's 8x8 handwritten digits.

    python -m simclr_jax.train --config=configs/dino_digits.py --workdir=runs/dino_digits
    python -m simclr_jax.evals --workdir=runs/dino_digits

Variants, after a colon: steps=2000, crops=4, net=convnet (vit).

Data, net and views are those of simclr_digits.py. Four small crops beside them. The head normalises its hidden layers
(main_dino.py's use_bn_in_head): without, the small ViT's outputs are too alike to begin with and stay at their plateau.
Ours, not published.

Hardware  2 CPU cores, some minutes.
Expected  see docs/results.md, every method (ours).
"""
from configs.common import recipes
from configs.common.digits import digits
from simclr_jax.config import variant
from simclr_jax.errors import UsageError


def get_config(arg=""):
    v = variant(arg, steps=2000, crops=4, net="convnet")
    if v.net not in ("convnet", "vit"):
        raise UsageError(f"net={v.net!r}, wanted convnet or vit")
    config = digits(v.steps)
    config.method = dict(name="dino", prototypes=256, momentum=0.99)
    if v.net == "vit":
        config.nets.backbone = dict(name="vit", patch=2, image=8, width=64, depth=2, heads=4)
    config.nets.projector = dict(name="mlp", layers=3, hidden=256, out=64, last_bn=False, activation="gelu", std=0.0)
    config.augment.views = recipes.digits_crops(crops=v.crops)
    config.optim.lr, config.optim.clip_each, config.optim.hold = 0.002, 3.0, (("^last/", 1.0),)
    config.optim.weight_decay, config.optim.weight_decay_final = 0.04, 0.4
    return config
