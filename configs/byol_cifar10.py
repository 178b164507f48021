"""BYOL on CIFAR-10 (TFDS), ResNet-18 with the CIFAR stem.

    python -m simclr_jax.train --config=configs/byol_cifar10.py --workdir=runs/byol_c10
    python -m simclr_jax.evals --workdir=runs/byol_c10 --evals=knn,linear

Variants, after a colon: batch=256, epochs=1000.

Heads of the paper (4096-256); the views of SimCLR on CIFAR; SGD at 0.06 by 256 rows. Ours, not published.

Hardware  one GPU or TPU core for 1000 epochs.
Expected  linear probe after 1000 epochs of solo-learn's recipe, which differs: 92.58 (solo-learn README.md). Ours: not
          yet run.
"""
from configs.common.cifar import cifar10
from simclr_jax.config import variant


def get_config(arg=""):
    v = variant(arg, batch=256, epochs=1000.0)
    config = cifar10(v.batch, v.epochs)
    config.method = dict(name="byol", momentum=0.99)
    config.nets.projector = dict(name="mlp", layers=2, hidden=4096, out=256, last_bn=False, last_bias=False, std=0.0)
    config.nets.predictor = dict(name="mlp", layers=2, hidden=4096, out=256, last_bn=False, last_bias=False, std=0.0)
    return config
