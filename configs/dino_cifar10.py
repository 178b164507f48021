"""DINO on CIFAR-10 (TFDS), ResNet-18 with the CIFAR stem.

    python -m simclr_jax.train --config=configs/dino_cifar10.py --workdir=runs/dino_c10
    python -m simclr_jax.evals --workdir=runs/dino_c10 --evals=knn,linear

Variants, after a colon: batch=256, epochs=1000, crops=4.

Head of the paper with 4096 prototypes; crops of 16 beside the views of SimCLR on CIFAR. Ours, not published.

Hardware  one GPU or TPU core for 1000 epochs.
Expected  linear probe after 1000 epochs of solo-learn's recipe, which differs: 89.52 (solo-learn README.md). Ours: not
          yet run.
"""
from configs.common import recipes
from configs.common.cifar import cifar10
from simclr_jax.config import variant


def get_config(arg=""):
    v = variant(arg, batch=256, epochs=1000.0, crops=4)
    config = cifar10(v.batch, v.epochs)
    config.method = dict(name="dino", prototypes=4096, warmup_teacher_epochs=30.0, teacher_temperature=0.07)
    config.nets.projector = dict(name="mlp", layers=3, hidden=2048, out=256, hidden_bn=False, last_bn=False,
                                 activation="gelu", std=0.02)
    config.augment.views = recipes.cifar_crops(crops=v.crops)
    config.optim.clip_each, config.optim.hold = 3.0, (("^last/", 1.0),)
    return config
