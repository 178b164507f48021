"""DINOv2: DINO on views and crops, iBOT on hidden patches, and KoLeo, which keeps an image from its nearest neighbour.

Oquab et al. 2023, "DINOv2: Learning Robust Visual Features without Supervision", arXiv:2304.07193; Zhou et al. 2022,
"iBOT", arXiv:2111.07832. Details as in facebookresearch/dinov2 train/ssl_meta_arch.py, with Sinkhorn-Knopp in place of a centre.
"""
import jax
import jax.numpy as jnp

from simclr_jax import losses
from simclr_jax.errors import UsageError
from simclr_jax.methods import branches, prototypes as wide
from simclr_jax.types import Method

HEADS = {"projector": "last", "patch_projector": "patch_last"}


def make(nets, *, prototypes: int = 65536, slots: float = 0.5, student_temperature: float = 0.1,
         teacher_temperature: float = 0.07, warmup_teacher_temperature: float = 0.04, warmup_teacher_epochs: float = 30.0,
         momentum: float = 0.992, patch_weight: float = 1.0, koleo_weight: float = 0.1, batch: int, steps: int,
         examples: int) -> Method:
    """DINOv2 as a `Method`. Batch: "views" f32[b,V,H,W,3], "mask" bool[b,V,N], and maybe "crops" f32[b,C,h,w,3].

    Args:
      nets: {"backbone": a ViT with mask_token, "projector", "patch_projector": f32[n,D] -> f32[n,P], the heads of image
        and patch up to their bottlenecks}.
      prototypes: K, width of both last layers, whose rows' lengths are learned ("gain").
      slots: patches of a view that are scored, as a share of its N: those hidden, or the first so many of them. As many as
        config.augment.mask hides at most, so that shapes are fixed and only hidden patches reach the wide layer.
      student_temperature, teacher_temperature, warmup_teacher_temperature, warmup_teacher_epochs, momentum: as in
        methods/dino.py.
      patch_weight, koleo_weight: of iBOT's loss and of KoLeo, which is summed over views.
      batch, steps, examples: of the run.

    params: those of the nets, and "last" and "patch_last" {"direction": f32[K,P], "gain": f32[K]}.
    extra: {"stats", "teacher": {"params", "stats"}}. The teacher sees all patches, drops nothing and starts as a copy; it is
    what `embed` uses.

    Metrics: entropy, kl and accuracy of the images' part (see `losses.dino`); patch_loss, koleo and masked, the share of
    hidden patches; usage, the share of prototypes in use by the student; spread, of the class tokens; chance, log K of
    each part.

    Raises:
      UsageError: a missing net, a value out of range; when traced, no mask, or one that does not fit the patches.
    """
    branches.check_momentum(momentum)
    temperatures = student_temperature, teacher_temperature, warmup_teacher_temperature
    if prototypes < 2 or not 0 < slots <= 1 or min(temperatures) <= 0:
        raise UsageError(f"config.method: prototypes={prototypes}, slots={slots}, student_temperature="
                         f"{student_temperature}, teacher_temperature={teacher_temperature}, warmup_teacher_temperature="
                         f"{warmup_teacher_temperature}: wanted 2 or more, a share above 0, at most 1, and numbers above 0")
    backbone, projector, patch_projector = (branches.chain(nets, (role,), "dinov2") for role in ("backbone", *HEADS))

    def init(key, batch):
        key, *keys = jax.random.split(key, 4)
        x = batch["views"][:, 0]
        params, stats = backbone.init(key, x)
        features = jax.ShapeDtypeStruct((1, branches.width(backbone, params, stats, x)), jnp.float32)
        for (role, last), own, head in zip(HEADS.items(), keys, (projector, patch_projector)):
            p, s = head.init(own, features)
            layer = {"direction": wide.init(jax.random.fold_in(own, 1), prototypes, branches.width(head, p, s, features)),
                     "gain": jnp.ones(prototypes)}
            params, stats = {**params, **p, last: layer}, {**stats, **s}
        return params, {"stats": stats, "teacher": {"params": params, "stats": stats}}

    def forward(params, extra, batch, ctx):
        if "mask" not in batch:
            raise UsageError("dinov2 hides patches from the student; set config.augment.mask, as in dict(patch=16)")
        views, mask, teacher = batch["views"], batch["mask"], extra["teacher"]
        student, seen, stats = branches.multi_crop(backbone, projector, params, extra["stats"], batch, ctx, mask)
        out, teacher_stats = branches.together(backbone, teacher["params"], teacher["stats"], views)
        z, teacher_stats = branches.together(projector, teacher["params"], teacher_stats, out["pooled"])
        place, used = hidden(mask, out["tokens"].shape[2])
        patches, stats = of_patches(params, stats, seen["tokens"], place, mask)
        teacher_patches, teacher_stats = of_patches(teacher["params"], teacher_stats, out["tokens"], place, mask)
        outputs = {"student": student, "teacher": z["pooled"], "patches": patches, "teacher_patches": teacher_patches,
                   "used": used, "class": seen["pooled"], "masked": jnp.mean(mask, axis=(1, 2), dtype=jnp.float32)}
        return outputs, {"stats": stats, "teacher": {**teacher, "stats": teacher_stats}}

    def hidden(mask, tokens):
        """(i32[b,V,M], bool[b,V,M]): the places of the hidden patches, first come first, and which slots hold one."""
        if mask.shape[2] > tokens:
            raise UsageError(f"dinov2: a mask of {mask.shape[2]} patches for {tokens} tokens; config.augment.mask.patch must "
                             "be the backbone's")
        count = max(int(slots * mask.shape[2]), 1)
        place = jnp.argsort(~mask, axis=2, stable=True)[:, :, :count]
        return place, jnp.take_along_axis(mask, place, axis=2)

    def of_patches(params, stats, tokens, place, mask):
        """f32[b,V,M,P]: the patch head on the tokens of the slots, which follow class token and registers."""
        b, v, m = place.shape
        picked = jnp.take_along_axis(tokens[:, :, -mask.shape[2]:], place[..., None], axis=2)
        z, stats = branches.together(patch_projector, params, stats, picked.reshape(b, v * m, -1))
        return z["pooled"].reshape(b, v, m, -1), stats

    def criterion(params, extra, outputs, ctx):
        t = wide.warmed(warmup_teacher_temperature, teacher_temperature, warmup_teacher_epochs, ctx.step, examples, batch)
        last = {name: (wide.normed(params[name]), wide.normed(extra["teacher"]["params"][name])) for name in HEADS.values()}
        student = wide.scores(outputs["student"], last["last"][0])  # [V+C,b,K]
        codes = losses.sinkhorn(wide.scores(outputs["teacher"], last["last"][1]), temperature=t, axis=ctx.axis)
        of_images, metrics = losses.dino(student, codes, student_temperature=student_temperature, teacher_temperature=None,
                                         metrics=True)
        patches, targets, used = (x.reshape(-1, *x.shape[2:]) for x in (
            outputs["patches"], outputs["teacher_patches"], outputs["used"]))  # views of an image as images, [n,M,P]
        patches, targets = (jnp.moveaxis(wide.scores(z, w), 0, 1) for z, w in zip((patches, targets), last["patch_last"]))
        targets = losses.sinkhorn(targets, temperature=t, weights=used, axis=ctx.axis)
        of_patches = losses.ibot(patches, targets, used, student_temperature=student_temperature,
                                 teacher_temperature=None)
        tokens = outputs["class"]
        apart = sum(losses.koleo(tokens[:, v], axis=ctx.axis) for v in range(tokens.shape[1]))
        metrics |= {"patch_loss": of_patches, "koleo": apart, "masked": jnp.mean(outputs["masked"]),
                    "usage": wide.usage(jax.nn.softmax(student / student_temperature), ctx.axis),
                    "spread": losses.spread(tokens[:, 0], axis=ctx.axis), "chance": jnp.log(float(prototypes))}
        return of_images + patch_weight * of_patches + koleo_weight * apart, (extra, metrics)

    def finish(params, extra, ctx):
        teacher, m = extra["teacher"], branches.rising(momentum, ctx.step, steps)
        return {**extra, "teacher": {**teacher, "params": branches.follow(teacher["params"], params, m)}}

    def weights(params, extra):
        return extra["teacher"]["params"], extra["teacher"]["stats"]

    def embed(params, extra, inputs):
        return branches.features(nets, *weights(params, extra), inputs)

    return Method(init, forward, criterion, embed, finish, weights)
