"""What the layouts of transformers share: activations and preprocessor_config.json."""
import json

from simclr_jax.errors import UsageError
from simclr_jax.export import found

GELUS = {"erf": "gelu", "tanh": "gelu_pytorch_tanh", "quick": "quick_gelu"}


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


def view(size: int, pixels: dict, usual: dict, squash: bool = False) -> dict:
    """`found.view` of a preprocessor_config.json, {} where there is none; `usual`: the model's mean and std."""
    moments = dict(mean=pixels.get("image_mean", usual["mean"]), std=pixels.get("image_std", usual["std"]))
    resized = pixels.get("size", {})
    shorter = resized.get("shortest_edge", 0) if isinstance(resized, dict) else 0
    squash = "height" in resized if isinstance(resized, dict) and resized else squash
    return found.view(size, **moments, crop=size / shorter if shorter else 1.0, squash=squash,
                      method={2: "bilinear"}.get(pixels.get("resample"), "bicubic"))


def preprocessor(image: dict, kind: str) -> str:
    """The text of preprocessor_config.json."""
    size, share = found.side(image), found.crop(image)
    squashed = found.squashed(image)
    moments = found.moments(image)
    return json.dumps(dict(
        image_processor_type=kind, do_resize=True, resample={"bicubic": 3, "bilinear": 2}[found.method(image)], do_rescale=True,
        rescale_factor=1 / 255, do_normalize=True, image_mean=moments["mean"], image_std=moments["std"],
        **(dict(size=dict(height=size, width=size)) if squashed else
           dict(size=dict(shortest_edge=round(size / share)), do_center_crop=True, crop_size=dict(height=size, width=size)))), indent=2)
