"""MoCo v3 on scikit-learn's 8x8 handwritten digits.

    python -m simclr_jax.train --config=configs/moco_v3_digits.py --workdir=runs/moco_v3_digits
    python -m simclr_jax.evals --workdir=runs/moco_v3_digits

Variants, after a colon: steps=2000.

Data, net and views are those of simclr_digits.py. Ours, not published.

Hardware  2 CPU cores, some minutes.
Expected  see docs/results.md, every method (ours).
"""
from configs.common.digits import digits
from simclr_jax.config import variant


def get_config(arg=""):
    v = variant(arg, steps=2000)
    config = digits(v.steps)
    config.method = dict(name="moco_v3", temperature=0.4, momentum=0.97)
    config.nets.projector = dict(name="mlp", layers=2, hidden=256, out=64, last_scale=False, std=0.0)
    config.nets.predictor = dict(name="mlp", layers=2, hidden=256, out=64, last_bn=False, std=0.0)
    return config
