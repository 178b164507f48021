"""A recipe is plain data: a tuple of views, each a tuple of (op, kwargs). This file turns one into tf.data functions.

Numbers follow the example: op j of view v of a row draws from fold_in(fold_in(row key, v), j), so a view's pixels
depend on nothing but the row's key and image. A view starts with its spatial ops (per image, any size); the rest run
on a batch.
"""
from typing import Callable, Mapping, NamedTuple, Sequence

from simclr_jax.data import random
from simclr_jax.data.host_tf import tensorflow
from simclr_jax.data.ops import resample, schema
from simclr_jax.data.ops.kinds import Pixel, Spatial
from simclr_jax.errors import UsageError

tf = tensorflow()

# Floats that pixel ops work on at a time. Measured at 2 views of 224 x 224 and 64 rows: 3 times as fast as all at once,
# and anything between 2**18 and 2**21 does as well.
_CHUNK = 2**20


class Views(NamedTuple):
    """What a recipe does, as graph functions. V = count, S = size; images leave a recipe without `normalize` in [0, 1].

    spatial: (image u8[H, W, 3], row key u32[2]) -> f32[V, S, S, 3]: the crops of one image of any size.
    spatial_batch: (images u8[n, H, W, 3], row keys u32[n, 2]) -> f32[n, V, S, S, 3]: of images of one size, faster.
    pixel: (views f32[n, V, S, S, 3], row keys u32[n, 2]) -> the same shape: all other ops.
    numbers: row keys u32[n, 2] -> f32[n, V, J, K]: the numbers that `spatial` would draw.
    spatial_from: (image, numbers f32[V, J, K]) -> f32[V, S, S, 3]: `spatial` without the drawing, which costs as much
      for one row as for a thousand; draw for a batch of keys, unbatch, and call this.
    """
    spatial: Callable
    spatial_batch: Callable
    pixel: Callable
    numbers: Callable
    spatial_from: Callable
    size: int
    count: int


def build_views(views: Sequence) -> Views:
    """Interprets a recipe.

    Args:
      views: one sequence of (op, kwargs) a view; lists and mappings as they come from JSON will do.

    Raises:
      UsageError: an unknown op or kwarg, a value of the wrong type or out of range, a spatial op after a pixel op, or
        views of different or unknown sizes.
    """
    if not isinstance(views, (list, tuple)) or not views:
        raise UsageError(f"views={views!r}; wanted a tuple of views, each a tuple of (op, kwargs)")
    parsed = [_parse(view, f"view {v}") for v, view in enumerate(views)]
    sizes = [size for _, _, size, _ in parsed]
    for v, size in enumerate(sizes):
        if size is None:
            raise UsageError(f"view {v} has no fixed size; start it with random_resized_crop, or end its crops with "
                             "resize or center_crop of a `size`")
    if len(set(sizes)) > 1:
        raise UsageError(f"views come out at sizes {sizes}; wanted one size, as all views share an array")
    count, size = len(parsed), sizes[0]
    chains = [chain for chain, _, _, _ in parsed]
    depth = max(len(chain) for chain in chains)
    most = max([op.uniforms for chain in chains for op in chain], default=0)
    # Views with the same pixel ops at the same places are one batch.
    groups = {}
    for v, (_, pixels, _, key) in enumerate(parsed):
        groups.setdefault(key, (len(chains[v]), pixels, []))[2].append(v)

    def numbers(row_keys):
        return _numbers(row_keys, count, depth, most)

    def spatial_from(image, numbers):
        out = []
        for v, chain in enumerate(chains):
            x = image
            for j, op in enumerate(chain):
                shape = tf.shape(x)
                x = resample.one(op, x, op.draw(numbers[None, v, j, :op.uniforms], shape[0], shape[1])[0])
            out.append(tf.ensure_shape(x, [size, size, 3]))
        return tf.stack(out)

    def spatial_one(image, row_key):
        return spatial_from(image, numbers(row_key[None])[0])

    def spatial_batch(images, row_keys):
        u = numbers(row_keys)
        out = []
        for v, chain in enumerate(chains):
            x = images
            for j, op in enumerate(chain):
                x = resample.batch(op, x, op.draw(u[:, v, j, :op.uniforms], x.shape[1], x.shape[2]))
            out.append(tf.ensure_shape(x, [None, size, size, 3]))
        return tf.stack(out, axis=1)

    def pixel_from(images, u):
        n = tf.shape(images)[0]
        out = [None] * count
        for first, ops, members in groups.values():
            k = len(members)
            x = tf.reshape(tf.gather(images, members, axis=1), [n * k, size, size, 3])
            own = tf.reshape(tf.gather(u, members, axis=1), [n * k, *u.shape[2:]])
            x = _run(ops, tf.transpose(x, [0, 3, 1, 2]), own[:, first:], size)
            x = tf.reshape(tf.transpose(x, [0, 2, 3, 1]), [n, k, size, size, 3])
            for i, v in enumerate(members):
                out[v] = x[:, i]
        return x if len(groups) == 1 else tf.stack(out, axis=1)

    def pixel(images, row_keys):
        deepest = max(first + len(ops) for first, ops, _ in groups.values())
        widest = max([_consumes(op) for _, ops, _ in groups.values() for op in ops], default=0)
        u = _numbers(row_keys, count, deepest, widest)
        return _in_chunks(pixel_from, images, u, max(1, _CHUNK // (count * size * size * 3)))

    return Views(spatial_one, spatial_batch, pixel, numbers, spatial_from, size, count)


def build_eval(ops: Sequence) -> Callable:
    """Interprets one view without randomness: fn(image u8[H, W, 3]) -> f32[S, S, 3].

    Raises:
      UsageError: as `build_views`, or an op that draws.
    """
    chain, pixels, size, _ = _parse(ops, "eval")
    if size is None:
        raise UsageError("eval: images have no fixed size; end the crops with resize or center_crop of a `size`")
    for name, op in zip([name for name, _ in ops], chain + pixels):
        if _consumes(op) if isinstance(op, Pixel) else op.uniforms:
            raise UsageError(f"eval: {name} is random; wanted ops that draw nothing, such as resize or normalize")

    def fn(image):
        none = tf.zeros([1, 0])
        for op in chain:
            shape = tf.shape(image)
            image = resample.one(op, image, op.draw(none, shape[0], shape[1])[0])
        x = tf.ensure_shape(image, [size, size, 3])[None]
        x = _run(pixels, tf.transpose(x, [0, 3, 1, 2]), tf.zeros([1, len(pixels), 0]), size)
        return tf.transpose(x, [0, 2, 3, 1])[0]

    return fn


def _numbers(row_keys, count: int, depth: int, most: int):
    """The first `most` numbers of ops 0 to depth - 1 of each view: f32[n, count, depth, most], in three calls.

    Never empty: unbatching an empty tensor is a segmentation fault in TensorFlow 2.21.
    """
    if not depth or not most:
        return tf.zeros([tf.shape(row_keys)[0], count, max(depth, 1), max(most, 1)])
    keys = random.fold_in(row_keys[:, None], tf.range(count))
    keys = random.fold_in(keys[:, :, None], tf.range(depth))
    return random.uniform(keys, most)


def _in_chunks(f, images, u, rows: int):
    """f(images, u), some rows at a time, so that what passes from op to op stays in a core's cache."""
    n = tf.shape(images)[0]
    steps = tf.maximum((n + rows - 1) // rows, 1)
    parts = tf.TensorArray(tf.float32, steps, element_shape=[None, *images.shape[1:]], infer_shape=False)

    def body(i, parts):
        start, stop = i * rows, tf.minimum(i * rows + rows, n)
        return i + 1, parts.write(i, f(images[start:stop], u[start:stop]))

    _, parts = tf.while_loop(lambda i, parts: i < steps, body, (0, parts), parallel_iterations=1)
    return tf.ensure_shape(parts.concat(), images.shape)


def _run(ops, x, numbers, size: int):
    """Pixel ops in turn on planar images, each computed only for the rows that drew it."""
    for j, op in enumerate(ops):
        u = numbers[:, j, :_consumes(op)]
        if op.p is None:
            x = op.apply(x, op.draw(u, size))
        elif op.p >= 1:
            x = op.apply(x, op.draw(u[:, 1:], size))
        elif op.p > 0:
            rows = tf.where(u[:, 0] < op.p)
            y = op.apply(tf.gather_nd(x, rows), op.draw(tf.gather_nd(u, rows)[:, 1:], size))
            x = tf.tensor_scatter_nd_update(x, rows, y)
    return x


def _consumes(op: Pixel) -> int:
    return op.uniforms + (op.p is not None)


def _parse(view, where: str):
    """A view's spatial ops, its pixel ops, its size (None if it varies) and what makes its pixel ops those."""
    chain, pixels, size, key = [], [], None, []
    if not isinstance(view, (list, tuple)):
        raise UsageError(f"{where}: {view!r}; wanted a tuple of (op, kwargs)")
    for j, item in enumerate(view):
        if not (isinstance(item, (list, tuple)) and len(item) == 2 and isinstance(item[0], str)
                and isinstance(item[1], Mapping)):
            raise UsageError(f"{where}, op {j}: {item!r}; wanted (op, kwargs), such as ('flip', {{'p': 0.5}})")
        name, op = item[0], schema.make(item[0], item[1], f"{where}, op {j}")
        if isinstance(op, Pixel):
            if op.p is not None and not 0 <= op.p <= 1:
                raise UsageError(f"{where}, op {j}: {name}: p={op.p}; wanted a chance between 0 and 1")
            pixels.append(op)
            key.append((name, repr(sorted((k, schema.plain(v)) for k, v in item[1].items()))))
            continue
        if pixels:
            raise UsageError(f"{where}, op {j}: {name} comes after {view[j - 1][0]}; crops and resizes come first")
        if op.size is not None and op.size < 1:
            raise UsageError(f"{where}, op {j}: {name}: size={op.size}; wanted at least 1 pixel")
        chain.append(op)
        size = op.size
    return chain, pixels, size, (len(chain), *key)
