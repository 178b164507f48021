"""CLIP with ViT-B/32 on image-text shards.

    python -m simclr_jax.train --config=configs/clip_vit_b32.py --config.data.root='DIR/{00000..41407}.tar' \
        --config.text.path=bpe_simple_vocab_16e6.txt.gz --workdir=gs://BUCKET/b32
    python -m simclr_jax.evals --workdir=gs://BUCKET/b32 --evals=zero_shot --data=tfds:dataset=imagenet2012 \
        --split=validation --classes=imagenet_names.txt --templates=openai

Variants, after a colon: batch=32768, res=224, epochs=32, lr=0.0005, patch=32, gelu=quick (erf for open_clip's retrained
nets), dtype=bfloat16, remat=false (true: activations are made again, for a larger batch a chip).

Recipe: Radford et al. 2021, arXiv:2103.00020, appendix, and open_clip's (src/open_clip_train/params.py): AdamW 5e-4,
betas .9 and .98, eps 1e-6, decay .2 but of scales, biases and the temperature, 2,000 steps of warm-up, cosine to 0, 32
epochs; temperature .07 at first and 1/T at most 100. Steps here: warm-up counts step / 2000, open_clip's (step + 1) /
warm-up.

Hardware  128 A100 for 36 hours on LAION-400M (paper: open_clip); any number of devices, and `--config.microbatches=N`
          on few.
Expected  zero-shot ImageNet 63.3 (paper: OpenAI's weights, open_clip docs/openclip_results.csv), 62.9 (open_clip on
          LAION-400M, the same file). Not run by us.
"""
from configs.common import recipes
from simclr_jax.config import base, variant


def get_config(arg=""):
    v = variant(arg, batch=32768, res=224, epochs=32.0, lr=5e-4, patch=32, gelu="quick", dtype="bfloat16", remat=False)
    config = base()
    config.batch, config.epochs, config.remat = v.batch, v.epochs, v.remat
    config.method = dict(name="clip", temperature=0.07)
    both = dict(gelu=v.gelu, eps=1e-5, out=512, init="clip", dtype=v.dtype)
    config.nets = dict(
        image=dict(name="vit", size="B", patch=v.patch, image=v.res, pool="cls", pre_norm=True,
                   patch_bias=False, **both),
        text=dict(name="text", width=512, depth=12, heads=8, causal=True, pool="eot", **both),
    )
    config.data = dict(name="webdataset", root="")
    config.text = dict(name="clip", path="", length=77)
    config.augment = dict(views=recipes.clip(v.res), eval=recipes.clip_eval(v.res))
    config.optim = dict(name="adamw", lr=v.lr, scaling="none", warmup_steps=2000, weight_decay=0.2, b1=0.9, b2=0.98,
                        eps=1e-6, bounds=(("logit_scale$", 0.0, 4.6052),))
    config.checkpoint = dict(every=1000, keep=2)
    config.evals = dict(every=0, run=("retrieval",), best="", templates="openai")
    return config
