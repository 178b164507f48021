"""What layouts say of files, and of what they write."""
import math
from typing import NamedTuple

from simclr_jax.errors import UsageError
from simclr_jax.export.layout import Layout

IMAGENET = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
HALVES = dict(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
CLIP = dict(mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711))


class Found(NamedTuple):
    """The nets that a file of weights is of. As in `model.Model`; layout: the rows that read it."""

    nets: dict
    layout: Layout
    image: dict = {}
    text: dict = {}


class Package(NamedTuple):
    """What a library opens.

    Attributes:
      layout: how the arrays are written.
      weights: name of the file of weights.
      files: {name: text} beside it.
      lines: Python that makes `model` of it, in evaluation mode, with strict loading; {dir} stands for the directory.
      call: Python that makes `out`, {name: tensor}, of `model` and of `pixels` f32[b,3,H,W] and `tokens` i64[b,L], as
        far as there are such towers; names are modalities.
      layers: (role, our module, their module) whose outputs are the same array but for the order of its axes.
      left: patterns of our arrays that the library has no place for, and features do not need.
    """

    layout: Layout
    weights: str
    files: dict
    lines: tuple[str, ...]
    call: tuple[str, ...]
    layers: tuple[tuple[str, str, str], ...] = ()
    left: tuple[str, ...] = ()


def view(size: int, *, mean, std, crop: float = 1.0, method: str = "bicubic", squash: bool = False) -> dict:
    """{"eval": ...} of a picture that is resized to size / crop, whose middle is cut out, and that is normalised.

    squash: both sides become size / crop, whatever the picture's shape; else the shorter one does.
    """
    way, to = dict(method="bilinear") if method == "bilinear" else {}, int(size / crop)
    cut = [] if squash and to == size else [["center_crop", dict(size=size)]]
    return {"eval": [["resize", dict(size=to, shorter=not squash, antialias=True, **way)], *cut,
                     ["normalize", dict(mean=tuple(mean), std=tuple(std))]]}


def side(image: dict) -> int:
    """The side of a prepared picture, in pixels."""
    return [kwargs["size"] for _, kwargs in image["eval"] if kwargs.get("size")][-1]


def share(size: int, of: int) -> float:
    """size / of such that int(size / share) is `of`, which is how timm and `view` go back."""
    exact = size / of
    return exact if int(size / exact) == of else math.nextafter(exact, 0)


def crop(image: dict) -> float:
    """The share of a resized picture's side that is seen."""
    cut = math.prod(kwargs.get("proportion") or 1.0 for op, kwargs in image["eval"] if op == "center_crop")
    resized = [kwargs["size"] for op, kwargs in image["eval"] if op == "resize"]
    return cut * share(side(image), resized[-1] if resized else side(image))


def method(image: dict) -> str:
    """How pictures are resized, "bicubic" or "bilinear"."""
    return next((kwargs.get("method", "bicubic") for op, kwargs in image["eval"] if op == "resize"), "bicubic")


def squashed(image: dict) -> bool:
    """Whether a whole picture becomes a square first, whatever its shape."""
    first = next(((op, kwargs) for op, kwargs in image["eval"] if op != "normalize"), None)
    return first is None or first[0] == "resize" and not first[1].get("shorter")


def moments(image: dict) -> dict:
    """{"mean", "std"} that a prepared picture is normalised by, of three channels in [0, 1]."""
    op, kwargs = image["eval"][-1]
    if op != "normalize":
        return dict(mean=(0.0,) * 3, std=(1.0,) * 3)
    return dict(mean=tuple(kwargs["mean"]), std=tuple(kwargs["std"]))


UNSAID = "layout", "eps", "position_resize"


def unsaid(net: dict) -> dict:
    """For a config.json of ours: what no array's name or shape, and no argument of the library's, tells of a net."""
    return {"simclr_jax": {key: net[key] for key in UNSAID if key in net}}


def said(net: dict, config: dict) -> dict:
    """A net with what `unsaid` kept in a config.json, if it is of ours."""
    return net | {k: v for k, v in config.get("simclr_jax", {}).items() if k in UNSAID and (k in net or k != "layout")}


def only(nets: dict, target: str, *names: str) -> str:
    """The role of the one image tower of `nets`, if it is one of `names`.

    Raises:
      UsageError: there is none, or it is another net.
    """
    role = "backbone" if "backbone" in nets else "image"
    if role not in nets or nets[role]["name"] not in names:
        has = ", ".join(f"{r}={n['name']}" for r, n in nets.items())
        raise UsageError(f"--to={target} writes a net {' or '.join(names)} for images; this run has {has}; take "
                         "another target (--to=flax and --to=stablehlo take every net)")
    return role


def refuse_resize(target: str, net: dict, image: dict, how: str = "") -> None:
    """Raises UsageError if pictures are of another size than learned positions are for, and the target does not
    interpolate them `how` the net does; "": it does not at all."""
    if net.get("posemb", "learned") != "learned" or side(image) == net["image"]:
        return
    if not how:
        raise UsageError(f"--to={target}: pictures are {side(image)} wide and the positions of nets/{net['name']} are "
                         f"for {net['image']}, and {target} does not interpolate them (--to=flax and "
                         "--to=stablehlo do)")
    refuse(target, net, position_resize=how)


def refuse(target: str, net: dict, **wanted) -> None:
    """Raises UsageError if a net has an argument that is none of those that the target can have."""
    for key, values in wanted.items():
        values = values if isinstance(values, tuple) else (values,)
        if key in net and net[key] not in values:
            raise UsageError(f"--to={target}: nets/{net['name']} has {key}={net[key]!r}, which {target} has no net "
                             f"for; wanted {' or '.join(map(repr, values))} (--to=flax and --to=stablehlo take "
                             "every net)")
