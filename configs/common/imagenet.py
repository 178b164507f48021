"""What the recipes on ImageNet share: data, evaluation and checkpoints."""
from simclr_jax.config import base


def imagenet(batch: int, epochs: float, views: tuple, eval: tuple):
    """A config that lacks a method, nets and an optimiser."""
    config = base()
    config.batch, config.epochs = batch, epochs
    config.data = dict(name="tfds", dataset="imagenet2012", split="train")
    config.augment = dict(views=views, eval=eval, where="device")
    config.checkpoint = dict(every=1000, keep=3, keep_every=50000)
    config.evals = dict(test="validation")
    return config


def resnet50(dtype: str = "bfloat16", **more) -> dict:
    """PyTorch's ResNet-50, with a last scale of 0 in each block."""
    return dict(name="resnet", depth=50, layout="torch", dtype=dtype, **more)
