"""What of a recipe training with labels keeps: crops and flips, as in SimCLR's linear head and fine-tuning."""
import inspect
from typing import Sequence

from simclr_jax.augment.kinds import Spatial
from simclr_jax.augment.recipe import build, build_eval
from simclr_jax.augment.schema import OPS

KEPT = "flip", "clip"  # the latter cuts what a crop of clip=False overshoots


def light(views: Sequence, evaluation: Sequence) -> tuple:
    """A recipe of one view: the crops, flips and clips of the first of `views`, at the size of the evaluation view and
    with its pixel ops (normalisation).

    So a recipe that never flips or crops, as that of digits, leaves images as they are evaluated.

    Args:
      views: `config.augment.views`; evaluation: `config.augment.eval`.

    Raises:
      UsageError: as `build` and `build_eval`.

    >>> light([[("resize", {"size": 8}), ("affine", {"degrees": 5.0})]], [("resize", {"size": 8})])
    ((('resize', {'size': 8}),),)
    """
    wanted, first = build_eval(evaluation), build(views).views[0]
    crops = [(name, dict(kwargs)) for name, kwargs in views[0] if _spatial(name)]
    if first.size != wanted.size:
        if len(crops) == 1 and "size" in crops[0][1]:
            crops[0][1]["size"] = wanted.size
        else:  # sizes that follow from one another
            crops = [(name, dict(kwargs)) for name, kwargs in evaluation if _spatial(name)]
    kept = [(name, dict(kwargs)) for name, kwargs in views[0] if name in KEPT]
    pixels = [(name, dict(kwargs)) for name, kwargs in evaluation if not _spatial(name) and name not in KEPT]
    return (tuple(crops + kept + pixels),)


def _spatial(name):
    return inspect.signature(OPS[name]).return_annotation is Spatial
