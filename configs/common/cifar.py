"""What the recipes on CIFAR-10 share: data, net, views and optimiser. Ours, not published."""
from configs.common import recipes
from simclr_jax.config import base


def cifar10(batch: int, epochs: float):
    """A config that lacks a method and the nets behind the backbone."""
    config = base()
    config.batch, config.epochs = batch, epochs
    config.nets = dict(backbone=dict(name="resnet", depth=18, stem="cifar", layout="torch"))
    config.data = dict(name="tfds", dataset="cifar10", split="train")
    config.augment = dict(views=recipes.simclr_cifar(), eval=recipes.simclr_cifar_eval(), where="device")
    config.optim = dict(name="sgd", lr=0.06, scaling="linear", warmup_epochs=10.0, weight_decay=5e-4, decay=((".*", 1.0),))
    config.checkpoint = dict(every=1000, keep=2)
    config.evals = dict(every=5000, run=("knn",), best="knn")
    return config
