"""Other ways to make two views of the SimCLR recipe, for benchmarks/input.py.

A contestant is (task, images, batch, options) -> (iterator of the views of batches, versions). images: JPEG files as
bytes, or u8[n,32,32,3]. None stands for a batch that holds no views.
"""
import functools
import io
import os
import pathlib
import sys

SIZE, STRENGTH = {"imagenet": 224, "cifar": 32}, {"imagenet": 1.0, "cifar": 0.5}


def cores():
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _tensorflow():
    os.environ.update(TF_CPP_MIN_LOG_LEVEL="3")
    import tensorflow as tf
    return tf


def _in_parallel(tf, images, function, batch):
    data = tf.data.Dataset.from_tensor_slices(images).shuffle(len(images)).repeat()
    data = data.map(function, num_parallel_calls=tf.data.AUTOTUNE, deterministic=False)
    options = tf.data.Options()
    options.threading.private_threadpool_size = cores()
    data = data.batch(batch, drop_remainder=True).prefetch(2).with_options(options)
    return data.as_numpy_iterator(), [f"tensorflow {tf.__version__}"]


def decode_alone(task, images, batch, options):
    tf = _tensorflow()
    made, versions = _in_parallel(tf, images, lambda data: tf.io.decode_jpeg(data, channels=3)[0, 0], batch)
    return (None for _ in made), versions


def simclr(task, images, batch, options):
    tf = _tensorflow()
    size, strength = SIZE[task], STRENGTH[task]
    view = _their_view(tf, options["simclr_dir"], size, strength, task == "imagenet") if options["simclr_dir"] else \
        functools.partial(_view, tf, size=size, strength=strength, blur=task == "imagenet")

    def two(image):
        image = tf.io.decode_jpeg(image, channels=3) if task == "imagenet" else image
        return tf.concat([view(image), view(image)], -1)
    return _in_parallel(tf, images, two, batch)


def _their_view(tf, folder, size, strength, blur):
    folder = pathlib.Path(folder)
    sys.path.insert(0, str(folder / "tf2" if (folder / "tf2").is_dir() else folder))
    import data_util

    def view(image):
        image = data_util.preprocess_image(image, size, size, is_training=True, color_jitter_strength=strength)
        return tf.clip_by_value(data_util.random_blur(image, size, size, p=0.5), 0.0, 1.0) if blur else image
    return view


def _view(tf, image, size, strength, blur):
    """One view as google-research/simclr tf2/data_util.py makes it from a decoded image."""
    def sometimes(p, function, x):
        return tf.cond(tf.random.uniform([]) < p, lambda: function(x), lambda: x)

    def jitter(x):
        b, h = 0.8 * strength, 0.2 * strength
        ops = [lambda x: x * tf.random.uniform([], max(0.0, 1 - b), 1 + b),
               lambda x: tf.image.random_contrast(x, 1 - b, 1 + b),
               lambda x: tf.image.random_saturation(x, 1 - b, 1 + b), lambda x: tf.image.random_hue(x, h)]
        order = tf.random.shuffle(tf.range(4))
        for i in range(4):
            x = tf.switch_case(order[i], [functools.partial(op, x) for op in ops])
            x = tf.clip_by_value(x, 0.0, 1.0)
        return x

    def blurred(x):
        radius, sigma = size // 10 // 2, tf.random.uniform([], 0.1, 2.0)
        taps = tf.exp(-tf.range(-radius, radius + 1, dtype=tf.float32) ** 2 / (2 * sigma ** 2))
        taps = tf.tile(tf.reshape(taps / tf.reduce_sum(taps), [-1, 1, 1, 1]), [1, 1, 3, 1])
        x = tf.nn.depthwise_conv2d(x[None], tf.transpose(taps, [1, 0, 2, 3]), [1, 1, 1, 1], "SAME")
        return tf.nn.depthwise_conv2d(x, taps, [1, 1, 1, 1], "SAME")[0]

    x = tf.image.convert_image_dtype(image, tf.float32)
    begin, extent, _ = tf.image.sample_distorted_bounding_box(
        tf.shape(x), tf.constant([[[0.0, 0.0, 1.0, 1.0]]]), min_object_covered=0.1, aspect_ratio_range=(3 / 4, 4 / 3),
        area_range=(0.08, 1.0), max_attempts=100, use_image_if_no_bounding_boxes=True)
    x = tf.image.resize(tf.slice(x, begin, extent), [size, size], "bicubic")
    x = tf.image.random_flip_left_right(x)
    x = sometimes(0.8, jitter, x)
    x = sometimes(0.2, lambda x: tf.tile(tf.image.rgb_to_grayscale(x), [1, 1, 3]), x)
    x = tf.clip_by_value(tf.ensure_shape(x, [size, size, 3]), 0.0, 1.0)
    return tf.clip_by_value(sometimes(0.5, blurred, x), 0.0, 1.0) if blur else x


class _Pairs:
    """A torch data set without end: two views of an image in turn."""

    def __init__(self, images, decode, view):
        self.images, self.decode, self.view = images, decode, view

    def __len__(self):
        return 2 ** 20

    def __getitem__(self, i):
        image = self.decode(self.images[i % len(self.images)])
        return self.view(image), self.view(image)


def _loader(images, decode, view, batch):
    import torch
    made = torch.utils.data.DataLoader(_Pairs(images, decode, view), batch_size=batch, shuffle=True, drop_last=True,
                                       num_workers=cores(), multiprocessing_context="fork")
    return iter(made), [f"torch {torch.__version__}"]


def torchvision(task, images, batch, options):
    from PIL import Image
    from torchvision import __version__
    from torchvision import transforms as t
    s = STRENGTH[task]
    ops = [t.RandomResizedCrop(SIZE[task], scale=(0.08, 1.0)), t.RandomHorizontalFlip(),
           t.RandomApply([t.ColorJitter(0.8 * s, 0.8 * s, 0.8 * s, 0.2 * s)], p=0.8), t.RandomGrayscale(p=0.2)]
    if task == "imagenet":
        ops.append(t.RandomApply([t.GaussianBlur(23, sigma=(0.1, 2.0))], p=0.5))
    view = t.Compose([*ops, t.ToTensor()])
    decode = Image.fromarray if task == "cifar" else lambda data: Image.open(io.BytesIO(data)).convert("RGB")
    made, versions = _loader(images, decode, view, batch)
    return made, [*versions, f"torchvision {__version__}"]


def albumentations(task, images, batch, options):
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    import albumentations as a
    import cv2
    import simplejpeg
    import torch
    cv2.setNumThreads(0)  # the loader's processes share out the cores
    size, s = SIZE[task], STRENGTH[task]
    factor = (1 - 0.8 * s, 1 + 0.8 * s)
    ops = [a.RandomResizedCrop(size=(size, size), scale=(0.08, 1.0)), a.HorizontalFlip(p=0.5),
           a.ColorJitter(factor, factor, factor, (-0.2 * s, 0.2 * s), p=0.8), a.ToGray(p=0.2)]
    if task == "imagenet":
        ops.append(a.GaussianBlur(blur_limit=(23, 23), sigma_limit=(0.1, 2.0), p=0.5))
    ops = a.Compose(ops)

    def view(image):
        return torch.from_numpy(ops(image=image)["image"]).permute(2, 0, 1).to(torch.float32).div_(255)
    decode = (lambda image: image) if task == "cifar" else lambda data: simplejpeg.decode_jpeg(data, "RGB")
    made, versions = _loader(images, decode, view, batch)
    return made, [*versions, f"albumentations {a.__version__}", f"simplejpeg {simplejpeg.__version__}"]
