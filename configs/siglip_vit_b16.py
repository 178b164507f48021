"""SigLIP with ViT-B/16 on image-text shards.

    python -m simclr_jax.train --config=configs/siglip_vit_b16.py --config.data.root='DIR/{00000..41407}.tar' \
        --config.text.path=c4_en.model --workdir=gs://BUCKET/siglip
    python -m simclr_jax.train --config=configs/siglip_vit_b16.py:batch=16384,res=256 ...

Variants, after a colon: batch=32768, res=224, seen=3e9 (examples, over all epochs), lr=0.001, size=B, length=64,
dtype=bfloat16, remat=false, scan=false (layers as a loop: compile time that does not grow with depth).

Recipe: Zhai et al. 2023, arXiv:2303.15343: sigmoid loss with t' = log 10 and b = -10 at first, section 3.3's ring over
devices, Adam with b2 .95 against spikes, rate .001, decay 1e-4 of kernels; images squeezed to a square, MAP-pooled; a
SentencePiece vocabulary of 32,000, texts bidirectional, pooled at the last token. No config of a run from scratch is
public: warm-up (2% of the run), `seen` and the gradient norm of 1 (big_vision's siglip_lit_coco.py) are our choice.

Hardware  16 to 32 TPU v4 chips for 2 to 5 days (paper, table 1: 32 chips, batch 32k).
Expected  zero-shot ImageNet 71.0 (batch 16k, 16 chips, 3 days), 72.1 (32k, 32 chips, 2 days) and 73.4 (5 days), with a
          public image tower to start from, unlocked (paper, table 1). Not run by us.
"""
from configs.common import recipes
from simclr_jax.config import base, variant


def get_config(arg=""):
    v = variant(arg, batch=32768, res=224, seen=3e9, lr=1e-3, size="B", length=64, dtype="bfloat16", remat=False,
                scan=False)
    width, depth, heads = {"B": (768, 12, 12), "L": (1024, 24, 16), "So400m": (1152, 27, 16)}[v.size]
    config = base()
    config.batch, config.steps, config.remat = v.batch, int(v.seen // v.batch), v.remat
    config.method = dict(name="siglip", scale=10.0, bias=-10.0)
    both = dict(gelu="tanh", eps=1e-6, dtype=v.dtype, scan=v.scan)
    config.nets = dict(
        image=dict(name="vit", size=v.size, patch=16, image=v.res, pool="map", class_token=False, **both),
        text=dict(name="text", width=width, depth=depth, heads=heads, causal=False, pool="last", out=width,
                  out_bias=True, init="vit", **both),
    )
    config.data = dict(name="webdataset", root="")
    config.text = dict(name="sentencepiece", path="", length=v.length)
    config.augment = dict(views=recipes.siglip(v.res), eval=recipes.siglip_eval(v.res))
    config.optim = dict(name="adamw", lr=v.lr, scaling="none", warmup_steps=config.steps // 50, weight_decay=1e-4,
                        b1=0.9, b2=0.95, clip_norm=1.0, decay=(("kernel$", 1.0), (".*", 0.0)))
    config.checkpoint = dict(every=1000, keep=2)
    config.evals = dict(every=0, run=("retrieval",), best="", templates="openai")
    return config
