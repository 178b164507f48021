"""SimSiam on scikit-learn's 8x8 handwritten digits.

    python -m simclr_jax.train --config=configs/simsiam_digits.py --workdir=runs/simsiam_digits
    python -m simclr_jax.evals --workdir=runs/simsiam_digits

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
    config.method = dict(name="simsiam")
    config.nets.projector = dict(name="mlp", layers=3, hidden=128, out=128, last_scale=False, std=0.0)
    config.nets.predictor = dict(name="mlp", layers=2, hidden=32, out=128, last_bn=False, std=0.0)
    config.optim.steady = ("^predictor/",)
    return config
