"""What the layouts of transformers share: activations and preprocessor_config.json."""
import json

from simclr_jax.errors import UsageError
from simclr_jax.export import found

GELUS = {"erf": "gelu", "tanh": "gelu_pytorch_tanh", "quick": "quick_gelu"}
METHODS = {"bilinear": 2, "bicubic": 3}  # of PIL


def gelu(config, usual: str = "gelu") -> str:
    """Ours for the config's hidden_act.

    Raises:
      UsageError: an activation that no net here has.
    """
    name = config.get("hidden_act", usual)
    gelu = {v: k for k, v in GELUS.items()}.get(name)
    if gelu is None:
        raise UsageError(f"config.json has hidden_act={name!r}, wanted one of {', '.join(GELUS.values())}")
    return gelu


def view(size: int, pixels: dict, usual: dict, *, squash: bool = False, method: str = "bicubic") -> dict:
    """`found.view` of a preprocessor_config.json.

    Args:
      size: of the net's pictures, where the file does not say. pixels: the file, or {}.
      usual, squash, method: the model's mean and std, whether its pictures are squeezed to a square, and how; where the
        file does not say.
    """
    mean, std = pixels.get("image_mean", usual["mean"]), pixels.get("image_std", usual["std"])
    if not pixels.get("do_normalize", True):
        mean, std = (0.0,) * 3, (1.0,) * 3
    resized = pixels.get("size", size)
    if isinstance(resized, dict):
        squash = "height" in resized
        resized = resized.get("height", resized.get("shortest_edge", size))
    elif "size" in pixels and pixels.get("do_center_crop"):  # files from before version 4.24 have one number
        squash = False
    cut = pixels.get("crop_size", size) if pixels.get("do_center_crop", not squash) else resized
    cut = cut["height"] if isinstance(cut, dict) else cut
    method = {number: name for name, number in METHODS.items()}.get(pixels.get("resample"), method)
    return found.view(cut, mean=mean, std=std, crop=found.share(cut, resized), squash=squash, method=method)


def preprocessor(image: dict, kind: str) -> str:
    """The text of preprocessor_config.json.

    kind: the class of the model's own that squeezes pictures; where they are cut out, CLIP's class can.
    """
    side, to, squashed = found.side(image), int(found.side(image) / found.crop(image)), found.squashed(image)
    cut = dict(do_center_crop=True, crop_size=dict(height=side, width=side)) if to != side or not squashed else {}
    moments = found.moments(image)
    return json.dumps(dict(
        image_processor_type="CLIPImageProcessor" if cut else kind,
        do_resize=True, size=dict(height=to, width=to) if squashed else dict(shortest_edge=to),
        resample=METHODS[found.method(image)], **cut, do_rescale=True, rescale_factor=1 / 255,
        do_normalize=True, image_mean=moments["mean"], image_std=moments["std"]), indent=2)
