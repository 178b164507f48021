"""SimCLR on ImageNet (TFDS imagenet2012), ResNet-50.

    python -m simclr_jax.train --config=configs/simclr_imagenet.py:batch=4096,epochs=100 --workdir=gs://BUCKET/r50
    python -m simclr_jax.train --config=configs/simclr_imagenet.py:batch=8192,width=2,epochs=800 --workdir=...
    python -m simclr_jax.train --config=configs/simclr_imagenet.py:recipe=released,batch=4096 --workdir=...

Variants, after a colon: batch=256..8192, epochs=100..1000, depth=50, width=1 (2, 4), scaling=linear|sqrt,
recipe=paper|released, dtype=bfloat16|float32.

recipe=paper     LARS 0.3 linear or 0.075 sqrt, weight decay 1e-6, T 0.1, 2-layer head, loss: mean over 2N rows.
recipe=released  what google-research/simclr's code does by default: LARS 0.075 sqrt, weight decay 1e-4 (its TF1 flag;
                 the TF2 flag says 1e-6), 3-layer head, twice the paper's loss. (Its online linear head is left out: it
                 does not touch the encoder.)

Hardware  batch 4096, 100 epochs: about 6 h on 32 TPU v3 cores (paper's code: simclr README.md). Ours: not yet run.
Expected  linear evaluation, top-1, ResNet-50 1x, linear / sqrt scaling (paper: arXiv:2002.05709, table B.1). Ours: not
          yet run.

          batch    100 epochs     200            400            800
          256      57.5 / 62.8    61.9 / 64.3    64.7 / 65.7    66.6 / 66.5
          512      60.7 / 63.8    64.0 / 65.6    66.2 / 66.7    67.8 / 67.4
          1024     62.8 / 64.3    65.3 / 66.1    67.2 / 67.2    68.5 / 68.3
          2048     64.0 / 64.7    66.1 / 66.8    68.1 / 67.9    68.9 / 68.8
          4096     64.6 / 64.5    66.5 / 66.8    68.2 / 68.0    68.9 / 69.1
          8192     64.8 / 64.8    66.6 / 67.0    67.8 / 68.3    69.0 / 69.1

          1000 epochs at batch 4096, width 1 / 2 / 4: 69.3 / 74.2 / 76.5 (paper).
"""
from configs.common import recipes
from simclr_jax.config import base, variant
from simclr_jax.errors import UsageError


def get_config(arg=""):
    v = variant(arg, batch=4096, epochs=100.0, depth=50, width=1.0, scaling="", recipe="paper", dtype="bfloat16",
                size=224)
    if v.recipe not in ("paper", "released"):
        raise UsageError(f"recipe={v.recipe!r}, wanted 'paper' or 'released'")
    released = v.recipe == "released"
    scaling = v.scaling or ("sqrt" if released or v.batch < 2048 else "linear")
    config = base()
    config.batch, config.epochs = v.batch, v.epochs
    config.method = dict(name="simclr", temperature=0.1, loss_scale=2.0 if released else 1.0)
    config.nets = dict(
        backbone=dict(name="resnet", depth=v.depth, width=v.width, stem="imagenet", dtype=v.dtype),
        projector=dict(name="mlp", layers=3 if released else 2, out=128, dtype=v.dtype),
    )
    config.data = dict(name="tfds", dataset="imagenet2012", split="train")
    config.augment = dict(views=recipes.simclr(v.size), eval=recipes.simclr_eval(v.size), where="device")
    config.optim = dict(name="lars_simclr", lr=0.3 if scaling == "linear" else 0.075, scaling=scaling,
                        warmup_epochs=10.0, weight_decay=1e-4 if released else 1e-6)
    config.checkpoint = dict(every=1000, keep=3, keep_every=50000)
    config.evals = dict(test="validation")
    return config
