"""Projection heads of PyTorch, an nn.Linear or an nn.Sequential, as nets/mlp.

Where theirs has a bias before a norm (SwAV), the norm takes it away again; ours has none, and its running mean is less
by that bias.
"""
import re
from typing import NamedTuple

from simclr_jax.export.layout import Layout, Row, row

COUNTERS = r".*num_batches_tracked"


class Head(NamedTuple):
    """A head that nets/mlp has a form for."""

    net: dict
    rows: tuple[Row, ...]


def sequential(role: str, weights, at: str, activation: str = "relu") -> Head | None:
    """The head whose layers are `at`.weight, or `at`.0.weight, `at`.2.weight and so on, norms and activations between.

    Args:
      role: ours. weights: {name: Tensor}. activation: that of nets/mlp; a file does not hold it.

    Returns:
      The head, or None if there is none, or none that nets/mlp has.
    """
    places = sorted({int(m[1]) for name in weights if (m := re.match(re.escape(at) + r"\.(\d+)\.", name))})
    modules = [at] if f"{at}.weight" in weights else [f"{at}.{i}" for i in places]
    layers = []  # (linear, norm behind it or "")
    for module in modules:
        if f"{module}.running_mean" not in weights:
            layers.append((module, ""))
        elif not layers or layers[-1][1]:
            return None
        else:
            layers[-1] = (layers[-1][0], module)
    if not 1 <= len(layers) <= 3:
        return None
    *inner, (_, last) = layers
    out = [weights[f"{linear}.weight"].shape[0] for linear, _ in layers]
    normed = {bool(norm) for _, norm in inner}
    if len(normed) > 1 or len(set(out[:-1])) > 1 or f"{last}.bias" in weights:
        return None  # hidden layers of several kinds, or a last norm that shifts
    if any(not norm and f"{linear}.bias" not in weights for linear, norm in inner):
        return None
    net = dict(name="mlp", layers=len(layers), hidden=out[0] if inner else 0, out=out[-1],
               hidden_bn=True in normed or not inner, last_bn=bool(last),
               last_scale=not last or f"{last}.weight" in weights, activation=activation)
    if not last and f"{layers[-1][0]}.bias" not in weights:
        net["last_bias"] = False
    rows = []
    for i, (linear, norm) in enumerate(layers, 1):
        ours, bias = f"{role}/layer{i}", (f"{linear}.bias",) if f"{linear}.bias" in weights else ()
        rows.append(row(f"{ours}/dense/kernel", "linear", f"{linear}.weight"))
        if not norm and bias:
            rows.append(row(f"{ours}/dense/bias", "as is", *bias))
        elif norm:
            rows += [row(f"{ours}/bn/{mine}", "as is", f"{norm}.{theirs}")
                     for mine, theirs in (("scale", "weight"), ("bias", "bias")) if f"{norm}.{theirs}" in weights]
            mean = f"{role}/stats/layer{i}/bn/mean"
            rows += [row(mean, "less" if bias else "as is", f"{norm}.running_mean", *bias),
                     row(f"{role}/stats/layer{i}/bn/var", "as is", f"{norm}.running_var")]
    return Head(net, tuple(rows))


def with_head(nets: dict, layout: Layout, head: Head | None, role: str = "projector"):
    """({role: net}, layout) of nets and a head, if there is one."""
    if head is None:
        return nets, layout
    return {**nets, role: head.net}, layout._replace(rows=layout.rows + head.rows)
