"""Two towers, one for images and one for texts, that end in one space: what CLIP and SigLIP share."""
from typing import Callable, NamedTuple

import jax
from jax import lax

from simclr_jax.errors import UsageError
from simclr_jax.types import row_keys

ROLES = "image", "text"


class Towers(NamedTuple):
    init: Callable  # (key, batch) -> ({role: params}, {"stats": {role: stats}})
    forward: Callable  # (params, extra, batch, ctx) -> ({"image": f32[b,D], "text": f32[b,D]}, extra)
    embed: Callable  # (params, extra, {"image": f32[b,H,W,3]} and/or {"text": i32[b,L]}) -> {role: f32[b,D]}


def pair(nets, *, locked, method: str) -> Towers:
    """The towers of a method.

    Args:
      nets: {"image": f32[b,H,W,3] -> pooled f32[b,D], "text": i32[b,L] -> pooled f32[b,D]}.
      locked: roles that stay as they start: no gradient enters them, and their batch statistics and dropout are those
        of evaluation. With `optim.freeze` for the same names, which keeps weight decay from them.
      method: name for messages.

    Raises:
      UsageError: a missing net or an unknown role; when traced, more than one view, no text, or different widths.
    """
    if missing := set(ROLES) - set(nets):
        raise UsageError(f"{method} needs nets 'image' and 'text'; config.nets lacks {', '.join(sorted(missing))}")
    if strange := set(locked) - set(ROLES):
        raise UsageError(f"config.method.locked={tuple(locked)!r}: {sorted(strange)[0]!r} is no tower; there are image, text")

    def inputs(batch):
        views = batch["views"]  # [b,1,H,W,3]
        if "text" not in batch:
            raise UsageError(f"{method} compares images with texts; set config.text to a tokenizer, as in "
                             "config.text=dict(name='clip')")
        if views.shape[1] != 1:
            raise UsageError(f"{method} takes one view of an image; config.augment.views makes {views.shape[1]}")
        return {"image": views[:, 0], "text": batch["text"]}

    def init(key, batch):
        params, stats = {}, {}
        for role, x in inputs(batch).items():
            key, own = jax.random.split(key)
            params[role], stats[role] = nets[role].init(own, x)
        return params, {"stats": stats}

    def forward(params, extra, batch, ctx):
        outputs, stats = {}, {}
        for i, (role, x) in enumerate(inputs(batch).items()):
            held = role in locked
            out, stats[role] = nets[role].apply(
                lax.stop_gradient(params[role]) if held else params[role], extra["stats"][role], x, train=not held,
                key=None if held else row_keys(jax.random.fold_in(ctx.key, i), batch))
            outputs[role] = out["pooled"]
        if outputs["image"].shape != outputs["text"].shape:
            wide = {role: x.shape[1] for role, x in outputs.items()}
            raise UsageError(f"{method}: the towers end at different widths, {wide}; set config.nets.*.out to one number")
        return outputs, {**extra, "stats": stats}

    def embed(params, extra, inputs):
        return {role: nets[role].apply(params[role], extra["stats"][role], x, train=False)[0]["pooled"]
                for role, x in inputs.items()}

    return Towers(init, forward, embed)
