"""SimSiam on ImageNet (TFDS imagenet2012), ResNet-50.

    python -m simclr_jax.train --config=configs/simsiam_imagenet.py --workdir=gs://BUCKET/simsiam

Variants, after a colon: epochs=100, batch=512, dtype=bfloat16|float32.

Recipe: facebookresearch/simsiam main_simsiam.py: SGD at 0.05 by 256 rows, momentum 0.9, weight decay 1e-4 on
everything, a cosine to 0 without warm-up, the predictor's rate constant; projector 2048-2048-2048, predictor 512-2048.

Hardware  8 GPUs (paper's code). Ours: not yet run.
Expected  linear evaluation, top-1, 100 epochs: 68.1 at 512 rows, 68.3 at 256 (simsiam README.md). Ours: not yet run.
"""
from configs.common import recipes
from configs.common.imagenet import imagenet, resnet50
from simclr_jax.config import variant


def get_config(arg=""):
    v = variant(arg, epochs=100.0, batch=512, dtype="bfloat16")
    config = imagenet(v.batch, v.epochs, recipes.simsiam(), recipes.torch_eval())
    config.method = dict(name="simsiam")
    config.nets = dict(
        backbone=resnet50(v.dtype),
        projector=dict(name="mlp", layers=3, hidden=2048, out=2048, last_scale=False, std=0.0, dtype=v.dtype),
        predictor=dict(name="mlp", layers=2, hidden=512, out=2048, last_bn=False, std=0.0, dtype=v.dtype),
    )
    config.optim = dict(name="sgd", lr=0.05, scaling="linear", warmup_epochs=0.0, weight_decay=1e-4,
                        decay=((".*", 1.0),), steady=("^predictor/",))
    return config
