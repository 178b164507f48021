"""What the recipes on scikit-learn's digits share: data, net, views, optimiser and how long. Ours, not published."""
from configs.common import recipes
from simclr_jax.config import base


def digits(steps: int = 2000):
    """A config that lacks a method and the nets behind the backbone."""
    config = base()
    config.batch, config.steps = 256, steps
    config.nets = dict(backbone=dict(name="convnet", channels=(32, 64, 128)), projector=dict())
    config.data = dict(name="digits", split="train")
    config.augment = dict(views=recipes.digits(), eval=recipes.digits_eval(), where="device")
    config.optim = dict(name="adamw", lr=0.01, scaling="none", warmup_epochs=20.0, weight_decay=1e-4)
    config.log_every = 200
    config.checkpoint = dict(every=500, keep=2)
    config.evals = dict(every=1000, run=("knn",), best="knn")
    return config
