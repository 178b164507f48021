"""SimCLR on your own pictures: a flat folder without labels, or one with a sub-folder a class.

    python -m simclr_jax.train --config=configs/simclr_folder.py --config.data.root=DIR --workdir=runs/mine
    python -m simclr_jax.evals --workdir=runs/mine --evals=knn,linear     # where there are classes

Variants, after a colon: size=64 (side of the views), batch=256, epochs=100, depth=18, width=0.5, lr=0.5.
The defaults suit a laptop and some thousand pictures. With a GPU: `:size=224,depth=50,width=1,batch=512`.

Recipe: SimCLR's augmentation at half the jitter (blur from 64 pixels on), LARS scaled linearly, T 0.2, 2-layer head, as
SimCLR's authors advise for small batches (google-research/simclr, thread 166: T 0.2).

Hardware  2 CPU cores upwards.
Expected  depends on the pictures; see docs/results.md for runs of ours on CIFAR-10 as folders.
"""
from configs.common import recipes
from simclr_jax.config import base, variant


def get_config(arg=""):
    v = variant(arg, size=64, batch=256, epochs=100.0, depth=18, width=0.5, lr=0.5, temperature=0.2)
    config = base()
    config.batch, config.epochs = v.batch, v.epochs
    config.method = dict(name="simclr", temperature=v.temperature)
    config.nets = dict(
        backbone=dict(name="resnet", depth=v.depth, width=v.width, stem="cifar" if v.size < 64 else "imagenet"),
        projector=dict(name="mlp", layers=2, out=128),
    )
    config.data = dict(name="folder", root="", split="train")
    views = recipes.simclr_cifar(v.size) if v.size < 64 else recipes.simclr(v.size, strength=0.5)
    config.augment = dict(views=views, eval=recipes.simclr_cifar_eval(v.size) if v.size < 64 else recipes.simclr_eval(v.size))
    config.optim = dict(name="lars_simclr", lr=v.lr, scaling="linear", warmup_epochs=10.0, weight_decay=1e-6)
    config.checkpoint = dict(every=500, keep=2)
    return config
