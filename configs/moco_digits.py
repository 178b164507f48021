"""MoCo v2 on scikit-learn's 8x8 handwritten digits.

    python -m simclr_jax.train --config=configs/moco_digits.py --workdir=runs/moco_digits
    python -m simclr_jax.evals --workdir=runs/moco_digits

Variants, after a colon: steps=2000, batch=256, queue=4096.

Data, net and views are those of simclr_digits.py. By its queue a batch of 64 sees 4,096 negatives as well. Ours, not
published.

Hardware  2 CPU cores, some minutes.
Expected  see docs/results.md, every method (ours).
"""
from configs.common.digits import digits
from simclr_jax.config import variant


def get_config(arg=""):
    v = variant(arg, steps=2000, batch=256, queue=4096)
    config = digits(v.steps)
    config.batch = v.batch
    config.method = dict(name="moco", queue=v.queue, momentum=0.99, temperature=0.2)
    config.nets.projector = dict(name="mlp", layers=2, out=64, hidden_bn=False, last_bn=False, std=0.0)
    return config
