"""From a source and a recipe to NumPy batches, on the host's cores.

Nothing here holds a position: a batch is a function of (seed, step, process) alone, so a run resumes at any step, on
any number of processes, by starting there.

Images of one size are gathered from memory or a memory map and left to the recipe's one program. Images of any size are
read, decoded, cropped and resized by tf.data.
"""
import collections
import functools
import itertools
from typing import Iterator

import numpy as np

from simclr_jax import keys
from simclr_jax.data import captions, flow, order
from simclr_jax.data.decode import part, plain_jpeg
from simclr_jax.data.host_tf import tensorflow
from simclr_jax.data.memory import in_memory
from simclr_jax.data.source import Example, Source, failed
from simclr_jax.errors import UsageError


def batches(source: Source, recipe, *, batch: int, seed: int, start_step: int = 0, process: tuple[int, int] = (0, 1),
            workers: int | None = None, tokenizer=None, bits: int = 16,
            piece: int | None = None) -> Iterator[dict[str, np.ndarray]]:
    """The training batches of one process, from a step on, without end: what the host makes of a recipe.

    Args:
      source: the examples.
      recipe: `simclr_jax.augment.build(views)`.
      batch: rows of the global batch, over all processes.
      seed: 0 <= seed < 2**32; of the order of examples and of the augmentations.
      start_step: the first step wanted, at the cost of none before it.
      process: (index, count) of this process.
      workers: threads that decode and crop; None: all cores but one, which is left to whoever feeds the device.
        The pixels do not depend on it.
      tokenizer: for texts beside the images, something with `encode` (list of n str -> i32[n,L]) and `length` (L).
      bits: of the crops made here. 8: u8, half the bytes to ship; the overshoot of a bicubic is cut. 16: u16, [-.5, 1.5]
        in steps of 2 / 65535, so that nothing is cut and rounding moves a pixel by 1.6e-5 at most.
      piece: give a batch in pieces of so many rows, which divides those of this process; None: whole.

    Returns:
      An iterator of {"label": i32[b], "id": u32[b,2]} with b = batch / count and, if images are of one size,
      "image" u8[b,H,W,3] (and "size" i32[b,2] if they were squeezed into it), else the crops, to which the pixel ops are
      still to be applied: "views" u8 or u16 [b,V,S,S,3], and "crops" [b,K,s,s,3] of multi-crop recipes. id is the example's index in the source and its epoch. With a tokenizer also "text"
      i32[b,L], one of each example's captions, drawn by the row's key. An unreadable example is replaced (see
      `source.of_encoded`), and so is its caption; its id stays.

    Raises:
      UsageError: at once, for what cannot be dealt out or a tokenizer for a source without captions; or from the
        iterator, when more examples are unreadable than the source's `max_bad` allows.
    """
    if start_step < 0:
        raise UsageError(f"start_step={start_step}; wanted a step, 0 or later")
    if workers is not None and workers < 1:
        raise UsageError(f"workers={workers}; wanted at least 1, or None to choose by the machine's cores")
    keys.seed_key(seed)
    positions = order.make(seed, source.size, batch, process, source.shards)
    captions.check(source, tokenizer)
    rows = batch // process[1]
    piece = piece or rows
    if piece < 1 or rows % piece:
        raise UsageError(f"piece={piece} does not divide the {rows} rows of a batch; choose a divisor")
    source = as_read(source, process)

    def ids():
        for step in itertools.count(start_step):
            whole = np.stack(positions(step), axis=1)
            yield from whole.reshape(-1, piece, 2)

    made = _gathered(source, ids()) if source.shape else _cropped(source, recipe, ids(), seed, workers, bits, piece)

    def finished():
        with flow.closing(made):
            for row in made:
                found = row.pop("found")
                if tokenizer is not None:
                    row["text"] = captions.drawn(source, tokenizer, seed, row["id"], found)
                yield row
    return flow.kept(finished())


def _gathered(source, ids):
    """Rows of a source of images of one size."""
    for rows in ids:
        images, labels = source.rows(rows[:, 0])
        size = {} if source.sizes is None else {"size": source.sizes[rows[:, 0]].astype(np.int32)}
        yield {"image": images, **size, "label": labels.astype(np.int32), "id": rows.astype(np.uint32),
               "found": rows[:, 0]}


def _cropped(source, recipe, ids, seed, workers, bits, piece):
    """Crops of images of any size, by tf.data.

    JPEG files are decoded within the graph, where nothing waits for Python. If one of them cannot be, the graph ends
    without a word on which: that piece is made again image by image, which names it, and the graph goes on after it.
    """
    tf = tensorflow()
    ids, making = iter(ids), collections.deque()  # pieces that were asked for and have not been given yet

    def pieces():
        yield from list(making)
        for rows in ids:
            making.append(rows)
            yield rows

    def made(pieces, fetch):
        return flow.iterate(_crops(recipe, pieces, seed, workers, bits, piece, fetch), source, workers)

    while True:
        stream = made(pieces, functools.partial(_fetch, source) if source.load else functools.partial(_read, source))
        try:
            with flow.closing(stream):
                for row in stream:
                    making.popleft()
                    yield row
        except tf.errors.OpError:
            if source.load is None:
                raise
        again = making.popleft()
        with flow.closing(made(lambda: iter([again]), functools.partial(_read, source))) as one:
            yield next(one)


def _crops(recipe, pieces, seed, workers, bits, piece, fetch):
    """The tf.data graph. `fetch` as `_fetch`, `_read`."""
    tf = tensorflow()
    from simclr_jax.data import decode, resize
    plain = tf.autograph.experimental.do_not_convert  # our functions are graph code already; rewriting costs seconds
    # Views that start alike are drawn for in one call, as a call costs the same for one as for many.
    firsts = {}
    for view in recipe.views:
        firsts.setdefault(view.ops[0], (view.chain[0], []))[1].append(view.number)

    def drawn():
        for rows in pieces():  # drawing for a row costs as much as for many
            yield rows, recipe.numbers(seed, rows)

    def fetched(index, numbers):
        places = []

        def cut(height, width):
            places.append(np.empty([len(recipe.views), 8], np.int32))
            for op, views in firsts.values():
                places[-1][views] = resize.places(op, numbers[views, 0], height, width)
            return resize.windows(places[-1])
        data, image, box, example = fetch(int(index), cut)
        where = resize.moved(places[-1], example.windows)
        return data, image, box, np.int32(example.label), np.int64(example.index), where

    def crop(row, numbers):
        kinds = [tf.string, tf.uint8, tf.int32, tf.int32, tf.int64, tf.int32]
        data, image, box, label, index, places = tf.numpy_function(fetched, [row[0], numbers], kinds)
        box, places = tf.ensure_shape(box, [4]), tf.unstack(tf.ensure_shape(places, [len(recipe.views), 8]))
        image = tf.cond(box[2] > 0, lambda: decode.in_graph(tf.ensure_shape(data, []), box), lambda: image)
        image = tf.ensure_shape(image, [None, None, 3])
        out = {}
        for key, shape in recipe.shapes().items():
            views = [_stored(resize.chain(view.chain, image, places[view.number], numbers[view.number], clip=bits != 8),
                             bits) for view in recipe.of(key)]
            out[key] = tf.ensure_shape(tf.stack(views), shape)
        return {**out, "label": tf.ensure_shape(label, []), "id": tf.cast(row, tf.uint32),
                "found": tf.ensure_shape(index, [])}

    shape = recipe.numbers(0, np.zeros([1, 2], np.int64)).shape[1:]
    signature = tf.TensorSpec([piece, 2], tf.int64), tf.TensorSpec([piece, *shape], tf.float32)
    data = tf.data.Dataset.from_generator(drawn, output_signature=signature).unbatch()
    return data.map(plain(crop), flow.calls(workers)).batch(piece)


_NO_IMAGE, _NO_BOX = np.zeros([0, 0, 3], np.uint8), np.zeros(4, np.int32)


def _read(source, index, cut):
    """(b"", image u8[h,w,3], no box, Example): the image is decoded here."""
    example = source.read(index, cut)
    return b"", example.image, _NO_BOX, example


def _fetch(source, index, cut):
    """(file, no image, box i32[4], Example without its image): to be decoded in the graph; else as `_read`."""
    if failed(source) is None and index not in source.problems:
        try:
            data, label = source.load(index)
            shape = plain_jpeg(data)
        except (OSError, ValueError):
            shape = None  # which the other way of reading will say, and find a stand-in
        if shape:
            box, windows = part(cut(*shape), *shape)
            return data, _NO_IMAGE, box, Example(_NO_IMAGE, int(label), index, windows)
    return _read(source, index, cut)


def _stored(image, bits):
    """f32 in units of 0 to 255 as u8, or as u16 from -.5 to 1.5 times 255."""
    tf = tensorflow()
    kind, low, high = (tf.quint8, 0.0, 255.0) if bits == 8 else (tf.quint16, -127.5, 382.5)
    # One op for what would be a multiplication, a clip and a cast: half the time.
    stored = tf.raw_ops.QuantizeV2(input=image, min_range=low, max_range=high, T=kind, mode="MIN_COMBINED",
                                   round_mode="HALF_AWAY_FROM_ZERO")[0]
    return tf.bitcast(stored, tf.uint8 if bits == 8 else tf.uint16)


def as_read(source: Source, process: tuple[int, int] = (0, 1)) -> Source:
    """The source as `batches` reads it: from memory, if that is how its examples are best kept."""
    # With shards and several processes those of the others would be read too.
    return source if source.shards and process[1] > 1 else in_memory(source)


def check(source: Source, *, batch: int, process: tuple[int, int] = (0, 1), tokenizer=None) -> None:
    """Refuses what `batches` would, and reads nothing."""
    order.check(source.size, batch, process, source.shards)
    captions.check(source, tokenizer)
