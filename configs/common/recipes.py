"""Augmentation recipes as published: plain data for `config.augment.views` and `config.augment.eval`.

A recipe is a tuple of views, each a tuple of (op, kwargs); `simclr_jax/augment` holds the ops. Where an original
differs from what an op can do, the function says so.
"""

# Channel means and standard deviations of ImageNet's training set, as torchvision and BYOL write them.
IMAGENET = ("normalize", dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)))

SWAV = ("normalize", dict(mean=(0.485, 0.456, 0.406), std=(0.228, 0.224, 0.225)))  # as facebookresearch/swav writes them

# Those of CLIP's own training set, as openai/CLIP clip/clip.py writes them.
CLIP = ("normalize", dict(mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711)))
HALVES = ("normalize", dict(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)))  # [0, 1] to [-1, 1]


def simclr(size: int = 224, strength: float = 1.0) -> tuple:
    """SimCLR on ImageNet (Chen et al. 2020, appendix A; google-research/simclr tf2/data_util.py).

    Bicubic crops overshoot [0, 1] there until the jitter or the end of preprocessing cuts them, before the blur. Blur
    has (size // 10) // 2 taps to each side. Released code draws one sigma a batch and device; ours one a row.
    """
    return (_simclr(size, strength) + (_blur(size, p=0.5),),) * 2


def simclr_cifar(size: int = 32, strength: float = 0.5) -> tuple:
    """SimCLR on CIFAR-10: half the jitter and no blur (Chen et al. 2020, appendix B.9; simclr README.md)."""
    return (_simclr(size, strength),) * 2


def byol(size: int = 224) -> tuple:
    """BYOL's two different views (Grill et al. 2020; deepmind-research byol/utils/augmentations.py, dataset.py)."""
    start = (
        ("random_resized_crop", dict(size=size, area=(0.08, 1.0), ratio=(3 / 4, 4 / 3), sampling="byol")),
        ("flip", dict(p=0.5)),
        ("color_jitter", dict(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1, p=0.8, brightness_mode="add")),
        ("grayscale", dict(p=0.2)),
    )
    return (start + (_blur(size, p=1.0), IMAGENET),
            start + (_blur(size, p=0.1), ("solarize", dict(p=0.2, threshold=0.5)), IMAGENET))


def moco_v1(size: int = 224) -> tuple:
    """MoCo v1: grayscale before a jitter that every row gets (facebookresearch/moco main_moco.py)."""
    return ((
        _torch_crop(size, lowest=0.2),
        ("grayscale", dict(p=0.2)),
        ("color_jitter", dict(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.4, p=1.0, style="torch")),
        ("flip", dict(p=0.5)),
        IMAGENET,
    ),) * 2


def moco_v2(size: int = 224) -> tuple:
    """MoCo v2 and SimSiam (Chen et al. 2020; moco main_moco.py, simsiam main_simsiam.py).

    The originals jitter and blur 8-bit images, and PIL's blur is three box filters that imitate a Gaussian; ours is
    the Gaussian itself, reaching 11 pixels at 224.
    """
    return (_moco(size, 0.2, saturation=0.4) + (_torch_blur(size, p=0.5), ("flip", dict(p=0.5)), IMAGENET),) * 2


simsiam = moco_v2


def moco_v3(size: int = 224, lowest: float = 0.08) -> tuple:
    """MoCo v3's two different views (moco-v3 main_moco.py); lowest crop area .08 for ViT, .2 for ResNet-50.

    Solarize is PIL's, from 128 of 255. Blur as in `moco_v2`.
    """
    start = _moco(size, lowest, saturation=0.2)
    end = (("flip", dict(p=0.5)), IMAGENET)
    return (start + (_torch_blur(size, p=1.0),) + end,
            start + (_torch_blur(size, p=0.1), ("solarize", dict(p=0.2, threshold=128 / 255))) + end)


def swav(size: int = 224, small: int = 96, views: int = 2, crops: int = 6) -> tuple:
    """SwAV's multi-crop: views of .14 to 1 of the image, small crops of .05 to .14 (swav src/multicropdataset.py).

    Its std of red is .228, where others have .229.
    """
    def view(size, lowest, highest):
        return (
            _torch_crop(size, lowest, highest),
            ("flip", dict(p=0.5)),
            ("color_jitter", dict(brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2, p=0.8, style="torch")),
            ("grayscale", dict(p=0.2)),
            _wide_blur(size, p=0.5),
            SWAV,
        )
    return (view(size, 0.14, 1.0),) * views + (view(small, 0.05, 0.14),) * crops


def dino(size: int = 224, small: int = 96, crops: int = 8, border: float = 0.4) -> tuple:
    """DINO's multi-crop: two global views of `border` to 1 of the image, local crops of .05 to `border` (dino main_dino.py).

    border is .4 for ViTs and .14 for ResNet-50. The original's blur is PIL's, three box filters that imitate a Gaussian;
    ours is the Gaussian itself.
    """
    return _dino(size, small, crops, border, _wide_blur, blurred=(1.0, 0.1, 0.5))


def dinov2(size: int = 224, small: int = 98, crops: int = 8, border: float = 0.32) -> tuple:
    """DINOv2's multi-crop (dinov2 data/augmentations.py, configs/ssl_default_config.yaml); small is 98 for patches of 14.

    Chances of blur are those that the released code has: it says 1, .1 and .5 and passes 1 minus that to torchvision's
    RandomApply (dinov2 data/transforms.py), so that the first global view is never blurred and the second in .9 of cases.
    """
    def blur(size, p):
        return ("blur", dict(kernel=9, p=p, sigma=(0.1, 2.0), padding="reflect"))
    return _dino(size, small, crops, border, blur, blurred=(0.0, 0.9, 0.5))


def clip(size: int = 224, lowest: float = 0.9) -> tuple:
    """CLIP's one view: a random crop of nearly all of the image (Radford et al. 2021, section 2).

    Area .9 to 1 and bicubic as in open_clip (open_clip/transform.py, AugmentationCfg).
    """
    crop = dict(size=size, area=(lowest, 1.0), ratio=(3 / 4, 4 / 3), method="bicubic", antialias=True, sampling="torch")
    return ((("random_resized_crop", crop), CLIP),)


def siglip(size: int = 224) -> tuple:
    """SigLIP's one view: the whole image, squeezed into a square, in [-1, 1] (big_vision configs, pp "resize|value_range").

    Bicubic with antialiasing, as in transformers' SiglipImageProcessor.
    """
    return (siglip_eval(size),)


def clip_eval(size: int = 224) -> tuple:
    """CLIP's test images: shorter side to `size`, bicubic, centre (openai/CLIP clip/clip.py)."""
    return (("resize", dict(size=size, shorter=True, antialias=True)), ("center_crop", dict(size=size)), CLIP)


def siglip_eval(size: int = 224) -> tuple:
    """SigLIP's test images are prepared as in training."""
    return (("resize", dict(size=size, antialias=True)), HALVES)


def digits_pairs(size: int = 8) -> tuple:
    """One view of a digit beside a sentence about it; gentle, as sentences tell of slant, weight and width. Ours."""
    return ((
        ("resize", dict(size=size, method="bilinear")),
        ("affine", dict(degrees=5.0, translate=0.1, scale=(0.95, 1.05), shear=3.0)),
        ("intensity", dict(contrast=(0.9, 1.1), brightness=(-0.05, 0.05))),
    ),)


def digits(size: int = 8) -> tuple:
    """Small gray pictures such as scikit-learn's 8 x 8 digits; ours, not published.

    No flip, which would make other signs of them, and no colour, of which they have none.
    """
    view = (
        ("resize", dict(size=size, method="bilinear")),
        ("affine", dict(degrees=25.0, translate=0.15, scale=(0.75, 1.25), shear=15.0)),
        ("intensity", dict(contrast=(0.6, 1.4), brightness=(-0.1, 0.1))),
    )
    return (view,) * 2


def digits_crops(size: int = 8, small: int = 6, crops: int = 4) -> tuple:
    """`digits`, and crops of .3 to .6 of the picture. Ours, not published."""
    crop = (
        ("random_resized_crop", dict(size=small, area=(0.3, 0.6), ratio=(3 / 4, 4 / 3), method="bilinear", antialias=True,
                                     sampling="torch")),
        ("intensity", dict(contrast=(0.6, 1.4), brightness=(-0.1, 0.1))),
    )
    return digits(size) + (crop,) * crops


def cifar_crops(size: int = 32, small: int = 16, crops: int = 4) -> tuple:
    """`simclr_cifar` with crops of .05 to .3 of the picture beside its views. Ours, not published."""
    crop = ("random_resized_crop", dict(size=small, area=(0.05, 0.3), ratio=(3 / 4, 4 / 3), clip=False))
    return simclr_cifar(size) + ((crop, *_simclr(small, 0.5)[1:]),) * crops


def simclr_linear(size: int = 224) -> tuple:
    """Training of SimCLR's linear head: crop and flip only, one view (tf2/data_util.py preprocess_image)."""
    return ((("random_resized_crop", dict(size=size, clip=False)), ("flip", dict(p=0.5)), ("clip", {})),)


def simclr_eval(size: int = 224, proportion: float = 0.875) -> tuple:
    """SimCLR's test images: the central 87.5%, then bicubic (tf2/data_util.py center_crop)."""
    return (("center_crop", dict(proportion=proportion)), ("resize", dict(size=size)))


def simclr_cifar_eval(size: int = 32) -> tuple:
    """SimCLR's test images on CIFAR: no crop (simclr README.md)."""
    return (("resize", dict(size=size)),)


def torch_eval(size: int = 224, resize: int = 256, method: str = "bilinear", normalize: tuple = IMAGENET) -> tuple:
    """Test images of MoCo and SimSiam: shorter side to 256, centre 224 (moco main_lincls.py).

    Bicubic in DINO and DINOv2 (dino eval_knn.py; dinov2 data/transforms.py); SwAV normalises as in training.
    """
    return (("resize", dict(size=resize, shorter=True, method=method, antialias=True)), ("center_crop", dict(size=size)), normalize)


def byol_eval(size: int = 224) -> tuple:
    """BYOL's test images: the centre square with a margin of 32 in 224 + 32, then bicubic (byol/utils/dataset.py)."""
    return (("center_crop", dict(proportion=size / (size + 32), floor=True)), ("resize", dict(size=size)), IMAGENET)


def digits_eval(size: int = 8) -> tuple:
    """The pictures as they are."""
    return (("resize", dict(size=size, method="bilinear")),)


def _simclr(size, strength):
    return (
        ("random_resized_crop", dict(size=size, area=(0.08, 1.0), ratio=(3 / 4, 4 / 3), clip=False)),
        ("flip", dict(p=0.5)),
        ("color_jitter", dict(brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2, p=0.8, strength=strength)),
        ("grayscale", dict(p=0.2)),
        ("clip", {}),
    )


def _moco(size, lowest, saturation):
    return (
        _torch_crop(size, lowest),
        ("color_jitter", dict(brightness=0.4, contrast=0.4, saturation=saturation, hue=0.1, p=0.8, style="torch")),
        ("grayscale", dict(p=0.2)),
    )


def _dino(size, small, crops, border, blur, blurred):
    def view(size, lowest, highest, p, *more):
        return (
            _torch_crop(size, lowest, highest, method="bicubic"),
            ("flip", dict(p=0.5)),
            ("color_jitter", dict(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1, p=0.8, style="torch")),
            ("grayscale", dict(p=0.2)),
            blur(size, p), *more, IMAGENET,
        )
    first, second, local = blurred
    return (view(size, border, 1.0, first),
            view(size, border, 1.0, second, ("solarize", dict(p=0.2, threshold=128 / 255))),
            *(view(small, 0.05, border, local),) * crops)


def _torch_crop(size, lowest, highest=1.0, method="bilinear"):
    return ("random_resized_crop", dict(size=size, area=(lowest, highest), ratio=(3 / 4, 4 / 3), method=method,
                                        antialias=True, sampling="torch"))


def _blur(size, p):
    return ("blur", dict(kernel=2 * (size // 10 // 2) + 1, p=p, sigma=(0.1, 2.0)))


def _torch_blur(size, p):
    return ("blur", dict(kernel=2 * (size // 10 // 2) + 1, p=p, sigma=(0.1, 2.0), padding="reflect"))


def _wide_blur(size, p):
    """23 taps, or as many as an image has: more than five sigmas to each side."""
    return ("blur", dict(kernel=min(23, size - 1 - size % 2), p=p, sigma=(0.1, 2.0), padding="reflect"))
