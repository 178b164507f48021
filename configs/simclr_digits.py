"""placeholder until tuned"""
from configs.common import recipes
from simclr_jax.config import base


def get_config():
    config = base()
    config.batch, config.steps = 256, 60
    config.method = dict(name="simclr", temperature=0.2)
    config.nets = dict(backbone=dict(name="convnet"), projector=dict(name="mlp"))
    config.data = dict(name="digits")
    config.augment = dict(views=recipes.digits(), eval=recipes.digits_eval())
    config.optim=dict(lr=1.0, warmup_epochs=1.0)
    config.log_every = 20
    config.evals = dict(every=40, best="knn")
    return config
