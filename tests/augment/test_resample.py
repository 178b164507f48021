"""Crops as matrix products against the originals' numbers, the definition in float64, and each other."""
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simclr_jax.augment import resample, stage
from simclr_jax.augment.kinds import Spatial

DATA = pathlib.Path(__file__).parents[1] / "data"


def crops(name):
    """[(images f32[1, H, W, 3], case, output [1, S, S, 3])]"""
    z = np.load(DATA / f"{name}.npz")
    last = (lambda x: x.transpose(0, 2, 3, 1)) if name.startswith("torch") else (lambda x: x)
    every = json.loads(str(z["meta"]))["cases"]
    return [pytest.param(last(z["images"]), c, last(z[f"c{i}/out_f32"]), id=f"{name}-{i}-{c['kind']}")
            for i, c in enumerate(every) if "crop" in c["kind"]]


def to(size, method="bicubic", antialias=False, clip=False):
    rows, columns = size if isinstance(size, (tuple, list)) else (size, size)
    return Spatial(0, None, lambda h, w: (rows, columns), None, method, antialias, clip)


def cut(op, images, *windows):
    windows = jnp.tile(jnp.asarray(windows, jnp.float32), (len(images) // len(windows), 1))
    return np.asarray(jax.jit(lambda x, w: stage.crop(op, x, w))(images, windows))


def middle(proportion):
    """Rounded sides, offsets rounded up: SimCLR's central crop."""
    def windows(u, height, width, xp):
        side = round(proportion * min(height, width))
        return xp.asarray([(height - side + 1) // 2, (width - side + 1) // 2, side, side])
    return Spatial(0, windows, lambda h, w: (h, w), None, "none", False, False)


@pytest.mark.parametrize("x,case,want", crops("simclr_augment") + crops("torchvision_augment"))
def test_original(x, case, want):
    if case["kind"] == "center_crop_0.875_bicubic":
        whole = middle(0.875)
        window = whole.windows(None, 32, 40, np)
        part = cut(whole, x, window)
        np.testing.assert_array_equal(part, x[:, 2:30, 6:34])
        got = cut(to(case["size"]), part, [0, 0, 28, 28])
    elif "top" in case:
        op = to(case["size"], case["mode"], case["antialias"])
        got = cut(op, x, [case[k] for k in ("top", "left", "height", "width")])
        if case["mode"] == "bicubic" and not case["antialias"]:
            # PyTorch's cubic has a = -.75 here and -.5 with antialias; TensorFlow's, hence ours, always -.5.
            assert np.abs(got - want).max() > 1e-2
            return
    else:
        got = cut(to(case["size"]), x, [case[k] for k in "yxhw"])
    np.testing.assert_allclose(got, want, atol=2e-5)


def line(x, start, length, out, method, antialias):
    """f64[n, ...] -> f64[out, ...]: tf.image.resize's rule for one axis, a tap at a time."""
    scale, made = length / out, []
    for i in range(out):
        centre, total, weight = (i + 0.5) * scale - 0.5, 0.0, 0.0
        if method == "bicubic" and not antialias:  # TensorFlow's table of 1024 steps
            centre = np.floor(centre) + np.round((centre - np.floor(centre)) * 1024) / 1024
        for j in range(len(x)):
            if not -0.5 <= j - start <= length - 0.5:
                continue
            t = abs(j - start - centre) / (max(scale, 1) if antialias else 1)
            if method == "bilinear":
                w = max(1 - t, 0)
            else:
                w = 1.5 * t**3 - 2.5 * t**2 + 1 if t < 1 else -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2 if t < 2 else 0
            total, weight = total + w * x[j], weight + w
        made.append(total / weight)
    return np.array(made)


WINDOWS = [[0, 0, 20, 24], [19, 23, 1, 1], [0, 0, 1, 24], [5, 6, 13, 10], [8, 12, 12, 12], [0, 20, 20, 4], [3, 3, 3, 2],
           [1.25, 2.5, 10.5, 7.75], [0.4, 0.2, 19.3, 23.8], [18.6, 0, 1.4, 5.5], [3.5, 4.5, 4, 6]]


@pytest.mark.parametrize("method", ["bicubic", "bilinear"])
@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("size", [5, pytest.param(16, marks=pytest.mark.slow), 31])
def test_windows_of_all_kinds_follow_the_definition(method, antialias, size):
    images = np.random.default_rng(0).integers(0, 256, (len(WINDOWS), 20, 24, 3), dtype=np.uint8)
    got = cut(to(size, method, antialias), images, *WINDOWS)
    for image, window, row in zip(images, WINDOWS, got):
        y, x, h, w = window
        want = line(image / 255, y, h, size, method, antialias).transpose(1, 0, 2)
        want = line(want, x, w, size, method, antialias).transpose(1, 0, 2)
        np.testing.assert_allclose(row, want, atol=1e-5, err_msg=str(window))


def test_bytes_and_floats_and_clipping():
    images = np.random.default_rng(0).integers(0, 2, (4, 9, 9, 3), dtype=np.uint8) * 255
    window = [2, 2, 4, 4]
    free, held = cut(to(32), images, window), cut(to(32, clip=True), images, window)
    assert free.min() < -0.05 and free.max() > 1.05  # bicubic overshoots at such edges
    np.testing.assert_array_equal(held, np.clip(free, 0, 1))
    np.testing.assert_allclose(cut(to(32), (images / 255).astype(np.float32), window), free, atol=1e-6)
    assert free.dtype == np.float32 and free.shape == (4, 32, 32, 3)


def test_other_targets():
    x = np.random.default_rng(0).random((1, 12, 18, 3), np.float32)
    assert cut(to((6, 9)), x, [0, 0, 12, 18]).shape == (1, 6, 9, 3)
    np.testing.assert_allclose(cut(to((12, 18)), x, [0, 0, 12, 18]), x, atol=1e-6)  # nothing asked, nothing changed
    assert resample.shape(middle(0.5), 12, 18) == (6, 6)


def test_a_window_of_no_size_is_a_pixel():
    """Squeezing an image may leave less than a pixel of a window: it is then a pixel long from where it starts."""
    x = np.random.default_rng(0).random((1, 8, 8, 3), np.float32)
    np.testing.assert_allclose(cut(to(3), x, [4.2, 2.6, 0.05, 0.05])[0], np.tile(x[0, 4, 3], (3, 3, 1)), atol=1e-6)


def test_weights_of_f32_sum_to_one_and_stay_in_the_window():
    make = jax.jit(jax.vmap(lambda s, n: resample.weights(s, n, 20, 16, "bicubic", True)))
    start, length = np.array(WINDOWS, np.float32)[:, 0], np.array(WINDOWS, np.float32)[:, 2]
    w = np.asarray(make(start, length))
    np.testing.assert_allclose(w.sum(-1), 1, atol=1e-6)
    at = np.arange(20) - start[:, None]
    outside = (at < -0.5) | (at > length[:, None] - 0.5)
    assert (w.transpose(0, 2, 1)[outside] == 0).all() and outside.any()
