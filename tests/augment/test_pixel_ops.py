"""Each pixel op against the public implementation it follows, and its draw against the law it claims."""
import colorsys
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from simclr_jax.augment import color, filters, geometry
from simclr_jax.errors import UsageError

DATA = pathlib.Path(__file__).parents[1] / "data"
IMAGENET = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
ORDERS = [(a, b, c, d) for a in range(4) for b in range(4) for c in range(4) for d in range(4)
          if len({a, b, c, d}) == 4]


def oracle(name):
    """(images f32[n, H, W, 3], [(case, output)]) of a file of tests/data, channels last; crops are another test's."""
    z = np.load(DATA / f"{name}.npz")
    last = (lambda x: x.transpose(0, 2, 3, 1)) if name.startswith("torch") else (lambda x: x)
    cases = json.loads(str(z["meta"]))["cases"]
    return last(z["images"]), [(c, last(z[f"c{i}/out_f32"])) for i, c in enumerate(cases) if "crop" not in c["kind"]]


def cases(name):
    return [pytest.param(case, id=f"{i}-{case['kind']}") for i, (case, _) in enumerate(oracle(name)[1])]


def expected(name, case):
    images, rows = oracle(name)
    return images, next(out for c, out in rows if c == case)


def planar(f, x, *args):
    """Applies a function of planes to each of f32[n, H, W, 3], in one compiled program."""
    whole = jax.vmap(lambda row: jnp.stack(f(tuple(row.transpose(2, 0, 1)), *args), axis=-1))
    return np.asarray(jax.jit(whole)(jnp.asarray(x)))


def numbers(n, k, seed=0):
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(jnp.arange(n))
    return jax.vmap(lambda key: jax.random.uniform(key, (k,)))(keys)


def drawn(op, n, size=8, seed=0):
    return jax.tree.map(np.asarray, jax.vmap(lambda u: op.draw(u, size))(numbers(n, op.uniforms, seed)))


def pinned(op, x, order, factors):
    """A jitter of ours with everything that is drawn given."""
    return planar(op.apply, x, {"order": jnp.array(order), "factors": jnp.array(factors, jnp.float32)})


@pytest.mark.parametrize("case", cases("simclr_augment"))
def test_simclr(case):
    x, want = expected("simclr_augment", case)
    one = {"brightness_simclrv2": color.gain, "contrast": color.channel_contrast, "saturation": color.hsv_saturation,
           "hue": color.rotate_hue}
    kind = case["kind"]
    if kind in one:
        got = planar(one[kind], x, case.get("factor", case.get("delta")))
    elif kind == "jitter_chain":
        jitter = color.color_jitter(brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2)
        got = pinned(jitter, x, case["perm"], [case[k] for k in ("brightness", "contrast", "saturation", "hue")])
    elif kind == "to_grayscale":
        got = planar(color.grayscale().apply, x, {})
    else:
        assert kind == "gaussian_blur"
        blur = filters.blur(kernel=2 * (case["kernel_size"] // 2) + 1)
        square = x[:, :, :32]  # our views are square; the 8 columns cut off are compared less
        got = planar(blur.apply, square, {"sigma": case["sigma"]})
        reach = 32 - case["kernel_size"] // 2  # the cut moves the zeros' border: compare what does not see it
        got, want = got[:, :, :reach], want[:, :, :reach]
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
        got = np.clip(planar(one[kind], x, case["factor"]), 0, 1)
    elif kind in plain:
        got = planar(plain[kind]().apply, x, {})
    else:
        assert kind == "gaussian_blur"
        rows, side = 36 - case["kernel"] // 2, 30  # square part of 36 x 30, away from the cut
        blur = filters.blur(kernel=case["kernel"], padding="reflect")
        got = planar(blur.apply, x[:, :side], {"sigma": case["sigma"]})[:, :rows - 6]
        want = want[:, :rows - 6]
    np.testing.assert_allclose(got, want, atol=1e-4 if kind in ("hue", "saturation") else 2e-5)


@pytest.mark.parametrize("case", cases("byol_augment"))
def test_byol(case):
    x, want = expected("byol_augment", case)
    if case["kind"] == "to_grayscale":
        got = planar(color.grayscale().apply, x, {})
    else:
        f = color.add if case["kind"] == "brightness" else color.channel_contrast
        got = planar(f, x, case.get("delta", case.get("factor")))
    np.testing.assert_allclose(got, want, atol=2e-5)


def blurred(x, kernel, sigma, padding):
    """The definition in float64: each pixel's taps, one after the other, along both axes of f64[S, S]."""
    radius, size = kernel // 2, len(x)
    taps = np.exp(-np.arange(-radius, radius + 1) ** 2 / (2 * sigma**2))
    for _ in range(2):
        padded = np.pad(x, ((radius, radius), (0, 0)), {"zero": "constant", "reflect": "reflect"}[padding])
        x = sum(t / taps.sum() * padded[k:k + size] for k, t in enumerate(taps)).T
    return x


@pytest.mark.parametrize("padding", ["zero", "reflect"])
@pytest.mark.parametrize("size,kernel", [(4, 7), (9, 1), (32, 23), (40, 5), (64, 23), (70, 23)])
def test_blur_of_every_size_is_the_gaussian(size, kernel, padding):
    x = np.random.default_rng(0).random((1, size, size, 3), np.float32)
    op = filters.blur(kernel=kernel, padding=padding)
    run = jax.jit(lambda sigma: jnp.stack(op.apply(tuple(x[0].transpose(2, 0, 1)), {"sigma": sigma}), axis=-1))
    for sigma in (0.1, 0.7, 2.0):
        want = np.stack([blurred(x[0, ..., k].astype(np.float64), kernel, sigma, padding) for k in range(3)], -1)
        np.testing.assert_allclose(run(sigma), want, atol=2e-6)


def hsv(x):
    """Hue in turns, saturation and value of f64[..., 3] (Smith 1978), and back."""
    return np.stack(np.vectorize(colorsys.rgb_to_hsv)(*np.moveaxis(x, -1, 0)), -1)


def rgb(x):
    return np.stack(np.vectorize(colorsys.hsv_to_rgb)(*np.moveaxis(x, -1, 0)), -1)


def test_hue_and_saturation_are_those_of_hsv():
    levels = np.linspace(0, 1, 6)
    x = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), -1).reshape(1, 12, 18, 3)  # grays and ties too
    want = hsv(x)
    for turns in (-0.5, -0.2, 0.0, 1 / 3, 0.5):
        got = planar(color.rotate_hue, x.astype(np.float32), turns)
        np.testing.assert_allclose(got, rgb(np.stack([(want[..., 0] + turns) % 1, want[..., 1], want[..., 2]], -1)),
                                   atol=2e-6)
    for factor in (0.0, 0.3, 1.0, 1.8):
        got = planar(color.hsv_saturation, x.astype(np.float32), factor)
        scaled = np.stack([want[..., 0], np.minimum(want[..., 1] * factor, 1), want[..., 2]], -1)
        np.testing.assert_allclose(got, rgb(scaled), atol=2e-6)


@pytest.mark.parametrize("style,mode", [("tf", "multiply"), ("torch", "add")])
def test_jitter_takes_its_ops_in_the_order_drawn(style, mode):
    x = np.random.default_rng(0).random((2, 6, 6, 3), np.float32) * 1.2 - 0.1  # crops may overshoot
    op = color.color_jitter(brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2, style=style, brightness_mode=mode)
    ops = (color.gain if mode == "multiply" else color.add,
           *((color.channel_contrast, color.hsv_saturation) if style == "tf" else
             (color.gray_contrast, color.gray_saturation)), color.rotate_hue)
    factors = jnp.array([0.3, 1.6, 0.4, -0.15] if mode == "multiply" else [-0.2, 1.6, 0.4, -0.15], jnp.float32)
    run = jax.jit(jax.vmap(lambda x, order: jnp.stack(op.apply(tuple(x), {"order": order, "factors": factors})),
                           in_axes=(None, 0)))
    single = [jax.jit(lambda x, k=k: jnp.clip(jnp.stack(ops[k](tuple(x), factors[k])), 0, 1)) for k in range(4)]
    for row in x.transpose(0, 3, 1, 2):
        got = np.asarray(run(row, jnp.array(ORDERS)))
        for i, order in enumerate(ORDERS):
            want = row
            for k in order:
                want = single[k](want)
            np.testing.assert_allclose(got[i], want, atol=2e-6)
    assert len({g.tobytes() for g in got}) == 24  # no two orders give the same


def test_jitter_leaves_out_what_has_no_range():
    x = np.random.default_rng(1).random((4, 5, 5, 3), np.float32)
    op = color.color_jitter(brightness=0, contrast=0, saturation=0, hue=0)
    np.testing.assert_array_equal(planar(op.apply, x, op.draw(numbers(1, 5)[0], 5)), x)


def test_jitter_orders_are_uniform_and_factors_keep_their_ranges():
    op = color.color_jitter(brightness=0.8, contrast=0.8, saturation=1.6, hue=0.2, strength=0.5)
    got = drawn(op, 9600)
    seen, counts = np.unique(got["order"], axis=0, return_counts=True)
    assert seen.tolist() == [list(order) for order in ORDERS]
    assert stats.chisquare(counts).pvalue > 1e-3
    low, high = np.array([0.6, 0.6, 0.2, -0.1]), np.array([1.4, 1.4, 1.8, 0.1])
    for k in range(4):
        assert stats.kstest(got["factors"][:, k], "uniform", (low[k], high[k] - low[k])).pvalue > 1e-3
        assert stats.kstest(got["factors"][:, k], "uniform", (low[k], 0.8 * (high[k] - low[k]))).pvalue < 1e-9
    # Factors do not follow the order, nor each other.
    first = np.searchsorted(np.arange(4), got["order"][:, 0])
    assert stats.f_oneway(*[got["factors"][first == k, 3] for k in range(4)]).pvalue > 1e-3
    assert np.abs(np.corrcoef(got["factors"].T) - np.eye(4)).max() < 0.05
    corner = color.color_jitter(brightness=1.5, contrast=0, saturation=0, hue=0).draw(jnp.zeros(5), 8)
    assert corner["factors"][0] == 0  # SimCLR: max(1 - b, 0)


def test_jitter_numbers_mean_what_they_meant():
    """The first number is the order, among sorted permutations; then brightness, contrast, saturation, hue."""
    op = color.color_jitter(brightness=0.4, contrast=0.3, saturation=0.2, hue=0.1, brightness_mode="add")
    for i, order in enumerate(ORDERS):
        got = op.draw(jnp.array([(i + 0.5) / 24, 0.0, 0.25, 0.5, 1.0]), 8)
        assert tuple(got["order"].tolist()) == order
        np.testing.assert_allclose(got["factors"], [-0.4, 0.85, 1.0, 0.1], atol=1e-6)
    assert tuple(op.draw(jnp.full(5, 1 - 2.0**-24), 8)["order"].tolist()) == ORDERS[-1]


def test_affine():
    x = np.random.default_rng(0).random((1, 9, 9, 3), np.float32)

    def apply(u, **kwargs):
        op = geometry.affine(**kwargs)
        return planar(op.apply, x, op.draw(jnp.array(u), 9))

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
    sheared = apply([0.5, 1.0, 0.5, 0.5, 0.5], shear=45)[0]  # one pixel more a row, the top to the right
    for row in range(9):
        by = 4 - row
        np.testing.assert_allclose(sheared[row, max(by, 0):9 + min(by, 0)], x[0, row, max(-by, 0):9 + min(-by, 0)],
                                   atol=1e-5)


def test_affine_is_shear_then_rotation_then_zoom_then_shift():
    op = geometry.affine(degrees=40, translate=0.2, scale=(0.5, 2.0), shear=30)
    u, got = np.asarray(numbers(50, 5, seed=4), np.float64), drawn(op, 50, size=17, seed=4)["map"]
    signed = 2 * u - 1
    for i in range(50):
        angle, slant = np.radians(40 * signed[i, 0]), np.radians(30 * signed[i, 1])
        middle = np.array([[1, 0, 8], [0, 1, 8], [0, 0, 1.0]])
        shift = np.array([[1, 0, 3.4 * signed[i, 3]], [0, 1, 3.4 * signed[i, 4]], [0, 0, 1]])
        zoom = np.diag([0.5 + 1.5 * u[i, 2], 0.5 + 1.5 * u[i, 2], 1])
        turn = np.array([[np.cos(angle), np.sin(angle), 0], [-np.sin(angle), np.cos(angle), 0], [0, 0, 1]])  # y is down
        shear = np.array([[1, -np.tan(slant), 0], [0, 1, 0], [0, 0, 1]])
        want = np.linalg.inv(shift @ middle @ zoom @ turn @ shear @ np.linalg.inv(middle))
        np.testing.assert_allclose(got[i], want.ravel()[:6], atol=2e-5)


def test_affine_between_pixels_is_bilinear():
    """Any map, in float64: each output pixel looks up its place among the four around it; `fill` lies outside."""
    x = np.random.default_rng(3).random((1, 11, 11, 3), np.float32)
    op = geometry.affine(fill=0.3)
    m = np.array([1.2, 0.31, -1.7, -0.27, 1.15, 0.6])
    got = planar(op.apply, x, {"map": jnp.array(m, jnp.float32)})[0]
    i, j = np.mgrid[:11, :11]
    at_x, at_y = m[0] * j + m[1] * i + m[2], m[3] * j + m[4] * i + m[5]
    wide = np.pad(x[0].astype(np.float64), ((20, 20), (20, 20), (0, 0)), constant_values=0.3)
    left, top = np.floor(at_x).astype(int), np.floor(at_y).astype(int)
    a, b = (at_x - left)[..., None], (at_y - top)[..., None]
    want = ((1 - b) * ((1 - a) * wide[top + 20, left + 20] + a * wide[top + 20, left + 21])
            + b * ((1 - a) * wide[top + 21, left + 20] + a * wide[top + 21, left + 21]))
    np.testing.assert_allclose(got, want, atol=1e-5)
    assert (want == 0.3).any() and (at_x > 10).any() and (at_y < 0).any()


def test_erase():
    op = geometry.erase(area=(0.1, 0.3), ratio=(0.5, 2.0), fill=0.5)
    run = jax.jit(jax.vmap(lambda u: jnp.stack(op.apply((jnp.ones((30, 30)),) * 3, op.draw(u, 30)))))
    out = np.asarray(run(numbers(3000, 4)))
    gone = out[:, 0] == 0.5
    assert (out[:, 1] == out[:, 0]).all() and set(np.unique(out)) == {0.5, 1.0}
    share = gone.mean(axis=(1, 2))
    assert 0.08 < share.min() and share.max() < 0.33 and abs(share.mean() - 0.2) < 0.005
    tall, wide = gone.any(axis=2).sum(axis=1), gone.any(axis=1).sum(axis=1)
    np.testing.assert_array_equal(tall * wide, gone.sum(axis=(1, 2)))  # one box
    assert abs(np.log(tall / wide).mean()) < 0.03 and (tall / wide).max() < 2.3
    assert gone[:, 0].any() and gone[:, -1].any() and gone[:, :, 0].any() and gone[:, :, -1].any()


def test_intensity_and_sigma_keep_their_ranges():
    op = color.intensity(contrast=(0.5, 2.0), brightness=(-0.25, 0.5))
    got = drawn(op, 4000)
    assert stats.kstest(got["gain"], "uniform", (0.5, 1.5)).pvalue > 1e-3
    assert stats.kstest(got["bias"], "uniform", (-0.25, 0.75)).pvalue > 1e-3
    x = np.array([0.0, 0.2, 0.9], np.float32).reshape(1, 1, 1, 3)
    out = planar(op.apply, x, {"gain": 2.0, "bias": -0.1}).ravel()
    np.testing.assert_allclose(out, [0.0, 0.3, 1.0], atol=1e-6)
    sigma = drawn(filters.blur(kernel=3), 4000)["sigma"]
    assert stats.kstest(sigma, "uniform", (0.1, 1.9)).pvalue > 1e-3
    assert stats.kstest(sigma, "uniform", (0.1, 1.7)).pvalue < 1e-9


def test_solarize_and_clip_at_their_edges():
    x = np.array([-0.5, 0.5, 1.5], np.float32).reshape(1, 1, 1, 3)
    np.testing.assert_array_equal(planar(color.solarize(threshold=0.5).apply, x, {}).ravel(), [-0.5, 0.5, -0.5])
    np.testing.assert_array_equal(planar(color.clip(low=0.0, high=1.25).apply, x, {}).ravel(), [0.0, 0.5, 1.25])


@pytest.mark.parametrize("make,said", [
    (lambda: color.color_jitter(brightness=-1, contrast=0, saturation=0, hue=0), "wanted none negative"),
    (lambda: color.color_jitter(brightness=0, contrast=0, saturation=0, hue=0.6), "hue at most 0.5"),
    (lambda: color.normalize(mean=(0, 0, 0), std=(1, 0, 1)), "std="),
    (lambda: filters.blur(kernel=4), "odd number of taps"), (lambda: filters.blur(kernel=3, sigma=(0, 1)), "sigma="),
    (lambda: geometry.affine(scale=(2, 1)), "scale="), (lambda: geometry.affine(shear=90), "shear=90"),
    (lambda: geometry.erase(area=(0.5, 0.2)), "area="), (lambda: geometry.erase(ratio=(0, 1)), "ratio="),
])
def test_what_cannot_be_is_refused(make, said):
    with pytest.raises(UsageError, match=said):
        make()
