"""A run that compiles in a second: two convolutions, digits flipped."""
from configs import simclr_digits


def get_config():
    config = simclr_digits.get_config()
    view = (("resize", dict(size=8)), ("flip", dict(p=0.5)))
    config.augment = dict(views=(view, view), eval=(("resize", dict(size=8)),), where="device")
    config.nets = dict(backbone=dict(name="convnet", channels=(4,)), projector=dict(name="mlp", layers=1, out=8))
    config.optim = dict(name="sgd", lr=0.01, scaling="none", warmup_epochs=0.1)
    config.batch, config.steps, config.log_every, config.devices = 16, 900, 1, 1
    config.evals, config.checkpoint = dict(every=0, run=("knn",)), dict(every=900)
    config.pictures = config.compile_cache = False
    config.life.heartbeat = 5.0
    return config
