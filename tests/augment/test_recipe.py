"""Recipes: what is read and what refused; whose numbers an op draws; rows and views that do not know of each other; and
the device's crops against the host's."""
import functools
import inspect
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import feeding
from configs.common import recipes
from simclr_jax import augment, data, keys
from simclr_jax.augment import draws
from simclr_jax.augment.schema import OPS
from simclr_jax.data import resize
from simclr_jax.data.sources import folder
from simclr_jax.errors import UsageError

MADE = {"simclr": (33,), "simclr_cifar": (32,), "byol": (33,), "moco_v1": (21,), "moco_v2": (33,), "simsiam": (33,),
        "moco_v3": (33,), "swav": (33, 12, 2, 2), "dino": (33, 12, 2), "dinov2": (33, 14, 2), "clip": (16,), "siglip": (16,),
        "digits": (7,), "digits_pairs": (7,), "digits_crops": (7, 5, 2), "cifar_crops": (32, 14, 2), "simclr_linear": (21,)}
RECIPES = {name: functools.partial(getattr(recipes, name), *sizes) for name, sizes in MADE.items()}
RESIZE = ("resize", dict(size=8, clip=False))
CROP = ("random_resized_crop", dict(size=8))
SMALL = ("random_resized_crop", dict(size=4, area=(0.05, 0.3)))
GAIN = ("intensity", dict(contrast=(0.2, 1.0)))


def test_every_published_recipe_is_here():
    made = {n for n, f in vars(recipes).items() if inspect.isfunction(f) and not n.startswith("_") and "_eval" not in n}
    assert made == set(MADE)


def ids(n, epoch=0):
    return np.stack([np.arange(n), np.full(n, epoch)], axis=1).astype(np.uint32)


def pictures(n, height=29, width=35, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, height, width, 3), dtype=np.uint8)


def rows(n, **kwargs):
    return {"image": pictures(n, **kwargs), "id": ids(n)}


def run(views, seed=0):
    """The recipe as a function of a batch; arrays in, arrays out."""
    return jax.jit(augment.make(augment.build(views), seed))


def host_crops(recipe, batch, seed=0):
    """What the host makes of a batch of images: f32[b, V, S, S, 3] in [0, 1], by data.resize on the recipe's numbers."""
    numbers, made = recipe.numbers(seed, batch["id"]), {}
    for key in recipe.shapes():
        made[key] = np.stack([np.stack([
            resize.chain(v.chain, image, resize.places(v.chain[0], u[v.number, 0], *image.shape[:2]), u[v.number]).numpy()
            for v in recipe.of(key)]) for image, u in zip(batch["image"], numbers)]) / np.float32(255)
    return made


# Rows and numbers.

def fast(*names):
    return pytest.mark.parametrize("name", [n if n in names else pytest.param(n, marks=pytest.mark.slow) for n in MADE])


@fast("siglip", "digits_pairs")
def test_a_row_is_the_same_in_any_company(name):
    """bit for bit."""
    batch, f, views = rows(13), run(RECIPES[name]()), RECIPES[name]()
    whole, shapes = jax.tree.map(np.asarray, f(batch)), augment.build(views).shapes()
    other = f({**batch, "id": ids(13, epoch=1)})
    assert {k: x.shape for k, x in whole.items()} == {"id": (13, 2), **{k: (13, *shape) for k, shape in shapes.items()}}
    for key in shapes:
        assert whole[key].dtype == np.float32
        if shapes[key][0] > 1:
            assert (np.abs(whole[key][:, 0] - whole[key][:, 1]).max(axis=(1, 2, 3)) > 0.02).all()
        if name != "siglip":  # which draws nothing
            assert (np.abs(other[key] - whole[key]).max(axis=(1, 2, 3, 4)) > 0.02).all()
        if not any(op == "normalize" for op, _ in views[0]):
            assert whole[key].min() >= 0 and whole[key].max() <= 1
    for some in ([0], [12], [5, 3], list(range(12, -1, -1))):
        part = f(jax.tree.map(lambda x: x[some], batch))
        for key in shapes:
            np.testing.assert_array_equal(part[key], whole[key][some], err_msg=str(some))


def test_numbers_follow_row_view_and_op():
    gain = ("intensity", dict(contrast=(0.0, 1.0), p=0.6))
    views = ((RESIZE, ("clip", {}), gain), (RESIZE, gain, ("clip", {})))
    batch = {"views": np.full((50, 2, 8, 8, 3), 0.5, np.float32), "id": ids(50, epoch=3)}
    got = np.asarray(run(views, seed=9)(batch)["views"])

    def share(index, view, op):
        row = jax.random.fold_in(jax.random.fold_in(jax.random.key(9), 3), index)
        u = jax.random.uniform(jax.random.fold_in(jax.random.fold_in(row, view), op), (3,))
        return jnp.where(u[0] < 0.6, u[1], 1.0)

    for view, op in ((0, 2), (1, 1)):
        want = jax.vmap(lambda i: share(i, view, op))(np.arange(50))
        np.testing.assert_allclose(got[:, view, 3, 4, 1], 0.5 * np.asarray(want), atol=1e-6)


def test_the_host_draws_for_crops_what_the_device_draws():
    recipe = augment.build(((CROP, RESIZE, ("flip", {})), (CROP, ("flip", {})), (RESIZE, SMALL)))
    of = ids(20, epoch=2) + np.uint32(5)
    numbers, row_keys = recipe.numbers(7, of), draws.row_keys(7, of)
    assert numbers.shape[:3] == (20, 3, 2) and numbers.dtype == np.float32
    for view in recipe.views:
        for j, op in enumerate(view.chain):
            np.testing.assert_array_equal(numbers[:, view.number, j, :op.uniforms],
                                          draws.uniforms(row_keys, view.number, j, op.uniforms))


@pytest.mark.slow
def test_views_that_share_ops_are_run_together_without_a_trace():
    a, b = (CROP, GAIN), (CROP, ("flip", {}))
    shared, apart, alone = (np.asarray(run(views)(rows(9))["views"]) for views in ((a, b, a), (b, b, a), (a,)))
    np.testing.assert_array_equal(shared[:, 1:], apart[:, 1:])
    np.testing.assert_array_equal(shared[:, :1], alone)


def test_what_the_recipe_does_not_know_passes():
    batch = {**rows(3), "label": np.arange(3), "text": np.arange(6).reshape(3, 2)}
    out = run(((CROP,),))(batch)
    assert out.keys() == {"views", "id", "label", "text"}
    for key in ("id", "label", "text"):
        np.testing.assert_array_equal(out[key], batch[key])


CHANGED = [("flip", {}), ("color_jitter", dict(brightness=0.5, contrast=0.5, saturation=0.5, hue=0.1)),
           ("grayscale", {}), ("blur", dict(kernel=3, sigma=(1.0, 2.0))), ("solarize", dict(threshold=0.3)),
           ("affine", dict(degrees=30.0, translate=0.2)), ("erase", dict(area=(0.2, 0.4))),
           ("intensity", dict(contrast=(0.3, 0.6)))]


def changed(n, views):
    """bool[n, V]: which rows of one picture the ops of the views change."""
    x = np.tile(np.random.default_rng(0).random((1, 1, 8, 8, 3), np.float32), [n, len(views), 1, 1, 1])
    return np.any(np.asarray(run(views)({"views": x, "id": ids(n)})["views"]) != x, axis=(2, 3, 4))


@pytest.mark.parametrize("name,kwargs", CHANGED, ids=[name for name, _ in CHANGED])
def test_an_op_reaches_the_rows_that_drew_it(name, kwargs):
    n, p = 3000, 0.3
    got = changed(n, ((RESIZE, (name, dict(kwargs, p=p))),))[:, 0]
    drew = keys.uniform(keys.fold_in(keys.fold_in(keys.row_keys(0, ids(n)), 0), 1), 1)[:, 0] < p
    np.testing.assert_array_equal(got, drew)
    assert abs(got.mean() - p) < 4 * (p * (1 - p) / n) ** 0.5


@pytest.mark.slow
def test_chances_of_all_and_nothing():
    never, always = (tuple((RESIZE, (name, dict(kwargs, p=p))) for name, kwargs in CHANGED) for p in (0.0, 1.0))
    got = changed(20, never + always)
    assert not got[:, :len(CHANGED)].any() and got[:, len(CHANGED):].all()


def test_every_gated_op_is_tested_for_its_chance():
    gated = {name for name, f in OPS.items() if "p" in inspect.signature(f).parameters}
    assert gated == {name for name, _ in CHANGED}


# The device's crops and the host's.

@fast("simclr", "moco_v1", "byol", "swav", "dinov2", "clip", "digits_crops")
def test_crops_on_the_device_are_those_of_the_host(name):
    """The spatial ops of a recipe on the same numbers: matrix products here, TensorFlow's resize there."""
    views = tuple(tuple(item for item in view if item[0] in ("random_resized_crop", "resize", "center_crop"))
                  for view in RECIPES[name]())
    batch = rows(12)
    got, want = run(views, seed=4)(batch), host_crops(augment.build(views), batch, seed=4)
    assert got.keys() - {"id"} == want.keys() == augment.build(views).shapes().keys()
    for key in want:
        np.testing.assert_allclose(got[key], want[key], atol=1e-5)


@fast("digits")
def test_whole_recipes_on_images_and_on_the_hosts_crops(name):
    """Also what follows the crops: f32 differences of the crops grow by the jitter's factors and the normalisation."""
    views, batch = RECIPES[name](), rows(12)
    crops = host_crops(augment.build(views), batch, seed=4)
    f = run(views, seed=4)
    got, want = f(batch), f({**crops, "id": batch["id"]})
    assert got.keys() == want.keys()
    for key in crops:
        off = np.abs(got[key] - want[key])
        if name in ("moco_v3", "dino", "dinov2"):  # whose solarize jumps by 1/255 at a level that gray pixels do have
            assert np.mean(off > 2e-4) < 1e-4 and off.max() < 1.01 / 255 / 0.224
        else:
            assert off.max() < 2e-4


CHAIN = (("resize", dict(size=20, shorter=True, method="bilinear", antialias=True)), ("center_crop", dict(size=18)), CROP)


@pytest.mark.parametrize("view", [CHAIN, (CROP, ("resize", dict(size=11))), (("center_crop", dict(proportion=0.8)), CROP)],
                         ids=["shorter-center-random", "random-resize", "center-random"])
def test_chains_of_crops(view):
    views, batch = (view, view), rows(5)
    want = host_crops(augment.build(views), batch)["views"]
    np.testing.assert_allclose(run(views)(batch)["views"], want, atol=1e-5)


MULTI = ((SMALL, GAIN), (CROP, GAIN), (SMALL, GAIN), (CROP, ("flip", {})), (SMALL, ("flip", {})))


@pytest.mark.slow
def test_multi_crop_recipes():
    """Two sizes come out as "views" and "crops"; each view draws by its place in the recipe, whatever the batch calls it."""
    recipe, batch = augment.build(MULTI), rows(6)
    assert recipe.shapes() == {"views": (2, 8, 8, 3), "crops": (3, 4, 4, 3)}
    out = run(MULTI)(batch)
    assert out["views"].shape == (6, 2, 8, 8, 3) and out["crops"].shape == (6, 3, 4, 4, 3)
    crops = host_crops(recipe, batch)
    again = run(MULTI)({**crops, "id": batch["id"]})
    for key in ("views", "crops"):
        np.testing.assert_allclose(out[key], again[key], atol=1e-4)
    # Views of one size in the same places: what is large is the same.
    large = ((RESIZE,), MULTI[1], (RESIZE,), MULTI[3], (RESIZE,))
    np.testing.assert_array_equal(run(large)(batch)["views"][:, [1, 3]], out["views"])
    assert augment.build(MULTI[1:2] * 2).shapes() == {"views": (2, 8, 8, 3)}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Pictures of several sizes in a folder; high contrast, so that bicubic crops overshoot."""
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(3)
    for i in range(8):
        image = rng.integers(0, 2, (20 + i, 30 - i, 3), dtype=np.uint8) * 255
        Image.fromarray(image).save(root / f"{i}.png")
    return folder.make(root=str(root), memory=0.0)


def test_crops_shipped_as_bytes_are_within_half_a_level(files):
    """but for what a bicubic overshoots, which is cut; and the recipe goes on from them."""
    views = ((("random_resized_crop", dict(size=16, clip=False)), ("flip", {})), (SMALL, ("flip", {})))
    recipe = augment.build(views)
    words, bytes_ = (next(data.batches(files, recipe, batch=8, seed=0, bits=bits)) for bits in (16, 8))
    of = [host_crops(recipe, {"image": files.read(int(i)).image[None], "id": words["id"][k:k + 1]})
          for k, (i, _) in enumerate(words["id"])]
    f = jax.jit(augment.make(recipe, 0))
    after = [f({k: b[k] for k in ("views", "crops", "id")}) for b in (words, bytes_)]
    for key in ("views", "crops"):
        exact = np.concatenate([row[key] for row in of])
        assert exact.min() < -0.02 and exact.max() > 1.02 or key == "crops"
        assert bytes_[key].dtype == np.uint8 and words[key].dtype == np.uint16
        assert np.abs(bytes_[key] / 255 - np.clip(exact, 0, 1)).max() <= 0.5 / 255 + 1e-6
        assert np.abs(words[key] * (2 / 65535) - 0.5 - exact).max() <= 1 / 65535 + 1e-6
        assert {0, 255} <= set(np.unique(bytes_[key]))
        flipped = np.where(np.abs(after[0][key] - exact).max(axis=(2, 3, 4), keepdims=True) < 2e-5, exact, exact[..., ::-1, :])
        assert np.abs(after[0][key] - flipped).max() <= 1 / 65535 + 1e-6
        assert np.abs(after[1][key] - np.clip(flipped, 0, 1)).max() <= 0.5 / 255 + 1e-6


def test_the_pipelines_crops_are_those_of_each_row_alone(files):
    recipe = augment.build(RECIPES["simclr"]())
    batch = next(data.batches(files, recipe, batch=8, seed=5))
    for row in range(8):
        alone = {"image": files.read(int(batch["id"][row, 0])).image[None], "id": batch["id"][row:row + 1]}
        want = host_crops(recipe, alone, seed=5)["views"][0]
        np.testing.assert_allclose(batch["views"][row] * (2 / 65535) - 0.5, want, atol=1 / 65535 + 1e-6)


def test_rows_of_any_type_are_the_same():
    """u8 and u16 as the host ships them, and f32."""
    views = ((RESIZE, GAIN),)
    bytes_ = pictures(6, 8, 8)[:, None]
    f, x = run(views), bytes_.astype(np.float32) / 255
    words = np.rint((x.astype(np.float64) + 0.5) * 32767.5).astype(np.uint16)
    want = f({"views": x, "id": ids(6)})["views"]
    np.testing.assert_allclose(f({"views": bytes_, "id": ids(6)})["views"], want, atol=1e-6)
    np.testing.assert_allclose(f({"views": words, "id": ids(6)})["views"], want, atol=1.7e-5)


# Images squeezed into one size.

def test_windows_on_squeezed_images_have_the_law_of_the_originals():
    """Images whose pixels tell their places, so that crops tell their windows: those of the originals, scaled."""
    view = ("random_resized_crop", dict(size=2, method="bilinear", sampling="torch"))
    height, width, n = 200, 100, 400
    ramps = np.zeros((height, width, 3), np.uint8)
    ramps[..., 0], ramps[..., 1] = np.arange(height)[:, None], np.arange(width)
    sizes = np.tile(np.array([[400, 300], [150, 600], [200, 100], [77, 90]], np.int32), (n // 4, 1))
    batch = {"image": np.repeat(ramps[None], n, axis=0), "id": ids(n), "size": sizes}
    recipe = augment.build(((view,), (view,)))
    out = run(((view,), (view,)))(batch)
    assert out.keys() == {"views", "id"}
    crops, numbers = np.asarray(out["views"]) * 255, recipe.numbers(0, ids(n))
    for v in range(2):
        # Output pixels lie at a quarter and at three quarters of a window.
        (y0, x0), (y1, x1) = crops[:, v, 0, 0, :2].T, crops[:, v, 1, 1, :2].T
        got = np.stack([y0 - (y1 - y0) / 2 + 0.5, x0 - (x1 - x0) / 2 + 0.5, 2 * (y1 - y0), 2 * (x1 - x0)], axis=1)
        got *= np.tile(sizes / [height, width], 2)  # in pixels of the originals
        want = recipe.views[v].chain[0].windows(numbers[:, v, 0], sizes[:, 0], sizes[:, 1], np)
        np.testing.assert_allclose(got, want, atol=0.05)
    free = (sizes != [150, 600]).any(axis=1)  # of the widest nearly all windows span its height
    ratio = np.log(got[:, 3] / got[:, 2])
    assert np.abs(ratio).max() < np.log(4 / 3) + 0.05 and np.abs(ratio[free].mean()) < 0.05
    plain = np.asarray(run(((view,), (view,)))({k: batch[k] for k in ("image", "id")})["views"]) * 255
    assert np.abs(plain - crops)[free].max() > 10  # without sizes windows are those of a 200 x 100 image


@pytest.mark.parametrize("name", ["clip", *(pytest.param(n, marks=pytest.mark.slow) for n in ("simclr_linear", "siglip"))])
def test_squeezed_images_of_unchanged_size_are_ordinary_ones(name):
    batch = rows(6)
    f = run(RECIPES[name]())
    sized = f({**batch, "size": np.tile(np.array([[29, 35]], np.int32), (6, 1))})
    np.testing.assert_allclose(sized["views"], f(batch)["views"], atol=1e-5)


# Plain data.

@pytest.mark.parametrize("name", [pytest.param("byol", marks=pytest.mark.slow), "digits"])
def test_a_recipe_survives_json(name):
    views = RECIPES[name]()
    again = json.loads(json.dumps(views))
    assert again != views  # lists
    np.testing.assert_array_equal(run(again)(rows(3))["views"], run(views)(rows(3))["views"])
    assert [v.ops for v in augment.build(again).views] == [v.ops for v in augment.build(views).views]


EVALS = [(recipes.simclr_eval(16), (40, 30)), (recipes.simclr_cifar_eval(16), (16, 16)), (recipes.byol_eval(16), (29, 40)),
         (recipes.torch_eval(14, 16), (40, 33)), (recipes.digits_eval(8), (8, 8)), (recipes.clip_eval(14), (33, 40)),
         (recipes.siglip_eval(14), (33, 40))]


@pytest.mark.parametrize("ops,shape", EVALS)
def test_eval_recipes(tmp_path, ops, shape):
    """As written out here; from arrays by one program, and from files by the host."""
    images = pictures(5, *shape)
    x = images.astype(np.float32) / 255
    if ops[0][0] == "center_crop":
        side = (int if "floor" in ops[0][1] else round)(ops[0][1]["proportion"] * min(shape))
        y0, x0 = (shape[0] - side + 1) // 2, (shape[1] - side + 1) // 2
        x = x[:, y0:y0 + side, x0:x0 + side]
    if ops == recipes.torch_eval(14, 16):
        x = tf.image.resize(x, [19, 16], "bilinear", antialias=True)[:, 2:16, 1:15]  # 16 * 40 // 33, round(2.5)
    elif ops == recipes.clip_eval(14):
        x = tf.image.resize(x, [14, 16], "bicubic", antialias=True)[:, :, 1:15]  # 14 * 40 // 33
    else:
        resized = next(kwargs for name, kwargs in ops if name == "resize")
        x = tf.image.resize(x, [resized["size"]] * 2, resized.get("method", "bicubic"),
                            antialias=resized.get("antialias", False))
    want = np.clip(x, 0, 1)
    if ops[-1][0] == "normalize":
        want = (want - np.float32(ops[-1][1]["mean"])) / np.float32(ops[-1][1]["std"])
    np.testing.assert_allclose(augment.evaluate(augment.build_eval(ops))(images), want, atol=2e-5)
    for i, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    got = [b["image"] for b in feeding.examples(folder.make(root=str(tmp_path), memory=0.0), ops, batch=3)]
    np.testing.assert_allclose(np.concatenate(got), want, atol=2e-5)


def test_an_evaluation_of_fewer_images_is_filled_up_and_cut_again():
    f = augment.evaluate(augment.build_eval((("resize", dict(size=8)), recipes.IMAGENET)))
    images = pictures(7)
    whole = f(images)
    np.testing.assert_array_equal(f(images[:3]), whole[:3])
    crops = np.random.default_rng(0).random((4, 8, 8, 3), np.float32)
    want = (crops - np.float32(recipes.IMAGENET[1]["mean"])) / np.float32(recipes.IMAGENET[1]["std"])
    np.testing.assert_allclose(f(crops), want, atol=1e-6)  # made already: what follows the crops
    plain = augment.evaluate(augment.build_eval((RESIZE,)))
    assert plain(crops) is crops


# The host's cores.

def parts(n, stop=None, closed=None):
    try:
        for k in itertools.count():
            if k == stop:
                raise UsageError("gone")
            yield {"image": pictures(n, seed=k), "id": ids(n) + np.uint32([n * k, 0])}
    finally:
        if closed is not None:
            closed.append(True)


@pytest.mark.parametrize("workers,piece", [(3, 4), *(pytest.param(*how, marks=pytest.mark.slow) for how in ((1, 12), (5, 1)))])
def test_pieces_make_batches_in_order(workers, piece):
    f, closed = augment.make(augment.build(((CROP, ("flip", {})),)), 0), []
    stream = augment.finished(parts(piece, closed=closed), f, rows=12, workers=workers)
    for k in range(3):
        got = next(stream)
        assert got["views"].shape == (12, 1, 8, 8, 3) and isinstance(got["views"], np.ndarray)
        np.testing.assert_array_equal(got["id"][:, 0], np.arange(12 * k, 12 * k + 12))
        images = np.concatenate([pictures(piece, seed=s) for s in range(12 // piece * k, 12 // piece * (k + 1))])
        np.testing.assert_array_equal(got["views"], jax.jit(f)({"image": images, "id": got["id"]})["views"])
    stream.close()
    assert closed


def test_what_ends_the_pieces_ends_the_batches():
    stream = augment.finished(parts(4, stop=7), augment.make(augment.build(((CROP,),)), 0), rows=8, workers=2)
    with pytest.raises(UsageError, match="gone"):
        list(itertools.islice(stream, 5))


def test_jax_without_a_cpu_is_refused_in_one_line(monkeypatch):
    def none(backend=None):
        raise RuntimeError("Unknown backend cpu")
    monkeypatch.setattr(jax, "local_devices", none)
    with pytest.raises(UsageError, match="JAX_PLATFORMS=.*add ',cpu'"):
        next(augment.finished(parts(4), lambda batch: batch, rows=4, workers=1))


# What is refused.

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
    (((("resize", dict(size=8, shorter=True)),),), "no fixed size"),
    (((("flip", {}), CROP),), "crops and resizes come first"),
    (((CROP,), (("resize", dict(size=9)),), (SMALL,)), "sizes \\[8, 9, 4\\]"),
    (((CROP, "flip"),), "wanted \\(op, kwargs\\)"),
    ((("flip", {}),), "wanted \\(op, kwargs\\)"),
    ((7,), "wanted a tuple of"),
])
def test_mistakes_are_one_line(views, words):
    with pytest.raises(UsageError, match=words) as e:
        augment.build(views)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("ops", [(CROP,), (RESIZE, ("flip", {})), (RESIZE, ("intensity", {}))])
def test_an_evaluation_may_not_draw(ops):
    with pytest.raises(UsageError, match="is random"):
        augment.build_eval(ops)


def test_an_evaluation_has_a_size():
    with pytest.raises(UsageError, match="no fixed size"):
        augment.build_eval((("resize", dict(size=8, shorter=True)),))
