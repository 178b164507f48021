"""SwAV on CIFAR-10 (TFDS), ResNet-18 with the CIFAR stem.

    python -m simclr_jax.train --config=configs/swav_cifar10.py --workdir=runs/swav_c10
    python -m simclr_jax.evals --workdir=runs/swav_c10 --evals=knn,linear

Variants, after a colon: batch=256, epochs=1000, crops=4, queue=3840.

Head, prototypes and queue of the paper; crops of 16 beside the views of SimCLR on CIFAR. Ours, not published.

Hardware  one GPU or TPU core for 1000 epochs.
Expected  linear probe after 1000 epochs of solo-learn's recipe, which differs: 89.17 (solo-learn README.md). Ours: not
          yet run.
"""
from configs.common import recipes
from configs.common.cifar import cifar10
from simclr_jax.config import variant


def get_config(arg=""):
    v = variant(arg, batch=256, epochs=1000.0, crops=4, queue=3840)
    config = cifar10(v.batch, v.epochs)
    config.method = dict(name="swav", prototypes=3000, queue=v.queue)
    config.nets.projector = dict(name="mlp", layers=2, hidden=2048, out=128, last_bn=False, std=0.0)
    config.augment.views = recipes.cifar_crops(crops=v.crops)
    config.optim.hold, config.optim.unit = (("^prototypes$", 1.0),), ("^prototypes$",)
    return config
