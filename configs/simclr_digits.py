"""SimCLR on scikit-learn's 8x8 handwritten digits, which come with the package: the demo.

    make demo
    python -m simclr_jax.train --config=configs/simclr_digits.py --workdir=runs/digits
    python -m simclr_jax.evals --workdir=runs/digits

1,297 training and 500 test images, a stratified split by seed 0; pretraining sees no label and no test image. Ours, not
published: net, augmentation, temperature and rate were chosen on a stratified fifth of the training images.

Hardware  2 CPU cores, under 3 minutes for training and evaluation.
Expected  linear probe at 5 labels a class, on the test images: see docs/results.md (ours).
"""
from configs.common import recipes
from simclr_jax.config import base


def get_config():
    config = base()
    config.batch, config.steps = 256, 2000
    config.method = dict(name="simclr", temperature=0.4)
    config.nets = dict(
        backbone=dict(name="convnet", channels=(32, 64, 128)),
        projector=dict(name="mlp", layers=2, out=64),
    )
    config.data = dict(name="digits", split="train")
    config.augment = dict(views=recipes.digits(), eval=recipes.digits_eval(), where="device")
    config.optim = dict(name="adamw", lr=0.01, scaling="none", warmup_epochs=20.0, weight_decay=1e-4)
    config.log_every = 200
    config.checkpoint = dict(every=500, keep=2)
    config.evals = dict(every=1000, run=("knn",), best="knn")
    return config
