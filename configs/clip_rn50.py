"""CLIP with its modified ResNet-50 on image-text shards.

    python -m simclr_jax.train --config=configs/clip_rn50.py --config.data.root='DIR/{00000..41407}.tar' \
        --config.text.path=bpe_simple_vocab_16e6.txt.gz --workdir=gs://BUCKET/rn50

Variants, after a colon: batch=32768, res=224, epochs=32, lr=0.0005, gelu=quick, dtype=bfloat16, remat=false (as in
configs/clip_vit_b32.py).

Recipe: as configs/clip_vit_b32.py, but AdamW's betas .9 and .999 and eps 1e-8 for ResNets (Radford et al. 2021,
appendix; open_clip params.py). Batch statistics are over all devices; the original's are a device's
(`--config.nets.image.bn=local`).

Hardware  592 V100 for 18 days is the paper's largest, an RN50x64; RN50 on any number of devices.
Expected  zero-shot ImageNet 59.8 (paper: OpenAI's weights, open_clip docs/openclip_results.csv). Not run by us.
"""
from configs.common import recipes
from simclr_jax.config import base, variant


def get_config(arg=""):
    v = variant(arg, batch=32768, res=224, epochs=32.0, lr=5e-4, gelu="quick", dtype="bfloat16", remat=False)
    config = base()
    config.batch, config.epochs, config.remat = v.batch, v.epochs, v.remat
    config.method = dict(name="clip", temperature=0.07)
    config.nets = dict(
        image=dict(name="modified_resnet", layers=(3, 4, 6, 3), width=64, heads=32, out=1024, image=v.res,
                   dtype=v.dtype),
        text=dict(name="text", width=512, depth=12, heads=8, causal=True, pool="eot", gelu=v.gelu, eps=1e-5, out=1024,
                  init="clip", dtype=v.dtype),
    )
    config.data = dict(name="webdataset", root="")
    config.text = dict(name="clip", path="", length=77)
    config.augment = dict(views=recipes.clip(v.res), eval=recipes.clip_eval(v.res))
    config.optim = dict(name="adamw", lr=v.lr, scaling="none", warmup_steps=2000, weight_decay=0.2, b1=0.9, b2=0.999,
                        eps=1e-8, bounds=(("logit_scale$", 0.0, 4.6052),))
    config.checkpoint = dict(every=1000, keep=2)
    config.evals = dict(every=0, run=("retrieval",), best="", templates="openai")
    return config
