"""SimSiam on CIFAR-10 (TFDS), ResNet-18 with the CIFAR stem.

    python -m simclr_jax.train --config=configs/simsiam_cifar10.py --workdir=runs/simsiam_c10
    python -m simclr_jax.evals --workdir=runs/simsiam_c10 --evals=knn,linear

Variants, after a colon: batch=512, epochs=800.

A projector of two layers, SGD at 0.03 by 256 rows without warm-up, the predictor's rate constant. Ours, not published.

Hardware  one GPU or TPU core for 1000 epochs.
Expected  linear probe after 1000 epochs of solo-learn's recipe, which differs: 90.51 (solo-learn README.md). Ours: not
          yet run.
"""
from configs.common.cifar import cifar10
from simclr_jax.config import variant


def get_config(arg=""):
    v = variant(arg, batch=512, epochs=800.0)
    config = cifar10(v.batch, v.epochs)
    config.method = dict(name="simsiam")
    config.nets.projector = dict(name="mlp", layers=2, hidden=2048, out=2048, last_scale=False, std=0.0)
    config.nets.predictor = dict(name="mlp", layers=2, hidden=512, out=2048, last_bn=False, std=0.0)
    config.optim.lr, config.optim.warmup_epochs, config.optim.steady = 0.03, 0.0, ("^predictor/",)
    return config
