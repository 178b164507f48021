"""Where crops are cut: the laws that they claim, alike in NumPy and in JAX; and the host's way of cutting and resizing."""
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from simclr_jax import keys
from simclr_jax.augment import spatial
from simclr_jax.data import resize
from simclr_jax.errors import UsageError

DATA = pathlib.Path(__file__).parents[1] / "data"


def numbers(n, k, seed=0):
    return keys.uniform(keys.fold_in(keys.seed_key(seed), np.arange(n)), k)


def windows(op, n, height, width, seed=0):
    return op.windows(numbers(n, op.uniforms, seed), height, width, np)


def crop(**kwargs):
    return spatial.random_resized_crop(size=8, **kwargs)


def tensorflows_windows(n, height, width):
    def one(i):
        begin, extent, _ = tf.image.stateless_sample_distorted_bounding_box(
            [height, width, 3], tf.constant([[[0.0, 0.0, 1.0, 1.0]]]), seed=tf.stack([i, 1]), min_object_covered=0.1,
            aspect_ratio_range=(3 / 4, 4 / 3), area_range=(0.08, 1.0), max_attempts=100,
            use_image_if_no_bounding_boxes=True)
        return tf.concat([begin[:2], extent[:2]], 0)
    return tf.function(lambda: tf.map_fn(one, tf.range(n)))().numpy()


def torchvisions_windows(n, height, width, area):
    """RandomResizedCrop.get_params written out as its documentation tells it, one image at a time."""
    rng, made = np.random.default_rng(5), []
    for _ in range(n):
        for _ in range(10):
            target, ratio = height * width * rng.uniform(*area), np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
            w, h = round((target * ratio) ** 0.5), round((target / ratio) ** 0.5)
            if 0 < w <= width and 0 < h <= height:
                made.append((rng.integers(0, height - h + 1), rng.integers(0, width - w + 1), h, w))
                break
        else:
            w = round(height * 4 / 3)  # the images here are wider than 4:3
            made.append((0, (width - w) // 2, height, w))
    return made


def features(windows, height, width):
    y, x, h, w = np.asarray(windows, np.float64).T
    with np.errstate(invalid="ignore"):
        return {"height": h / height, "area": h * w / (height * width), "ratio": w / h,
                "y": (y / (height - h))[h < height], "x": (x / (width - w))[w < width]}


def unlike(a, b):
    """p of the chi-square test that areas and ratios of the two have one joint histogram."""
    sides = [np.quantile(np.concatenate([a[name], b[name]]), np.linspace(0, 1, 9)[1:-1]) for name in ("area", "ratio")]
    counts = [np.bincount(np.searchsorted(sides[0], f["area"]) * 8 + np.searchsorted(sides[1], f["ratio"]), minlength=64)
              for f in (a, b)]
    counts = np.array(counts)[:, np.sum(counts, axis=0) >= 20]
    return stats.chi2_contingency(counts).pvalue


@pytest.mark.parametrize("height,width", [(375, 500), (600, 240)])
def test_tf_sampling_has_tensorflows_law(height, width):
    n = 6000
    theirs = features(tensorflows_windows(n, height, width), height, width)
    ours = features(windows(crop(sampling="tf"), n, height, width), height, width)
    for name in theirs:
        assert stats.ks_2samp(theirs[name], ours[name]).pvalue > 1e-3, name
    assert unlike(theirs, ours) > 1e-3
    # The tests see what they are for: torchvision's law (area uniform) on the same ranges is far away.
    other = features(windows(crop(sampling="torch", area=(0.1, 1.0)), n, height, width), height, width)
    assert stats.ks_2samp(theirs["area"], other["area"]).pvalue < 1e-12 and unlike(theirs, other) < 1e-12
    assert ours["area"].min() >= 0.1


@pytest.mark.parametrize("height,width", [(375, 500), (100, 400)])
def test_torch_sampling_has_torchvisions_law(height, width):
    n = 6000
    want = features(torchvisions_windows(n, height, width, (0.2, 1.0)), height, width)
    got = features(windows(crop(sampling="torch", area=(0.2, 1.0)), n, height, width, seed=2), height, width)
    for name in want:
        assert stats.ks_2samp(want[name], got[name]).pvalue > 1e-3, name
    assert unlike(want, got) > 1e-3
    assert abs(np.mean(want["height"] == 1) - np.mean(got["height"] == 1)) < 0.03


def test_areas_and_ratios_have_the_shape_that_the_ranges_say():
    """Where every try fits, and sides are long enough for rounding not to count: areas uniform, log-ratios uniform."""
    seen = features(windows(crop(sampling="torch", area=(0.08, 0.5)), 50_000, 9000, 9000), 9000, 9000)
    assert stats.kstest(seen["area"], "uniform", (0.08, 0.42)).pvalue > 1e-3
    third = np.log(4 / 3)
    assert stats.kstest(np.log(seen["ratio"]), "uniform", (-third, 2 * third)).pvalue > 1e-3
    assert stats.kstest(seen["area"], "uniform", (0.08, 0.40)).pvalue < 1e-12
    assert abs(np.corrcoef(seen["area"], seen["ratio"])[0, 1]) < 0.02
    # TensorFlow's: ratios uniform and then heights, so that areas crowd at the small end.
    seen = features(windows(crop(sampling="tf", area=(0.08, 0.5), min_covered=0.0), 50_000, 9000, 9000), 9000, 9000)
    assert stats.kstest(seen["ratio"], "uniform", (3 / 4, 4 / 3 - 3 / 4)).pvalue > 1e-3
    low, high = np.sqrt(0.08), np.sqrt(0.5)
    assert stats.kstest((np.sqrt(seen["area"]) - low) / (high - low), "uniform").pvalue > 1e-3


@pytest.mark.parametrize("height,width", [(64, 48), (100, 300), (300, 100)])
def test_torch_sampling_takes_the_middle_where_nothing_fits(height, width):
    """The largest window within the ratios, centred: wide images lose their sides, tall ones top and bottom."""
    got = np.unique(windows(crop(sampling="torch", area=(1.0, 1.0), ratio=(0.9, 1.1)), 200, height, width), axis=0)
    h, w = min(height, round(width / 0.9)), min(width, round(height * 1.1))
    assert got.tolist() == [[(height - h) // 2, (width - w) // 2, h, w]]


def test_byol_sampling():
    """BYOL's one try, its sides cut to the image: w = min(round(sqrt(area * ratio)), W), offsets reach the border."""
    op = crop(sampling="byol")
    assert op.uniforms == 4
    u = numbers(6000, 4)
    y, x, h, w = op.windows(u, 300, 500, np).T
    u = u.astype(np.float64)
    target, ratio = 150000 * (0.08 + 0.92 * u[:, 0]), (3 / 4) * (16 / 9) ** u[:, 1]
    want_h = np.minimum(np.round(np.sqrt(target / ratio)), 300)
    want_w = np.minimum(np.round(np.sqrt(target * ratio)), 500)
    assert (want_h == 300).mean() > 0.2 and np.mean((h != want_h) | (w != want_w)) < 2e-3
    np.testing.assert_allclose(y, np.floor(u[:, 2] * (301 - h)), atol=1)
    assert (y + h == 300).any() and (x + w == 500).any() and (y + h <= 300).all() and (x + w <= 500).all()


@pytest.mark.parametrize("sampling", ["tf", "torch", "byol"])
@pytest.mark.parametrize("height,width", [(1, 1), (1, 9), (7, 500), (2000, 30)])
def test_windows_lie_in_the_image(sampling, height, width):
    op = crop(sampling=sampling)
    u = numbers(500, op.uniforms)
    u[0], u[1] = 0, 1 - 2.0**-23  # the ends of what is drawn
    for xp in (np, jnp):
        y, x, h, w = np.asarray(op.windows(u, height, width, xp)).T
        assert (y >= 0).all() and (x >= 0).all() and (h > 0).all() and (w > 0).all()
        assert (y + h <= height).all() and (x + w <= width).all()


SIZES = [(8, 8), (32, 32), (64, 48), (97, 1021), (375, 500), (600, 240), (1024, 1024)]


@pytest.mark.parametrize("sampling", ["tf", "torch", "byol"])
def test_numpy_and_jax_cut_the_same_windows(sampling):
    """100,000 rows of each size. XLA rounds a product and its sum in one, so that where a side or a place comes within
    an ulp of its limit, which is once in ten thousand rows of large images at most, it may be a pixel off."""
    op = crop(sampling=sampling)
    u = numbers(100_000, op.uniforms)
    compiled = jax.jit(lambda u, height, width: op.windows(u, height, width, jnp), static_argnums=(1, 2))
    for height, width in SIZES:
        host, device = op.windows(u, height, width, np), np.asarray(compiled(u, height, width))
        assert host.dtype == device.dtype == np.int32 and host.shape == device.shape == (100_000, 4)
        differ = (host != device).any(axis=1)
        assert differ.sum() <= (0 if max(height, width) <= 64 else 10), (height, width)
        assert np.abs(host - device).max() <= 1, (height, width)


@pytest.mark.parametrize("sampling", ["tf", "torch", "byol"])
def test_rows_may_each_have_an_image_of_their_own_size(sampling):
    op = crop(sampling=sampling)
    u, sizes = numbers(60, op.uniforms), np.random.default_rng(0).integers(20, 60, (60, 2))
    together = op.windows(u, sizes[:, 0], sizes[:, 1], np)
    device = jax.jit(lambda u, s: op.windows(u, s[:, 0], s[:, 1], jnp))(u, sizes)
    for row, (height, width) in enumerate(sizes):
        np.testing.assert_array_equal(together[row], op.windows(u[row], height, width, np))
    np.testing.assert_array_equal(device, together)


@pytest.mark.slow
def test_a_few_rows_are_cut_as_many_are():
    """The host draws for one image at a time, in another form of the law: the same windows to the pixel."""
    for kwargs in ({}, dict(area=(0.3, 0.35), ratio=(0.5, 3.0)), dict(area=(0.05, 0.1), min_covered=0.2)):
        op = crop(sampling="tf", **kwargs)
        u = numbers(4000, op.uniforms)
        for height, width in [(8, 8), (1, 9), (97, 1021), (375, 500), (600, 240), (1200, 1600)]:
            many = op.windows(u, height, width, np)
            few = [op.windows(u[k:k + 2], height, width, np) for k in range(0, 4000, 2)]
            assert few[0].dtype == many.dtype
            np.testing.assert_array_equal(np.concatenate(few), many, err_msg=f"{kwargs}, {height} x {width}")


def test_crops_that_draw_nothing():
    none = np.zeros([3, 0], np.float32)
    for xp in (np, jnp):
        for op, window in [
                (spatial.resize(size=5), [0, 0, 37, 50]), (spatial.resize(size=5, shorter=True), [0, 0, 37, 50]),
                (spatial.center_crop(proportion=0.875), [3, 9, 32, 32]),  # round(32.375); offsets 2.5 and 9, rounded up
                (spatial.center_crop(proportion=0.9, floor=True), [2, 9, 33, 33]),
                (spatial.center_crop(size=30), [4, 10, 30, 30]),  # 3.5 to even
                (spatial.center_crop(size=40), [0, 5, 37, 40])]:
            got = np.asarray(op.windows(none, 37, 50, xp))
            assert got.dtype == np.int32 and got.tolist() == [window] * 3
    assert spatial.resize(size=5).target(37, 50) == (5, 5)
    assert spatial.resize(size=5, shorter=True).target(37, 50) == (5, 6)  # 6.75, cut as torchvision cuts it
    assert spatial.resize(size=5, shorter=True).target(50, 37) == (6, 5)
    assert crop().target(99, 7) == (8, 8)


@pytest.mark.parametrize("make,said", [
    (lambda: crop(area=(0.0, 1.0)), "area="), (lambda: crop(area=(0.5, 1.2)), "area="),
    (lambda: crop(ratio=(0.0, 1.0)), "ratio="), (lambda: crop(ratio=(2.0, 1.0)), "ratio="),
    (lambda: spatial.center_crop(), "set one of them"), (lambda: spatial.center_crop(size=8, proportion=0.5), "set one"),
    (lambda: spatial.center_crop(proportion=1.5), "at most 1")])
def test_what_cannot_be_is_refused(make, said):
    with pytest.raises(UsageError, match=said):
        make()


# The host's crops.

def at(op, image, *window):
    """A window of an image at the op's size, by data.resize: f32[rows, columns, 3]."""
    y, x, h, w = window
    place = np.array([y, x, 0, h, w, 3, *op.target(h, w)], np.int32)
    return resize.chain((op,), image, place, np.zeros([1, 1], np.float32)).numpy()


def originals(name):
    """(image f32[H, W, 3], case, output f32[S, S, 3]) of the crops in a file of tests/data."""
    z = np.load(DATA / f"{name}.npz")
    last = (lambda x: x.transpose(0, 2, 3, 1)) if name.startswith("torch") else (lambda x: x)
    every = json.loads(str(z["meta"]))["cases"]
    return [pytest.param(last(z["images"])[0], c, last(z[f"c{i}/out_f32"])[0], id=f"{name}-{i}-{c['kind']}")
            for i, c in enumerate(every) if "crop" in c["kind"]]


@pytest.mark.parametrize("x,case,want", originals("simclr_augment") + originals("torchvision_augment"))
def test_the_host_crops_as_the_originals_do(x, case, want):
    if case["kind"] == "center_crop_0.875_bicubic":
        ops = spatial.center_crop(proportion=0.875), spatial.resize(size=case["size"][0], clip=False)
        first = resize.places(ops[0], np.zeros([0], np.float32), 32, 40)
        assert first.tolist() == [2, 6, 0, 28, 28, 3, 28, 28]
        got = resize.chain(ops, x, first, np.zeros([2, 1], np.float32)).numpy()
    elif "top" in case:
        op = spatial.random_resized_crop(size=case["size"], method=case["mode"], antialias=case["antialias"], clip=False)
        got = at(op, x, *[case[k] for k in ("top", "left", "height", "width")])
        if case["mode"] == "bicubic" and not case["antialias"]:
            # PyTorch's cubic has a = -.75 here and -.5 with antialias; TensorFlow's, hence ours, always -.5.
            assert np.abs(got - want).max() > 1e-2
            return
    else:
        got = at(spatial.random_resized_crop(size=case["size"], clip=False), x, *[case[k] for k in "yxhw"])
    np.testing.assert_allclose(got, want, atol=2e-5)


@pytest.mark.parametrize("method,antialias", [("bicubic", False), ("bilinear", False), ("bicubic", True),
                                              ("bilinear", True)])
@pytest.mark.parametrize("size", [8, 32, 45])
def test_the_host_resizes_windows_as_tf_image_resize(method, antialias, size):
    image = np.random.default_rng(0).integers(0, 256, (32, 40, 3), dtype=np.uint8)
    op = spatial.random_resized_crop(size=size, method=method, antialias=antialias, clip=False)
    clipped = spatial.random_resized_crop(size=size, method=method, antialias=antialias)
    for y, x, h, w in [(0, 0, 32, 40), (31, 39, 1, 1), (0, 0, 1, 40), (5, 6, 20, 13), (12, 20, 20, 20), (0, 30, 32, 10),
                       (3, 3, 3, 2), (20, 1, 12, 39), (0, 0, 8, 8), (24, 32, 8, 8), (7, 9, 17, 23), (1, 0, 2, 4)]:
        want = tf.image.resize(image[y:y + h, x:x + w], [size, size], method, antialias=antialias).numpy()
        got = at(op, image, y, x, h, w)
        assert got.dtype == np.float32 and got.shape == (size, size, 3)
        np.testing.assert_allclose(got, want, atol=1e-3, err_msg=f"{y, x, h, w}")
        np.testing.assert_array_equal(at(clipped, image, y, x, h, w), np.clip(got, 0, 255))


def test_places_of_many_numbers_at_once():
    op = crop(sampling="torch")
    u = numbers(12, op.uniforms + 3).reshape(3, 4, -1)  # padded: other ops of the recipe draw more
    got = resize.places(op, u, 40, 50)
    assert got.shape == (3, 4, 8) and got.dtype == np.int32
    windows = op.windows(u[..., :op.uniforms], 40, 50, np)
    np.testing.assert_array_equal(resize.windows(got), windows)
    assert (got[..., 6:] == 8).all() and (got[..., [2, 5]] == [0, 3]).all()  # slices have all three channels
    shorter = resize.places(spatial.resize(size=10, shorter=True), u, 40, 50)
    assert (shorter == [0, 0, 0, 40, 50, 3, 10, 12]).all()
    moved = resize.moved(got, windows - [3, 1, 0, 0])
    np.testing.assert_array_equal(resize.windows(moved), windows - [3, 1, 0, 0])
    np.testing.assert_array_equal(moved[..., [2, 5, 6, 7]], got[..., [2, 5, 6, 7]])


def test_a_chain_passes_sizes_on():
    image = np.random.default_rng(0).integers(0, 256, (37, 50, 3), dtype=np.uint8)
    ops = (spatial.resize(size=20, shorter=True, method="bilinear", antialias=True), spatial.center_crop(size=16),
           crop(sampling="torch", method="bilinear"))
    u = numbers(3, ops[2].uniforms)
    got = resize.chain(ops, image, resize.places(ops[0], u[0], 37, 50), u).numpy()
    whole = tf.image.resize(image, [20, 27], "bilinear", antialias=True).numpy()[2:18, 6:22]  # (27 - 16) / 2 to even
    y, x, h, w = ops[2].windows(u[2], 16, 16, np)
    want = tf.image.resize(whole[y:y + h, x:x + w], [8, 8], "bilinear")
    np.testing.assert_allclose(got, want, atol=1e-3)
