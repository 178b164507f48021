"""SwAV on scikit-learn's 8x8 handwritten digits.

    python -m simclr_jax.train --config=configs/swav_digits.py --workdir=runs/swav_digits
    python -m simclr_jax.evals --workdir=runs/swav_digits

Variants, after a colon: steps=2000, crops=4.

Data, net and views are those of simclr_digits.py. Four small crops beside them. Ours, not published.

Hardware  2 CPU cores, some minutes.
Expected  see docs/results.md, every method (ours).
"""
from configs.common import recipes
from configs.common.digits import digits
from simclr_jax.config import variant


def get_config(arg=""):
    v = variant(arg, steps=2000, crops=4)
    config = digits(v.steps)
    config.method = dict(name="swav", prototypes=100)
    config.nets.projector = dict(name="mlp", layers=2, out=64, last_bn=False, std=0.0)
    config.augment.views = recipes.digits_crops(crops=v.crops)
    config.optim.hold, config.optim.unit = (("^prototypes$", 1.0),), ("^prototypes$",)
    return config
