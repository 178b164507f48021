"""The interpreter: keys, grouping of rows and views, bit-equal rows in any company, and what it refuses."""
import functools
import inspect
import json

import jax
import numpy as np
import pytest
import tensorflow as tf

from configs.common import recipes
from simclr_jax.data import random, recipe
from simclr_jax.data.ops.schema import OPS
from simclr_jax.data.recipe import build_eval, build_views
from simclr_jax.errors import UsageError

RECIPES = {name: functools.partial(getattr(recipes, name), size) for name, size in [
    ("simclr", 33), ("simclr_cifar", 32), ("byol", 33), ("moco_v1", 21), ("moco_v2", 33), ("moco_v3", 33),
    ("digits", 7), ("simclr_linear", 21)]}
RESIZE = ("resize", dict(size=8, clip=False))


def row_keys(n, epoch=0):
    return random.fold_in(random.fold_in(random.seed_key(0), epoch), tf.range(n))


def pictures(n, height=29, width=35):
    return tf.constant(np.random.default_rng(0).integers(0, 256, (n, height, width, 3), dtype=np.uint8))


def run(views):
    built = build_views(views)
    return lambda x, k: built.pixel(built.spatial_batch(x, k), k)


def graph(views):
    return tf.function(run(views), input_signature=[tf.TensorSpec([None, 29, 35, 3], tf.uint8),
                                                    tf.TensorSpec([None, 2], tf.uint32)])


@pytest.mark.parametrize("name,mode", [(name, run) for name in RECIPES] + [("simclr", graph)])
def test_a_row_is_the_same_in_any_company(name, mode):
    x, keys, f = pictures(37), row_keys(37), mode(RECIPES[name]())
    whole = f(x, keys).numpy()
    assert whole.shape == (37, len(RECIPES[name]()), *whole.shape[2:])
    for rows in ([0], [36], [5, 3], list(range(36, -1, -1)), list(range(7, 20))):
        np.testing.assert_array_equal(f(tf.gather(x, rows), tf.gather(keys, rows)), whole[rows], err_msg=str(rows))
    if len(RECIPES[name]()) > 1:
        assert (np.abs(whole[:, 0] - whole[:, 1]).max(axis=(1, 2, 3)) > 0.02).all()
    other = f(x, row_keys(37, epoch=1)).numpy()
    assert (np.abs(other - whole).max(axis=(1, 2, 3, 4)) > 0.02).all()
    if not any(op == "normalize" for op, _ in RECIPES[name]()[0]):
        assert whole.min() >= 0 and whole.max() <= 1


@pytest.mark.parametrize("name", RECIPES)
def test_one_image_at_a_time_equals_the_batch(name):
    x, keys, built = pictures(6), row_keys(6), build_views(RECIPES[name]())
    batch = built.spatial_batch(x, keys)
    one = tf.function(built.spatial, input_signature=[tf.TensorSpec([None, None, 3], tf.uint8),
                                                      tf.TensorSpec([2], tf.uint32)])
    numbers = built.numbers(keys)
    for i in range(6):
        np.testing.assert_allclose(one(x[i], keys[i]), batch[i], atol=1e-5)
        np.testing.assert_array_equal(built.spatial_from(x[i], numbers[i]), built.spatial(x[i], keys[i]))
    assert batch.shape[1:] == (built.count, built.size, built.size, 3)


def test_numbers_follow_row_view_and_op():
    gain = ("intensity", dict(contrast=(0.0, 1.0), p=0.6))
    views = ((RESIZE, ("clip", {}), gain), (RESIZE, gain, ("clip", {})))
    x = np.full((50, 2, 8, 8, 3), 0.5, np.float32)
    got = build_views(views).pixel(tf.constant(x), row_keys(50)).numpy()

    def share(index, view, op):
        row = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 0), index)
        u = jax.random.uniform(jax.random.fold_in(jax.random.fold_in(row, view), op), (3,))
        return jax.numpy.where(u[0] < 0.6, u[1], 1.0)

    for view, op in ((0, 2), (1, 1)):
        want = jax.vmap(lambda i: share(i, view, op))(np.arange(50))
        np.testing.assert_allclose(got[:, view, 3, 4, 1], 0.5 * np.asarray(want), atol=1e-6)


def test_views_that_share_ops_are_batched_without_a_trace():
    a, b = (RESIZE, ("color_jitter", dict(brightness=.4, contrast=.4, saturation=.4, hue=.1))), (RESIZE, ("flip", {}))
    x, keys = pictures(9), row_keys(9)
    shared, apart = run((a, b, a))(x, keys).numpy(), run((b, b, a))(x, keys).numpy()
    np.testing.assert_array_equal(shared[:, 1:], apart[:, 1:])
    np.testing.assert_array_equal(shared[:, :1], run((a,))(x, keys))


@pytest.mark.parametrize("n", [0, 1, 4, 11])
def test_chunks_do_not_show(monkeypatch, n):
    x, keys = np.random.default_rng(0).random((n, 2, 9, 9, 3), np.float32), row_keys(n)
    whole = build_views(recipes.byol(9)).pixel(tf.constant(x), keys)
    monkeypatch.setattr(recipe, "_CHUNK", 4 * 2 * 9 * 9 * 3)
    parts = build_views(recipes.byol(9)).pixel(tf.constant(x), keys)
    assert parts.shape == (n, 2, 9, 9, 3)
    np.testing.assert_array_equal(parts, whole)


CHANGED = [("flip", {}), ("color_jitter", dict(brightness=0.5, contrast=0.5, saturation=0.5, hue=0.1)),
           ("grayscale", {}), ("blur", dict(kernel=3, sigma=(1.0, 2.0))), ("solarize", dict(threshold=0.3)),
           ("affine", dict(degrees=30.0, translate=0.2)), ("erase", dict(area=(0.2, 0.4))),
           ("intensity", dict(contrast=(0.3, 0.6)))]


@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("name,kwargs", CHANGED, ids=[name for name, _ in CHANGED])
def test_an_op_reaches_the_rows_that_drew_it(name, kwargs, p):
    n = 3000
    x = tf.tile(tf.constant(np.random.default_rng(0).random((1, 1, 8, 8, 3), np.float32)), [n, 1, 1, 1, 1])
    got = build_views(((RESIZE, (name, dict(kwargs, p=p))),)).pixel(x, row_keys(n))
    changed = np.any(got.numpy() != x, axis=(1, 2, 3, 4))
    drew = random.uniform(random.fold_in(random.fold_in(row_keys(n), 0), 1), 1)[:, 0].numpy() < p
    np.testing.assert_array_equal(changed, drew)
    assert abs(changed.mean() - p) < 4 * (p * (1 - p) / n) ** 0.5 + 1e-9


def test_every_gated_op_is_tested_for_its_chance():
    gated = {name for name, f in OPS.items() if "p" in inspect.signature(f).parameters}
    assert gated == {name for name, _ in CHANGED}


@pytest.mark.parametrize("name", ["byol", "digits"])
def test_a_recipe_survives_json(name):
    x, keys, views = pictures(3), row_keys(3), RECIPES[name]()
    np.testing.assert_array_equal(run(json.loads(json.dumps(views)))(x, keys), run(views)(x, keys))


def test_the_pipeline_can_map_it():
    built = build_views(recipes.simclr(16))
    images = [np.random.default_rng(i).integers(0, 256, (20 + i, 30 - i, 3), dtype=np.uint8) for i in range(4)]
    ds = tf.data.Dataset.from_generator(lambda: iter(enumerate(images)), output_signature=(
        tf.TensorSpec([], tf.int32), tf.TensorSpec([None, None, 3], tf.uint8)))
    root = random.seed_key(5)
    ds = ds.map(lambda i, x: (built.spatial(x, random.fold_in(root, i)), random.fold_in(root, i)), num_parallel_calls=2)
    ds = ds.batch(4).map(built.pixel)
    got = next(iter(ds))
    keys = random.fold_in(root, tf.range(4))
    want = [built.pixel(built.spatial(x, k)[None], k[None])[0] for x, k in zip(images, keys)]
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("ops,shape", [
    (recipes.simclr_eval(16), (40, 30)), (recipes.simclr_cifar_eval(16), (16, 16)), (recipes.byol_eval(16), (29, 40)),
    (recipes.torch_eval(14, 16), (40, 33)), (recipes.digits_eval(8), (8, 8))])
def test_eval_recipes(ops, shape):
    image = pictures(1, *shape)[0]
    f = tf.function(build_eval(ops), input_signature=[tf.TensorSpec([None, None, 3], tf.uint8)])
    got = f(image).numpy()
    x = tf.cast(image, tf.float32) / 255
    if ops[0][0] == "center_crop":
        side = (int if "floor" in ops[0][1] else round)(ops[0][1]["proportion"] * min(shape))
        y0, x0 = (shape[0] - side + 1) // 2, (shape[1] - side + 1) // 2
        x = x[y0:y0 + side, x0:x0 + side]
    if ops == recipes.torch_eval(14, 16):
        x = tf.image.resize(x, [19, 16], "bilinear", antialias=True)[2:16, 1:15]     # 16 * 40 // 33, round(2.5)
    else:
        x = tf.image.resize(x, got.shape[:2], ops[-2 if ops[-1][0] == "normalize" else -1][1].get("method", "bicubic"))
    x = np.clip(x, 0, 1)
    if ops[-1][0] == "normalize":
        x = (x - np.float32(ops[-1][1]["mean"])) / np.float32(ops[-1][1]["std"])
    np.testing.assert_allclose(got, x, atol=1e-5)


CROP = ("random_resized_crop", dict(size=8))


@pytest.mark.parametrize("views,words", [
    ((), "wanted a tuple of views"),
    (((CROP, ("grayscal", {})),), "no op 'grayscal'; did you mean 'grayscale'"),
    (((CROP, ("flip", dict(prob=0.5))),), "flip has no 'prob'"),
    (((CROP, ("flip", dict(p="0.5"))),), "p='0.5'; wanted a number"),
    (((CROP, ("flip", dict(p=1.5))),), "chance between 0 and 1"),
    (((CROP, ("flip", dict(p=True))),), "wanted a number"),
    (((CROP, ("blur", {})),), "blur needs 'kernel', a whole number"),
    (((CROP, ("blur", dict(kernel=4))),), "odd number of taps"),
    (((CROP, ("blur", dict(kernel=3, padding="edge"))),), "'zero' or 'reflect'"),
    (((CROP, ("blur", dict(kernel=3, sigma=0.5))),), "2 numbers"),
    (((("random_resized_crop", dict(size=8, area=(0.5, 0.1))),),), "lowest <= highest"),
    (((("random_resized_crop", dict(size=0)),),), "at least 1 pixel"),
    (((("random_resized_crop", dict(size=8.0)),),), "a whole number"),
    (((CROP, ("color_jitter", dict(brightness=1, contrast=1, saturation=1, hue=0.6))),), "hue at most 0.5"),
    (((("flip", {}),),), "no fixed size"),
    (((("center_crop", dict(proportion=0.5)),),), "no fixed size"),
    (((("flip", {}), CROP),), "crops and resizes come first"),
    (((CROP,), (("resize", dict(size=9)),)), "sizes \\[8, 9\\]"),
    (((CROP, "flip"),), "wanted \\(op, kwargs\\)"),
    ((("flip", {}),), "wanted \\(op, kwargs\\)"),
])
def test_mistakes_are_one_line(views, words):
    with pytest.raises(UsageError, match=words) as e:
        build_views(views)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("ops", [(CROP,), (RESIZE, ("flip", {})), (RESIZE, ("intensity", {}))])
def test_an_evaluation_may_not_draw(ops):
    with pytest.raises(UsageError, match="is random"):
        build_eval(ops)
