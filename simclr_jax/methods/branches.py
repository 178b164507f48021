"""What the methods with two branches share: nets in a row, views in passes, and teachers that follow."""
import jax
import jax.numpy as jnp

from simclr_jax.errors import UsageError
from simclr_jax.types import Net, row_keys


def chain(nets, roles: tuple[str, ...], method: str) -> Net:
    """Nets in a row as one: each takes what the one before calls "pooled". Parameters and statistics are {role: its own}.

    Other roles in what `apply` is given are passed over, so a chain of the first roles runs on the trees of a longer
    one. The first net gets the mask. Without a key nothing is dropped: a net without batch statistics then runs as in
    evaluation, and one with them normalises by its own batch.

    Raises:
      UsageError: a net is missing.
    """
    if missing := set(roles) - set(nets):
        raise UsageError(f"{method} needs nets {', '.join(map(repr, roles))}; config.nets lacks {', '.join(sorted(missing))}")

    def init(key, x):
        params, stats = {}, {}
        for role in roles:
            key, own = jax.random.split(key)
            params[role], stats[role] = nets[role].init(own, x)
            x = jax.eval_shape(lambda p, s, x, r=role: nets[r].apply(p, s, x, train=False)[0]["pooled"],
                               params[role], stats[role], x)
        return params, stats

    def apply(params, stats, x, *, train, key=None, mask=None):
        stats, first = dict(stats), {}
        for role in roles:
            training = train and (key is not None or bool(stats[role]))
            out, stats[role] = nets[role].apply(params[role], stats[role], x, train=training, key=key, mask=mask)
            x, mask, first = out["pooled"], None, first or out
        return {**first, "representation": first["pooled"], "pooled": x}, stats

    return Net(init, apply)


def width(net: Net, params, stats, x) -> int:
    """D of what a net gives for x, an array or its ShapeDtypeStruct; nothing is computed."""
    return jax.eval_shape(lambda x: net.apply(params, stats, x, train=False)[0]["pooled"], x).shape[1]


def view_keys(ctx, batch, first: int = 0):
    """view -> key[b], the keys by which the rows of that view are dropped from; `first` is the number of view 0."""
    return lambda v: row_keys(jax.random.fold_in(ctx.key, first + v), batch)


def each(net: Net, params, stats, views, keys=None):
    """A pass a view, so that batch statistics are those of a view.

    Args:
      views: f32[b,V,...]; keys: as of `view_keys`; None: nothing is dropped.

    Returns:
      (f32[b,V,D], the statistics after all of them).
    """
    made = []
    for v in range(views.shape[1]):
        out, stats = net.apply(params, stats, views[:, v], train=True, key=keys and keys(v))
        made.append(out["pooled"])
    return jnp.stack(made, axis=1), stats


def together(net: Net, params, stats, views, keys=None, mask=None):
    """One pass over all views of a size.

    Args:
      views: f32[b,V,...]; keys: as in `each`; mask: bool[b,V,N].

    Returns:
      ({name: f32[b,V,...]}, all that the net gives, and the statistics).
    """
    b, v = views.shape[:2]
    rows = lambda x: x.reshape(b * v, *x.shape[2:])  # the views of a row side by side
    key = None if keys is None else rows(jnp.stack([keys(i) for i in range(v)], axis=1))
    out, stats = net.apply(params, stats, rows(views), train=True, key=key, mask=None if mask is None else rows(mask))
    return {name: x.reshape(b, v, *x.shape[1:]) for name, x in out.items()}, stats


def multi_crop(backbone: Net, head: Net, params, stats, batch, ctx, mask=None):
    """Views and crops: the backbone in a pass for each size, the head in one for all.

    Args:
      mask: bool[b,V,N], patches hidden in the views, or None.

    Returns:
      (f32[b,V+C,P], what the backbone gives for the views, {name: f32[b,V,...]}, the statistics).
    """
    views, crops = batch["views"], batch.get("crops")
    out, stats = together(backbone, params, stats, views, view_keys(ctx, batch), mask)
    features = out["pooled"]
    if crops is not None:
        small, stats = together(backbone, params, stats, crops, view_keys(ctx, batch, views.shape[1]))
        features = jnp.concatenate([features, small["pooled"]], axis=1)
    z, stats = together(head, params, stats, features, view_keys(ctx, batch))
    return z["pooled"], out, stats


def two(batch, method: str):
    """The batch's views [b,2,...].

    Raises:
      UsageError: another number of views.
    """
    if batch["views"].shape[1] != 2:
        raise UsageError(f"{method} compares two views of an image; config.augment.views makes {batch['views'].shape[1]}")
    return batch["views"]


def follow(teacher, student, momentum):
    """momentum * teacher + (1 - momentum) * student, leaf by leaf of the teacher's tree; further roles are passed over."""
    if isinstance(teacher, dict):
        return {k: follow(t, student[k], momentum) for k, t in teacher.items()}
    return momentum * teacher + (1 - momentum) * student


def rising(start: float, step, steps: int):
    """A momentum that rises from `start` to 1 by a half cosine: 1 - (1 - start) (1 + cos(pi t / T)) / 2."""
    done = jnp.clip(jnp.asarray(step, jnp.float32) / steps, 0.0, 1.0)
    return 1 - (1 - start) * 0.5 * (1 + jnp.cos(jnp.pi * done))


def check_momentum(momentum: float) -> None:
    if not 0 <= momentum <= 1:
        raise UsageError(f"config.method.momentum={momentum}, wanted a share from 0 to 1 (0.99 to 0.999 are usual)")


def features(nets, params, stats, inputs, role: str = "backbone"):
    """What `Method.embed` gives: {"image": f32[b,D]} of one net in evaluation mode."""
    return {"image": nets[role].apply(params[role], stats[role], inputs["image"], train=False)[0]["pooled"]}
