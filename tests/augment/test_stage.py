"""Rows are run one by one and all at once with the same numbers; neither depends on what else is in the batch."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from simclr_jax.augment import color, filters, geometry, stage
from simclr_jax.augment.kinds import Spatial

S = 24
CROP = Spatial(0, None, lambda h, w: (S, S), S, "bicubic", False, False)
OPS = (geometry.flip(), color.color_jitter(brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2), color.grayscale(),
       color.clip(), filters.blur(kernel=5, p=0.5))
MORE = (color.color_jitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, style="torch", p=1.0),
        filters.blur(kernel=7, padding="reflect", p=0.3), color.solarize(), geometry.affine(degrees=20, p=0.5),
        geometry.erase(), color.intensity(contrast=(0.5, 1.5), p=0.0),
        color.normalize(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4)))


def uniforms(ops, n, seed=0):
    rng = np.random.default_rng(seed)
    return tuple(jnp.asarray(rng.random((n, op.uniforms + (op.p is not None)), np.float32)) for op in ops)


def bytes_of(n, *shape, seed=1):
    return jnp.asarray(np.random.default_rng(seed).integers(0, 256, (n, *shape, 3), dtype=np.uint8))


def boxes(n, seed=2):
    rng = np.random.default_rng(seed)
    h, w = rng.integers(5, 31, n), rng.integers(5, 37, n)
    return jnp.asarray(np.stack([rng.integers(0, 31 - h), rng.integers(0, 37 - w), h, w], 1), jnp.int32)


def by_hand(ops, images, u):
    """Each row by the definition: an op is applied if its first number is below p, with what it draws from the rest."""
    out, compiled = [], [jax.jit(lambda planes, v, op=op: op.apply(planes, op.draw(v, S))) for op in ops]
    for i, image in enumerate(images):
        planes = tuple(jnp.moveaxis(image.astype(jnp.float32) / 255, -1, 0))
        for op, run, v in zip(ops, compiled, u):
            if op.p is None or v[i, 0] < op.p:
                planes = run(planes, v[i, op.p is not None:])
        out.append(jnp.stack(planes, axis=-1))
    return np.stack(out)


run = jax.jit(stage.run, static_argnums=(0, 1))


@pytest.mark.parametrize("ops", [OPS, pytest.param(MORE, marks=pytest.mark.slow)], ids=["simclr", "others"])
def test_finish_is_the_ops_in_turn_on_the_rows_that_drew_them(ops):
    images, u = bytes_of(24, S, S), uniforms(ops, 24)
    got = jax.jit(stage.finish, static_argnums=0)(ops, images, u)
    want = by_hand(ops, images, u)
    assert got.shape == (24, S, S, 3) and got.dtype == jnp.float32
    np.testing.assert_allclose(got, want, atol=2e-5)
    for op, v in zip(ops, u):  # the draws have both: rows with and rows without
        assert op.p in (None, 0.0, 1.0) or 0 < (np.asarray(v)[:, 0] < op.p).sum() < 24


@pytest.mark.parametrize("ops", [OPS, pytest.param(MORE, marks=pytest.mark.slow)], ids=["simclr", "others"])
def test_in_turn_equals_at_once(ops):
    images, windows, u = bytes_of(12, 31, 37), (boxes(24),), uniforms(ops, 24)
    once = jax.jit(lambda *a: stage.at_once((CROP,), ops, *a))(images, windows, u)
    turn = run((CROP,), ops, images, windows, u)  # as tests run on CPUs; how each platform lowers is tested below
    np.testing.assert_allclose(turn, once, atol=2e-5)


@pytest.mark.slow
def test_a_row_does_not_depend_on_its_batch():
    images, windows, u = bytes_of(9, 31, 37), (boxes(9),), uniforms(OPS, 9)
    whole = np.asarray(run((CROP,), OPS, images, windows, u))
    for rows in ([0], [8], [7, 0, 2, 6, 1]):
        part = run((CROP,), OPS, *jax.tree.map(lambda x: x[np.array(rows)], (images, windows, u)))
        np.testing.assert_array_equal(part, whole[np.array(rows)], err_msg=str(rows))


def test_views_of_one_image_are_neighbours():
    ops = (geometry.flip(), color.grayscale(p=0.5))
    images, windows, u = bytes_of(5, 31, 37), (boxes(10),), uniforms(ops, 10)
    got = run((CROP,), ops, images, windows, u)
    np.testing.assert_array_equal(got, run((CROP,), ops, jnp.repeat(images, 2, axis=0), windows, u))
    # And each is the two steps one after the other.
    apart = jax.jit(lambda x, w, u: stage.finish(ops, stage.crop(CROP, x, w), u))(images, windows[0][::2],
                                                                                  tuple(x[::2] for x in u))
    np.testing.assert_allclose(got[::2], apart, atol=2e-6)


def test_crops_in_a_chain():
    """The middle, its size known from the image's, then a resize: as an evaluation does."""
    middle = Spatial(0, lambda u, h, w, xp: xp.asarray([(h - 20) // 2, (w - 20) // 2, 20, 20]), lambda h, w: (h, w), 20,
                     "none", False, False)
    images = bytes_of(3, 31, 37)
    first = jnp.tile(jnp.array([[5, 8, 20, 20]]), (3, 1))
    then = jnp.tile(jnp.array([[0, 0, 20, 20]]), (3, 1))
    got = run((middle, CROP), (), images, (first, then), ())
    np.testing.assert_allclose(got, run((CROP,), (), images[:, 5:25, 8:28], (then,), ()), atol=1e-6)


def test_sharded_rows_equal_those_of_one_device(mesh):
    images, windows, u = bytes_of(8, 31, 37), (boxes(16),), uniforms(MORE, 16)
    f = lambda *a: stage.run((CROP,), MORE, *a)
    sharded = jax.jit(jax.shard_map(f, mesh=mesh(4), in_specs=P("data"), out_specs=P("data")))
    np.testing.assert_array_equal(sharded(images, windows, u), jax.jit(f)(images, windows, u))


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_accelerators_get_the_program_without_loops_over_rows(platform):
    images, windows, u = bytes_of(6, 31, 37), (boxes(12),), uniforms(OPS, 12)
    f = jax.jit(lambda *a: stage.run((CROP,), OPS, *a))
    text = f.trace(images, windows, u).lower(lowering_platforms=(platform,)).as_text()
    for slow in ("while", "gather", "dynamic_slice"):
        assert f"stablehlo.{slow}" not in text
    assert "stablehlo.dot_general" in text and "HIGHEST" in text and "DEFAULT" not in text
    assert "stablehlo.while" in f.trace(images, windows, u).lower(lowering_platforms=("cpu",)).as_text()
