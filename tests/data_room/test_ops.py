"""Each op against the public implementation it follows, and its draw against the law it claims."""
import json
import pathlib

import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from simclr_jax.data import random
from simclr_jax.data.ops import color, filters, geometry, resample, spatial

DATA = pathlib.Path(__file__).parent.parent / "data"
IMAGENET = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def oracle(name):
    """(images f32[n, H, W, 3], [(case, output)]) of a file of tests/data, channels last."""
    z = np.load(DATA / f"{name}.npz")
    last = (lambda x: x.transpose(0, 2, 3, 1)) if name.startswith("torch") else (lambda x: x)
    cases = json.loads(str(z["meta"]))["cases"]
    return last(z["images"]), [(case, last(z[f"c{i}/out_f32"])) for i, case in enumerate(cases)]


def cases(name):
    return [pytest.param(case, id=f"{i}-{case['kind']}") for i, (case, _) in enumerate(oracle(name)[1])]


def expected(name, case):
    images, rows = oracle(name)
    return images, next(out for c, out in rows if c == case)


def planar(f, x, *args):
    """Applies a planar function to f32[n, H, W, 3]."""
    return tf.transpose(f(tf.transpose(tf.constant(x), [0, 3, 1, 2]), *args), [0, 2, 3, 1]).numpy()


def numbers(n, k, seed=0):
    return random.uniform(random.fold_in(random.seed_key(seed), tf.range(n)), k)


def crop(box, size, **kwargs):
    return spatial.random_resized_crop(size=size, clip=False, **kwargs), np.array([box], np.int32)


def pinned(op, x, order, factors):
    """A jitter of ours with everything that is drawn given."""
    params = {"order": tf.constant(order, shape=[1, 4]), "factors": tf.constant(factors, tf.float32, [1, 4])}
    return planar(op.apply, x, params)


@pytest.mark.parametrize("case", cases("simclr_augment"))
def test_simclr(case):
    x, want = expected("simclr_augment", case)
    one = {"brightness_simclrv2": color.gain, "contrast": color.channel_contrast, "saturation": color.hsv_saturation,
           "hue": color.rotate_hue}
    kind = case["kind"]
    if kind in one:
        got = planar(one[kind], x, tf.constant([case.get("factor", case.get("delta"))]))
    elif kind == "jitter_chain":
        jitter = color.color_jitter(brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2)
        got = pinned(jitter, x, case["perm"], [case[k] for k in ("brightness", "contrast", "saturation", "hue")])
    elif kind == "to_grayscale":
        got = planar(color.grayscale().apply, x, {})
    elif kind == "gaussian_blur":
        blur = filters.blur(kernel=2 * (case["kernel_size"] // 2) + 1)
        square = x[:, :, :32]                          # our views are square; the 8 columns cut off are compared less
        got = planar(blur.apply, square, {"sigma": tf.constant([case["sigma"]])})
        reach = 32 - case["kernel_size"] // 2          # the cut moves the zeros' border: compare what does not see it
        got, want = got[:, :, :reach], want[:, :, :reach]
    elif kind == "crop_bicubic":
        op, window = crop([case[k] for k in "yxhw"], case["size"])
        np.testing.assert_allclose(resample.one(op, tf.constant(x[0]), window[0])[None], want, atol=2e-5)
        got = resample.batch(op, tf.constant(x), window).numpy()
    else:
        assert kind == "center_crop_0.875_bicubic"
        op, then = spatial.center_crop(proportion=0.875), spatial.resize(size=case["size"][0], clip=False)
        cut = resample.one(op, tf.constant(x[0]), op.draw(tf.zeros([1, 0]), 32, 40)[0])
        assert cut.shape == (28, 28, 3)
        got = resample.one(then, cut, tf.constant([0, 0, 28, 28]))[None]
    np.testing.assert_allclose(got, want, atol=1e-4 if kind in ("hue", "saturation", "jitter_chain") else 2e-5)


@pytest.mark.parametrize("case", cases("torchvision_augment"))
def test_torchvision(case):
    x, want = expected("torchvision_augment", case)
    one = {"brightness": color.gain, "contrast": color.gray_contrast, "saturation": color.gray_saturation,
           "hue": color.rotate_hue}
    plain = {"grayscale": lambda: color.grayscale(), "solarize": lambda: color.solarize(threshold=case["threshold"]),
             "hflip": lambda: geometry.flip(), "normalize_imagenet": lambda: color.normalize(**IMAGENET)}
    kind = case["kind"]
    if kind in one:
        got = np.clip(planar(one[kind], x, tf.constant([case["factor"]])), 0, 1)
    elif kind in plain:
        got = planar(plain[kind]().apply, x, {})
    elif kind == "gaussian_blur":
        rows, side = 36 - case["kernel"] // 2, 30      # square part of 36 x 30, away from the cut
        blur = filters.blur(kernel=case["kernel"], padding="reflect")
        got = planar(blur.apply, x[:, :side], {"sigma": tf.constant([case["sigma"]])})[:, :rows - 6]
        want = want[:, :rows - 6]
    else:
        op, window = crop([case[k] for k in ("top", "left", "height", "width")], case["size"], method=case["mode"],
                          antialias=case["antialias"])
        if case["mode"] == "bicubic" and not case["antialias"]:
            # PyTorch's cubic has a = -.75 here and -.5 with antialias; TensorFlow's, hence ours, always -.5.
            assert np.abs(resample.batch(op, tf.constant(x), window) - want).max() > 1e-2
            return
        np.testing.assert_allclose(resample.one(op, tf.constant(x[0]), window[0])[None], want, atol=2e-5)
        got = resample.batch(op, tf.constant(x), window).numpy()
    np.testing.assert_allclose(got, want, atol=1e-4 if kind in ("hue", "saturation") else 2e-5)


@pytest.mark.parametrize("case", cases("byol_augment"))
def test_byol(case):
    x, want = expected("byol_augment", case)
    if case["kind"] == "to_grayscale":
        got = planar(color.grayscale().apply, x, {})
    else:
        f = color.add if case["kind"] == "brightness" else color.channel_contrast
        got = planar(f, x, tf.constant([case.get("delta", case.get("factor"))]))
    np.testing.assert_allclose(got, want, atol=2e-5)


@pytest.mark.parametrize("method,antialias", [("bicubic", False), ("bilinear", False), ("bicubic", True),
                                              ("bilinear", True)])
@pytest.mark.parametrize("size", [8, 32, 45])
def test_a_batch_of_crops_equals_tf_image_resize(method, antialias, size):
    images = np.random.default_rng(0).integers(0, 256, (12, 32, 40, 3), dtype=np.uint8)
    windows = np.array([[0, 0, 32, 40], [31, 39, 1, 1], [0, 0, 1, 40], [5, 6, 20, 13], [12, 20, 20, 20],
                        [0, 30, 32, 10], [3, 3, 3, 2], [20, 1, 12, 39], [0, 0, 8, 8], [24, 32, 8, 8],
                        [7, 9, 17, 23], [1, 0, 2, 4]])
    op = spatial.random_resized_crop(size=size, method=method, antialias=antialias)
    got = resample.batch(op, tf.constant(images), tf.constant(windows, tf.int32))
    for i, (y, x, h, w) in enumerate(windows):
        want = tf.image.resize(images[i, y:y + h, x:x + w], [size, size], method, antialias=antialias) / 255
        np.testing.assert_allclose(got[i], np.clip(want, 0, 1), atol=1e-5, err_msg=str(windows[i]))


def tensorflows_windows(n, height, width):
    def one(i):
        begin, extent, _ = tf.image.stateless_sample_distorted_bounding_box(
            [height, width, 3], tf.constant([[[0.0, 0.0, 1.0, 1.0]]]), seed=tf.stack([i, 1]), min_object_covered=0.1,
            aspect_ratio_range=(3 / 4, 4 / 3), area_range=(0.08, 1.0), max_attempts=100,
            use_image_if_no_bounding_boxes=True)
        return tf.concat([begin[:2], extent[:2]], 0)
    return tf.function(lambda: tf.map_fn(one, tf.range(n)))().numpy()


def features(windows, height, width):
    y, x, h, w = np.asarray(windows, np.float64).T
    with np.errstate(invalid="ignore"):
        return {"height": h / height, "area": h * w / (height * width), "ratio": w / h,
                "y": (y / (height - h))[h < height], "x": (x / (width - w))[w < width]}


@pytest.mark.parametrize("height,width", [(375, 500), (600, 240)])
def test_tf_sampling_has_tensorflows_law(height, width):
    n = 6000
    theirs = features(tensorflows_windows(n, height, width), height, width)
    op = spatial.random_resized_crop(size=8, sampling="tf")
    ours = features(op.draw(numbers(n, op.uniforms), height, width), height, width)
    for name in theirs:
        assert stats.ks_2samp(theirs[name], ours[name]).pvalue > 1e-3, name
    # The test sees what it is for: torchvision's law (area uniform) on the same ranges is far away.
    other = spatial.random_resized_crop(size=8, sampling="torch", area=(0.1, 1.0))
    other = features(other.draw(numbers(n, other.uniforms), height, width), height, width)
    assert stats.ks_2samp(theirs["area"], other["area"]).pvalue < 1e-12
    assert ours["area"].min() >= 0.1


@pytest.mark.parametrize("height,width", [(375, 500), (100, 400)])
def test_torch_sampling_has_torchvisions_law(height, width):
    """Against RandomResizedCrop.get_params written out as its documentation tells it, one image at a time."""
    rng, n, want = np.random.default_rng(5), 6000, []
    for _ in range(n):
        for _ in range(10):
            target, ratio = height * width * rng.uniform(0.2, 1), np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
            w, h = round((target * ratio) ** 0.5), round((target / ratio) ** 0.5)
            if 0 < w <= width and 0 < h <= height:
                want.append((rng.integers(0, height - h + 1), rng.integers(0, width - w + 1), h, w))
                break
        else:
            w = round(height * 4 / 3)                  # both test images are wider than 4:3
            want.append((0, (width - w) // 2, height, w))
    op = spatial.random_resized_crop(size=8, sampling="torch", area=(0.2, 1.0))
    got = op.draw(numbers(n, op.uniforms, seed=2), height, width).numpy()
    a, b = features(want, height, width), features(got, height, width)
    for name in a:
        assert stats.ks_2samp(a[name], b[name]).pvalue > 1e-3, name
    whole = [np.mean(np.asarray(v)[:, 2] == height) for v in (want, got)]
    assert abs(whole[0] - whole[1]) < 0.03


def test_byol_sampling():
    """BYOL's one try, its sides cut to the image: w = min(round(sqrt(area * ratio)), W), offsets reach the border."""
    op = spatial.random_resized_crop(size=8, sampling="byol")
    assert op.uniforms == 4
    u = numbers(6000, 4).numpy().astype(np.float64)
    y, x, h, w = op.draw(tf.constant(u, tf.float32), 300, 500).numpy().T
    target, ratio = 150000 * (0.08 + 0.92 * u[:, 0]), (3 / 4) * (16 / 9) ** u[:, 1]
    want_h = np.minimum(np.round(np.sqrt(target / ratio)), 300)
    want_w = np.minimum(np.round(np.sqrt(target * ratio)), 500)
    assert (want_h == 300).mean() > 0.2 and np.mean((h != want_h) | (w != want_w)) < 2e-3
    np.testing.assert_allclose(y, np.floor(u[:, 2] * (301 - h)), atol=1)
    assert (y + h == 300).any() and (x + w == 500).any() and (y + h <= 300).all() and (x + w <= 500).all()


@pytest.mark.parametrize("sampling", ["tf", "torch", "byol"])
@pytest.mark.parametrize("height,width", [(1, 1), (1, 9), (7, 500), (2000, 30)])
def test_windows_lie_in_the_image(sampling, height, width):
    op = spatial.random_resized_crop(size=8, sampling=sampling)
    y, x, h, w = op.draw(numbers(500, op.uniforms), height, width).numpy().T
    assert (y >= 0).all() and (x >= 0).all() and (h > 0).all() and (w > 0).all()
    assert (y + h <= height).all() and (x + w <= width).all()


def test_jitter_orders_are_uniform_and_factors_keep_their_ranges():
    op = color.color_jitter(brightness=0.8, contrast=0.8, saturation=1.6, hue=0.2, strength=0.5)
    drawn = op.draw(numbers(9600, op.uniforms), 8)
    seen, counts = np.unique(drawn["order"], axis=0, return_counts=True)
    assert len(seen) == 24 and (np.sort(seen, axis=1) == np.arange(4)).all()
    assert stats.chisquare(counts).pvalue > 1e-3
    low, high = np.array([0.6, 0.6, 0.2, -0.1]), np.array([1.4, 1.4, 1.8, 0.1])
    for k in range(4):
        assert stats.kstest(drawn["factors"][:, k], "uniform", (low[k], high[k] - low[k])).pvalue > 1e-3
    corner = color.color_jitter(brightness=1.5, contrast=0, saturation=0, hue=0).draw(tf.zeros([1, 5]), 8)
    assert corner["factors"][0, 0] == 0                # SimCLR: max(1 - b, 0)


def test_jitter_of_a_mixed_batch_equals_its_rows_one_op_at_a_time():
    x = np.random.default_rng(0).random((40, 3, 6, 6), np.float32)
    op = color.color_jitter(brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2)
    params = op.draw(numbers(40, op.uniforms), 6)
    got = op.apply(tf.constant(x), params).numpy()
    ops = (color.gain, color.channel_contrast, color.hsv_saturation, color.rotate_hue)
    for i in range(40):
        row = tf.constant(x[i:i + 1])
        for k in params["order"][i].numpy():
            row = tf.clip_by_value(ops[k](row, params["factors"][i:i + 1, k]), 0.0, 1.0)
        np.testing.assert_array_equal(got[i:i + 1], row)


def test_jitter_leaves_out_what_has_no_range():
    x = np.random.default_rng(1).random((4, 3, 5, 5), np.float32)
    op = color.color_jitter(brightness=0, contrast=0, saturation=0, hue=0)
    np.testing.assert_array_equal(op.apply(tf.constant(x), op.draw(numbers(4, 5), 5)), x)


def test_affine():
    x = np.random.default_rng(0).random((1, 9, 9, 3), np.float32)

    def apply(u, **kwargs):
        op = geometry.affine(**kwargs)
        return planar(op.apply, x, op.draw(tf.constant([u]), 9))

    half = [0.5] * 5
    np.testing.assert_allclose(apply(half, degrees=90, translate=0.5, shear=30), x, atol=1e-6)
    np.testing.assert_allclose(apply([1.0] + half[1:], degrees=90)[0], np.rot90(x[0]), atol=1e-5)
    moved = apply(half[:3] + [1.0, 0.5], translate=2 / 9, fill=0.25)[0]
    np.testing.assert_allclose(moved[:, 2:], x[0, :, :-2], atol=1e-6)
    np.testing.assert_allclose(moved[:, :2], 0.25, atol=1e-6)
    down = apply(half[:4] + [1.0], translate=1 / 9)[0]
    np.testing.assert_allclose(down[1:], x[0, :-1], atol=1e-6)
    zoomed = apply([0.5, 0.5, 1.0, 0.5, 0.5], scale=(0.5, 2.0))[0]
    np.testing.assert_allclose(zoomed[4::2, 4::2], x[0, 4:7, 4:7], atol=1e-6)
    sheared = apply([0.5, 1.0, 0.5, 0.5, 0.5], shear=45)[0]    # one pixel more a row, the top to the right
    for row in range(9):
        by = 4 - row
        np.testing.assert_allclose(sheared[row, max(by, 0):9 + min(by, 0)], x[0, row, max(-by, 0):9 + min(-by, 0)],
                                   atol=1e-5)


def test_affine_is_shear_then_rotation_then_zoom_then_shift():
    u = numbers(50, 5, seed=4).numpy().astype(np.float64)
    op = geometry.affine(degrees=40, translate=0.2, scale=(0.5, 2.0), shear=30)
    got = op.draw(tf.constant(u, tf.float32), 17)["map"].numpy()
    signed = 2 * u - 1
    for i in range(50):
        angle, slant = np.radians(40 * signed[i, 0]), np.radians(30 * signed[i, 1])
        middle = np.array([[1, 0, 8], [0, 1, 8], [0, 0, 1.0]])
        shift = np.array([[1, 0, 3.4 * signed[i, 3]], [0, 1, 3.4 * signed[i, 4]], [0, 0, 1]])
        zoom = np.diag([0.5 + 1.5 * u[i, 2], 0.5 + 1.5 * u[i, 2], 1])
        turn = np.array([[np.cos(angle), np.sin(angle), 0], [-np.sin(angle), np.cos(angle), 0], [0, 0, 1]])  # y is down
        shear = np.array([[1, -np.tan(slant), 0], [0, 1, 0], [0, 0, 1]])
        want = np.linalg.inv(shift @ middle @ zoom @ turn @ shear @ np.linalg.inv(middle))
        np.testing.assert_allclose(got[i], want.ravel()[:8], atol=2e-5)


def test_erase():
    op = geometry.erase(area=(0.1, 0.3), ratio=(0.5, 2.0), fill=0.5)
    out = op.apply(tf.ones([3000, 3, 30, 30]), op.draw(numbers(3000, 4), 30)).numpy()
    gone = out[:, 0] == 0.5
    assert (out[:, 1] == out[:, 0]).all() and set(np.unique(out)) == {0.5, 1.0}
    share = gone.mean(axis=(1, 2))
    assert 0.08 < share.min() and share.max() < 0.33 and abs(share.mean() - 0.2) < 0.005
    tall, wide = gone.any(axis=2).sum(axis=1), gone.any(axis=1).sum(axis=1)
    np.testing.assert_array_equal(tall * wide, gone.sum(axis=(1, 2)))      # one box
    assert abs(np.log(tall / wide).mean()) < 0.03 and (tall / wide).max() < 2.3
    assert gone[:, 0].any() and gone[:, -1].any() and gone[:, :, 0].any() and gone[:, :, -1].any()


def test_intensity_and_sigma_keep_their_ranges():
    op = color.intensity(contrast=(0.5, 2.0), brightness=(-0.25, 0.5))
    drawn = op.draw(numbers(4000, 2), 8)
    assert stats.kstest(drawn["gain"], "uniform", (0.5, 1.5)).pvalue > 1e-3
    assert stats.kstest(drawn["bias"], "uniform", (-0.25, 0.75)).pvalue > 1e-3
    x = np.array([0.0, 0.2, 0.9], np.float32).reshape(1, 3, 1, 1)
    got = op.apply(tf.constant(x), {"gain": tf.constant([2.0]), "bias": tf.constant([-0.1])}).numpy().ravel()
    np.testing.assert_allclose(got, [0.0, 0.3, 1.0], atol=1e-6)
    sigma = filters.blur(kernel=3).draw(numbers(4000, 1), 8)["sigma"]
    assert stats.kstest(sigma, "uniform", (0.1, 1.9)).pvalue > 1e-3
