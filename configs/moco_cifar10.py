"""MoCo v1 and v2 on CIFAR-10 (TFDS), ResNet-18 with the CIFAR stem.

    python -m simclr_jax.train --config=configs/moco_cifar10.py --workdir=runs/moco_c10
    python -m simclr_jax.evals --workdir=runs/moco_c10 --evals=knn,linear

Variants, after a colon: batch=256, epochs=1000, queue=32768.

Head and temperature of MoCo v2; the views of SimCLR on CIFAR; batch statistics of all rows. Ours, not published.

Hardware  one GPU or TPU core for 1000 epochs.
Expected  linear probe after 1000 epochs of solo-learn's recipe, which differs: 92.94, MoCo v2+ (solo-learn README.md).
          Ours: not yet run.
"""
from configs.common.cifar import cifar10
from simclr_jax.config import variant


def get_config(arg=""):
    v = variant(arg, batch=256, epochs=1000.0, queue=32768)
    config = cifar10(v.batch, v.epochs)
    config.method = dict(name="moco", queue=v.queue, momentum=0.99, temperature=0.2)
    config.nets.projector = dict(name="mlp", layers=2, out=256, hidden_bn=False, last_bn=False, std=0.0)
    return config
