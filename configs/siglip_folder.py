"""SigLIP, or CLIP, from scratch on your own captioned pictures: a folder with captions.csv or captions.jsonl.

    python -m simclr_jax.train --config=configs/siglip_folder.py --config.data.root=DIR --workdir=runs/mine
    python -m simclr_jax.evals --workdir=runs/mine
    python -m simclr_jax.evals --workdir=runs/mine --search="a red car"

Variants, after a colon: loss=siglip (clip), size=64 (side of the images), patch=8, width=192, depth=6, batch=256,
epochs=100, lr=0.001, length=32, words=4096 (most entries of the vocabulary, which is trained on the captions), drop=0.1
(drop path). The defaults suit a laptop and some thousand pictures. With a GPU:
`:size=224,patch=16,width=384,depth=12,batch=1024`.

Ours: small ViT and text transformer. SigLIP's bias starts at -log(batch), where the B - 1 texts that are not an image's
own weigh as much as its own; the paper's -10 suits batches of tens of thousands.

Hardware  2 CPU cores upwards.
Expected  depends on the pictures; see docs/results.md for runs of ours on emoji and on 900 photos.
"""
import math

from configs.common import recipes
from simclr_jax.config import base, variant
from simclr_jax.errors import UsageError


def get_config(arg=""):
    v = variant(arg, loss="siglip", size=64, patch=8, width=192, depth=6, batch=256, epochs=100.0, lr=1e-3, length=32,
                words=4096, drop=0.1, crop=0.5)
    methods = {"siglip": dict(name="siglip", scale=10.0, bias=-math.log(v.batch)), "clip": dict(name="clip")}
    if v.loss not in methods:
        raise UsageError(f"loss={v.loss!r}, wanted siglip or clip")
    heads = max(1, v.width // 64)
    both = dict(width=v.width, depth=v.depth, heads=heads, out=v.width, drop_path=v.drop)
    config = base()
    config.batch, config.epochs = v.batch, v.epochs
    config.method = methods[v.loss]
    config.nets = dict(
        image=dict(name="vit", patch=v.patch, image=v.size, pool="mean", class_token=False, **both),
        text=dict(name="text", causal=False, pool="eot", **both),
    )
    config.data = dict(name="folder", root="", split="train")
    config.text = dict(name="bpe", size=v.words, length=v.length)
    config.augment = dict(views=recipes.clip(v.size, lowest=v.crop), eval=recipes.clip_eval(v.size))
    config.optim = dict(name="adamw", lr=v.lr, scaling="none", warmup_epochs=5.0, weight_decay=0.1, b2=0.98,
                        clip_norm=1.0, bounds=(("logit_scale$", 0.0, 4.6052),))
    config.checkpoint = dict(every=500, keep=2)
    config.evals = dict(every=0, run=("retrieval",), best="")
    return config
