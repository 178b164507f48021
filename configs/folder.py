"""Any method on your own pictures, at a laptop's scale: the heads and settings of its recipe for digits, colour views.

    python -m simclr_jax.train --config=configs/folder.py:method=byol --config.data.root=DIR --workdir=runs/mine
    python -m simclr_jax.evals --workdir=runs/mine --evals=knn,linear     # where there are classes

Variants, after a colon: method=byol (moco, moco_v3, simclr, simsiam, swav, barlow_twins, vicreg, dino, dinov2), size=32
(side of the views), crops=0 (SwAV, DINO, DINOv2: so many of half the side beside the two views), net=convnet (vit, which
dinov2 always has), width=1.0, batch=256, epochs=100. The nets have about as many parameters: 64-128-256 and 2 x 128.

Views are SimCLR's for CIFAR-10. Crops, the rate, how long last layers are held (a tenth of an epoch), MoCo's temperature and
its head's BatchNorm, DINO's 1,024 prototypes, its and DINOv2's momentum were chosen on held-out training images of CIFAR-10,
with 800 steps. Ours, not published. For a GPU see configs/METHOD_cifar10.py and configs/METHOD_imagenet.py, for SimCLR's own
recipe on a folder simclr_folder.py.

Hardware  2 CPU cores.
Expected  depends on the pictures; of CIFAR-10 after four epochs: docs/results.md, every method (ours).
"""
import importlib

from configs.common import recipes
from simclr_jax.config import variant
from simclr_jax.errors import UsageError
from simclr_jax.names import near

METHODS = ("barlow_twins", "byol", "dino", "dinov2", "moco", "moco_v3", "simclr", "simsiam", "swav", "vicreg")
MULTI_CROP = "swav", "dino", "dinov2"


def get_config(arg=""):
    v = variant(arg, method="byol", size=32, crops=0, net="", width=1.0, batch=256, epochs=100.0)
    if v.method not in METHODS:
        raise UsageError(f"method={v.method!r}: there is no such method for a folder{near(v.method, METHODS)}")
    if v.net not in ("", "convnet", "vit") or (v.net == "convnet" and v.method == "dinov2"):
        raise UsageError(f"net={v.net!r} for {v.method}, wanted convnet (not for dinov2) or vit")
    if v.crops < 0 or (v.crops and v.method not in MULTI_CROP):
        raise UsageError(f"crops={v.crops} for {v.method}, wanted 0, or more for {', '.join(MULTI_CROP)}")
    if v.size < 16 or v.size % 8:
        raise UsageError(f"size={v.size}, wanted a multiple of 8 of at least 16, such as 32")
    config = importlib.import_module(f"configs.{v.method}_digits").get_config()
    config.batch, config.steps, config.epochs = v.batch, 0, v.epochs
    config.data = dict(name="folder", root="", split="train")
    config.augment.views = recipes.cifar_crops(v.size, v.size // 2, v.crops)
    config.augment.eval = recipes.simclr_cifar_eval(v.size)
    if v.net == "vit" or v.method == "dinov2":
        own = config.nets.backbone.to_dict() if v.method == "dinov2" else dict(name="vit", depth=2)
        config.nets.backbone = {**own, "patch": v.size // 8, "image": v.size, "width": 4 * round(32 * v.width), "heads": 4}
    else:
        config.nets.backbone.channels = tuple(int(c * v.width) for c in (64, 128, 256))
    if v.method == "moco":
        config.method.temperature, config.nets.projector.hidden_bn = 0.1, True
    if v.method == "dino":
        config.method.prototypes, config.method.momentum = 1024, 0.97
    if v.method == "dinov2":
        config.method.momentum, config.augment.mask = 0.97, dict(patch=v.size // 8)
    config.optim.lr, config.optim.warmup_epochs = 0.01, 1.0
    config.optim.hold = tuple((regex, 0.1) for regex, _ in config.optim.get("hold", ()))
    config.evals = dict(every=0, run=("knn",), best="")
    return config
