"""CLIP or SigLIP on scikit-learn's 8x8 handwritten digits with sentences about them: `make demo-clip`.

    make demo-clip
    python -m simclr_jax.train --config=configs/clip_digits.py:loss=siglip --workdir=runs/siglip_digits
    python -m simclr_jax.evals --workdir=runs/siglip_digits

Variants, after a colon: loss=clip (siglip), steps=300.

1,297 training and 500 test images, each with several sentences that name the digit and what is measured of its strokes
(data/sources/digits.py). Ours, not published. The tokenizer is trained on the sentences.

Hardware  2 CPU cores, under 2 minutes a loss for training and evaluation.
Expected  zero-shot accuracy on the test images, and retrieval: see docs/results.md (ours).
"""
from configs.common import recipes
from simclr_jax.config import base, variant
from simclr_jax.errors import UsageError


def get_config(arg=""):
    v = variant(arg, loss="clip", steps=300)
    if v.loss not in ("clip", "siglip"):
        raise UsageError(f"loss={v.loss!r}, wanted clip or siglip")
    config = base()
    config.batch, config.steps = 256, v.steps
    config.method = dict(name=v.loss)
    config.nets = dict(
        image=dict(name="convnet", channels=(32, 64, 128)),
        text=dict(name="text", width=64, depth=2, heads=4, out=128),
    )
    config.data = dict(name="digits", split="train", captions=True)
    config.text = dict(name="bpe", size=512, length=24)
    config.augment = dict(views=recipes.digits_pairs(), eval=recipes.digits_eval(), where="device")
    config.optim = dict(name="adamw", lr=0.003, scaling="none", warmup_epochs=10.0, weight_decay=0.01, b2=0.98,
                        clip_norm=1.0, bounds=(("logit_scale$", 0.0, 4.6052),))
    config.log_every = 50
    config.checkpoint = dict(every=150, keep=2)
    config.evals = dict(every=150, run=("zero_shot", "retrieval"), best="", templates="the digit {};a handwritten {}")
    return config
