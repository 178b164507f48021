"""SimCLR on CIFAR-10 (TFDS), ResNet-18 with the CIFAR stem.

    python -m simclr_jax.train --config=configs/simclr_cifar10.py --workdir=runs/c10
    python -m simclr_jax.evals --workdir=runs/c10 --evals=knn,linear

Variants, after a colon: batch=512, epochs=1000, depth=18, width=1, temperature=0.5, lr=1.0.

Recipe: google-research/simclr README.md: batch 512, 1000 epochs, LARS at 1.0 scaled linearly (so 2.0), weight decay
1e-4, T 0.5, jitter 0.5, no blur, 2-layer head, 3x3 stride-1 stem without max-pool.

Hardware  one GPU or TPU core for 1000 epochs; a laptop runs it too, slowly: see docs/results.md for what hours bring.
Expected  about 91 linear for 1000 epochs (paper: google-research/simclr README.md). Ours: not yet run at full length.
"""
from configs.common import recipes
from simclr_jax.config import base, variant


def get_config(arg=""):
    v = variant(arg, batch=512, epochs=1000.0, depth=18, width=1.0, temperature=0.5, lr=1.0)
    config = base()
    config.batch, config.epochs = v.batch, v.epochs
    config.method = dict(name="simclr", temperature=v.temperature)
    config.nets = dict(
        backbone=dict(name="resnet", depth=v.depth, width=v.width, stem="cifar"),
        projector=dict(name="mlp", layers=2, out=128),
    )
    config.data = dict(name="tfds", dataset="cifar10", split="train")
    config.augment = dict(views=recipes.simclr_cifar(), eval=recipes.simclr_cifar_eval(), where="device")
    config.optim = dict(name="lars_simclr", lr=v.lr, scaling="linear", warmup_epochs=10.0, weight_decay=1e-4)
    config.checkpoint = dict(every=1000, keep=2)
    config.evals = dict(every=5000, run=("knn",), best="knn")
    return config
