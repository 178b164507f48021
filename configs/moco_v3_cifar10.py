"""MoCo v3 on CIFAR-10 (TFDS), ResNet-18 with the CIFAR stem.

    python -m simclr_jax.train --config=configs/moco_v3_cifar10.py --workdir=runs/moco_v3_c10
    python -m simclr_jax.evals --workdir=runs/moco_v3_c10 --evals=knn,linear

Variants, after a colon: batch=256, epochs=1000.

Heads of the paper; the views of SimCLR on CIFAR. Ours, not published.

Hardware  one GPU or TPU core for 1000 epochs.
Expected  linear probe after 1000 epochs of solo-learn's recipe, which differs: 93.10 (solo-learn README.md). Ours: not
          yet run.
"""
from configs.common.cifar import cifar10
from simclr_jax.config import variant


def get_config(arg=""):
    v = variant(arg, batch=256, epochs=1000.0)
    config = cifar10(v.batch, v.epochs)
    config.method = dict(name="moco_v3", temperature=0.2, momentum=0.99)
    config.nets.projector = dict(name="mlp", layers=2, hidden=4096, out=256, last_scale=False, std=0.0)
    config.nets.predictor = dict(name="mlp", layers=2, hidden=4096, out=256, last_bn=False, std=0.0)
    return config
