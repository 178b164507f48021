"""What the vision transformer of a run, or a published one, looks at. Composition, for the commands."""
import numpy as np

from simclr_jax import build, embed, names, tuning
from simclr_jax.errors import UsageError
from simclr_jax.evals import attention
from simclr_jax.nets.vit import SIZES

SHOWN = 6  # images


def check(config) -> None:
    """Refuses nets whose attention cannot be drawn.

    Raises:
      UsageError: the net that looks at images is no ViT.
    """
    role = tuning.role(config.nets)
    if role not in config.nets or config.nets[role].name != "vit":
        there = ", ".join(f"{r}: {net.name}" for r, net in config.nets.items())
        raise UsageError(f"--evals=attention draws what the blocks of a vit look at, and config.nets has {there}; give "
                         "a run or a directory whose net for images is one, such as of configs/dino_digits.py:net=vit")


def draw(config, method, params, extra, workdir, split: str):
    """Draws images/attention.png of a few images of a split, evenly spaced, by the weights that the method embeds by.

    Args:
      config: its nets, data and augment.eval count; params, extra: of a state.
    """
    role = tuning.role(config.nets)
    spec = config.nets[role]
    source = build.source(config, split)
    images = embed.images(config, split, np.unique(np.linspace(0, source.size - 1, SHOWN).astype(int)))
    params, stats = method.weights(params, extra)
    seen = attention.look(names.make("nets", spec, axis=None), params[role], stats[role], images,
                          heads=spec.heads or SIZES[spec.size][2], pool=spec.pool, patch=spec.patch,
                          prefix=spec.class_token + spec.registers)
    return embed.picture(workdir, "attention.png", attention.maps, images, seen)
