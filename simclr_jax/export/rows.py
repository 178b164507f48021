"""Rows that layouts share: the parts of transformers and residual nets, named by each library in its own way."""
import itertools
import re

from simclr_jax.export.layout import Part, Row, row
from simclr_jax.nets import resnet


def norm(ours: str, theirs: str) -> list[Row]:
    return [row(f"{ours}/scale", "as is", f"{theirs}.weight"), row(f"{ours}/bias", "as is", f"{theirs}.bias")]


def dense(ours: str, *theirs: str, bias: bool = True) -> list[Row]:
    """A linear layer; several of theirs are one of ours, side by side."""
    rows = [row(f"{ours}/kernel", "linear", *(f"{t}.weight" for t in theirs))]
    return rows + [row(f"{ours}/bias", "as is", *(f"{t}.bias" for t in theirs))] * bias


def conv(ours: str, theirs: str, bias: bool = False) -> list[Row]:
    return [row(f"{ours}/kernel", "conv", f"{theirs}.weight")] + [row(f"{ours}/bias", "as is", f"{theirs}.bias")] * bias


def batch_norm(role: str, ours: str, theirs: str) -> list[Row]:
    return norm(f"{role}/{ours}", theirs) + [row(f"{role}/stats/{ours}/{k}", "as is", f"{theirs}.running_{k}")
                                             for k in ("mean", "var")]


def blocks(role: str, depth: int, at: str, *, norms, qkv, out: str, mlp, scales=(), stack: str = "stack") -> list[Row]:
    """The blocks of a transformer.

    Args:
      at: their name of block {}; norms, mlp, scales: of both halves; qkv: one name, or one each, as may be either of
        mlp.
      stack: our name of what holds them.
    """
    rows = []
    for i in range(depth):
        ours, theirs = f"{role}/{stack}/block{i + 1}", at.format(i)
        for k in (1, 2):
            rows += norm(f"{ours}/norm{k}", theirs + norms[k - 1])
            parts = mlp[k - 1] if isinstance(mlp[k - 1], tuple) else (mlp[k - 1],)
            rows += dense(f"{ours}/mlp/fc{k}", *(theirs + name for name in parts))
            if scales:
                rows.append(row(f"{ours}/scale{k}/layer_scale", "as is", theirs + scales[k - 1]))
        rows += dense(f"{ours}/attention/qkv", *(theirs + name for name in qkv))
        rows += dense(f"{ours}/attention/out", theirs + out)
    return rows


def joined(rows: list[Row], inside: str) -> list[Row]:
    """The same with `inside`.weight spelt `inside`_weight, as PyTorch's MultiheadAttention does."""
    end = re.compile(re.escape(inside) + r"\.(?=weight$|bias$)")
    return [r._replace(parts=tuple(p._replace(name=end.sub(inside + "_", p.name)) for p in r.parts)) for r in rows]


def thirds(ours: str, theirs: str, first: int, last: int) -> list[Row]:
    """A linear layer that is a part of PyTorch's joined q, k and v."""
    return [row(f"{ours}/kernel", "linear", Part(f"{theirs}_weight", first, last, 3)),
            row(f"{ours}/bias", "as is", Part(f"{theirs}_bias", first, last, 3))]


def torch_resnet(role: str, net: dict, at: str = "") -> list[Row]:
    """nets/resnet in the names of torchvision, which timm and most PyTorch code share; `at` stands before each."""
    rows = conv(f"{role}/stem/conv", f"{at}conv1") + batch_norm(role, "stem/bn", f"{at}bn1")
    deep = net["depth"] >= 50
    for stage, count in enumerate(resnet.BLOCKS[net["depth"]], 1):
        for j in range(count):
            ours, theirs = f"stage{stage}/block{j + 1}", f"{at}layer{stage}.{j}"
            for k in range(1, 4 if deep else 3):
                rows += conv(f"{role}/{ours}/conv{k}", f"{theirs}.conv{k}")
                rows += batch_norm(role, f"{ours}/bn{k}", f"{theirs}.bn{k}")
            if j == 0 and projects(net, stage):
                rows += conv(f"{role}/{ours}/downsample/conv", f"{theirs}.downsample.0")
                rows += batch_norm(role, f"{ours}/downsample/bn", f"{theirs}.downsample.1")
    return rows


def projects(net: dict, stage: int) -> bool:
    """Whether the first shortcut of a stage is a convolution."""
    stem, first = (net.get("widths") or (64, 64))[:2]
    return net.get("layout", "simclr") != "torch" or net["depth"] >= 50 or stage > 1 or stem != first


def count(names, pattern: str) -> int:
    """How many of something there are: 1 + the largest number that `pattern` finds in names; 0 if it finds none."""
    found = [int(m[1]) for m in (re.match(pattern, n) for n in names) if m]
    return 1 + max(found, default=-1)


def ahead(weights, markers: tuple[str, ...], *parts: tuple[str, ...]) -> str | None:
    """What stands before the names of a net: of all that are joined of one each of `parts`, the first with a marker."""
    return next((at for at in map("".join, itertools.product(*parts)) if any(at + m in weights for m in markers)), None)


def below(at: str, rows) -> list[Row]:
    """The same rows with `at` before each of their names."""
    return [r._replace(parts=tuple(p._replace(name=at + p.name) for p in r.parts)) for r in rows]


def without(at: str, weights) -> dict:
    """Those of the arrays that stand behind `at`, by the rest of their names."""
    return {name.removeprefix(at): tensor for name, tensor in weights.items() if name.startswith(at)}
