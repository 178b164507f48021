"""SimCLR on your own pictures: a flat folder without labels, or one with a sub-folder a class.

    python -m simclr_jax.train --config=configs/simclr_folder.py --config.data.root=DIR --workdir=runs/mine
    python -m simclr_jax.evals --workdir=runs/mine --evals=knn,linear     # where there are classes

Variants, after a colon: size=64 (side of the views), net=resnet18 (resnet34, resnet50, ..., or convnet: small and
quick, for a laptop and images of 32), width=0.5, batch=256, epochs=100, lr=0.5, temperature=0.2.
The defaults suit a laptop and some thousand pictures. With a GPU: `:size=224,net=resnet50,width=1,batch=512`.

Recipe: SimCLR's augmentation at half the jitter (blur from 64 pixels on), LARS scaled linearly, T 0.2, 2-layer head, as
SimCLR's authors advise for small batches (google-research/simclr, thread 166: T 0.2).

Hardware  2 CPU cores upwards.
Expected  depends on the pictures; see docs/results.md for runs of ours on CIFAR-10 as folders.
"""
from configs.common import recipes
from simclr_jax.config import base, variant
from simclr_jax.errors import UsageError


def get_config(arg=""):
    v = variant(arg, size=64, net="resnet18", width=0.5, batch=256, epochs=100.0, lr=0.5, temperature=0.2)
    small = v.size < 64
    if v.net == "convnet":
        backbone = dict(name="convnet", channels=tuple(int(c * v.width) for c in (64, 128, 256)))
    elif v.net.removeprefix("resnet").isdigit():
        backbone = dict(name="resnet", depth=int(v.net.removeprefix("resnet")), width=v.width,
                        stem="cifar" if small else "imagenet")
    else:
        raise UsageError(f"net={v.net!r}, wanted resnet18, resnet34, resnet50, resnet101, resnet152 or convnet")
    config = base()
    config.batch, config.epochs = v.batch, v.epochs
    config.method = dict(name="simclr", temperature=v.temperature)
    config.nets = dict(backbone=backbone, projector=dict(name="mlp", layers=2, out=128))
    config.data = dict(name="folder", root="", split="train")
    config.augment = dict(views=recipes.simclr_cifar(v.size) if small else recipes.simclr(v.size, strength=0.5),
                          eval=recipes.simclr_cifar_eval(v.size) if small else recipes.simclr_eval(v.size))
    config.optim = dict(name="lars_simclr", lr=v.lr, scaling="linear", warmup_epochs=10.0, weight_decay=1e-6)
    config.checkpoint = dict(every=500, keep=2)
    return config
