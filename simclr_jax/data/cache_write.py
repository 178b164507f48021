"""Writes a pre-decoded cache: every example of a source read once, resized in threads, and put into shards."""
import contextlib
import json
import os
from typing import Callable

import numpy as np

from simclr_jax.data import cache
from simclr_jax.data.decoded import Differs, decoded
from simclr_jax.data.source import Source
from simclr_jax.errors import UsageError

_SAMPLE = 64  # images looked at to choose a size
_PLAN = "plan.json"  # what is being written; it is locked while that goes on


def write(source: Source, root: str, split: str, *, size: int = 0, shards: int = 0, threads: int = 0,
          say: Callable = print) -> cache.Index:
    """Writes a split of a cache, or goes on where that was interrupted; a split that is there already is left as it is.

    Args:
      source: the examples; unreadable ones are left out, and listed in DIR/SPLIT/left_out.txt.
      root: the cache's directory, on a disk of this machine.
      size: side of the squeezed images; 0: `cache.SIDE`, or less where nearly all images are smaller; images that are
        all of one size are then stored as they are.
      shards: how many files; 0: files of about `cache.SHARD` bytes, but at most `cache.MOST`.
      threads: that decode and resize; 0: all cores.
      say: is given lines about what happens.

    Raises:
      UsageError: the directory holds something else or is being written by another process, the disk is full or cannot
        be written, or more examples are unreadable than the source allows.
    """
    place = cache.folder(root, split)
    if "://" in root:
        raise UsageError(f"--cache={root}: a cache is mapped into memory; give a directory on a disk of this machine")
    if min(size, shards, threads) < 0 or size > 2**14:
        raise UsageError(f"size={size}, shards={shards}, threads={threads}: wanted 0 (chosen) or a number above, and a "
                         f"size of at most {2**14}")
    if os.path.exists(place):
        return _there(source, root, split, size, say)
    try:
        with _locked(place + cache.PARTIAL) as lock:
            asked = dict(version=cache.VERSION, source=source.digest, examples=source.size, size=size, shards=shards)
            plan = _kept_plan(lock, asked, place, say) or _new_plan(lock, asked, source, size, threads)
            try:
                index = _fill(source, place, plan, threads, say)
            except Differs:
                side = min(cache.SIDE, max(plan["shape"]))
                say(f"{split}: the images are not all of one size; starting anew, squeezed to {side} x {side}")
                index = _fill(source, place, _save(lock, asked, (side, side), True), threads, say)
            os.rename(place + cache.PARTIAL, place)
    except OSError as e:
        raise UsageError(f"--cache={root}: {e.filename or place} cannot be written ({e.strerror or e}); make room, or "
                         "take another directory; what is written stays, and the same command goes on") from None
    for name in os.listdir(place):
        if name == _PLAN or name.startswith("part-"):
            os.unlink(os.path.join(place, name))
    return index


def _there(source, root, split, size, say):
    place = cache.folder(root, split)
    if not os.path.isfile(os.path.join(place, cache.INDEX)):
        raise UsageError(f"--cache={root}: {place} is there and holds no cache; take another directory")
    index = cache.read(root, split)
    if index.source != source.digest or size and index.shape != (size, size):
        raise UsageError(f"--cache={root}: {place} is there already and holds another cache ({index.describe}, "
                         f"{index.shape[0]} x {index.shape[1]}); remove it, or take another directory")
    say(f"{split}: is there already, whole; nothing to do")
    return index


@contextlib.contextmanager
def _locked(partial):
    """The plan's file, open for this process alone."""
    import fcntl

    strange = os.path.isdir(partial) and os.listdir(partial) and not os.path.exists(os.path.join(partial, _PLAN))
    if strange:
        raise UsageError(f"{partial} is there and is no unfinished cache; take another directory")
    os.makedirs(partial, exist_ok=True)
    with open(os.path.join(partial, _PLAN), "a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"{partial} is being written by another process; wait for it, or take another "
                             "directory") from None
        yield lock


def _kept_plan(lock, asked, place, say):
    """The plan of an interrupted write, if it was of the same; else its files are removed."""
    partial = place + cache.PARTIAL
    lock.seek(0)
    try:
        plan = json.loads(lock.read())
    except ValueError:
        plan = None
    if plan is not None and plan["asked"] == asked:
        say(f"going on in {partial}")
        return plan
    others = [name for name in os.listdir(partial) if name != _PLAN]
    if others:
        say(f"{partial} was begun with something else; starting anew")
    for name in others:
        os.unlink(os.path.join(partial, name))
    return None


def _save(lock, asked, shape, squeezed):
    plan = dict(asked=asked, shape=list(shape), squeezed=squeezed)
    lock.seek(0)
    lock.truncate()
    lock.write(json.dumps(plan))
    lock.flush()
    for name in os.listdir(os.path.dirname(lock.name)):
        if name != _PLAN:
            os.unlink(os.path.join(os.path.dirname(lock.name), name))
    return plan


def _new_plan(lock, asked, source, size, threads):
    if size:
        return _save(lock, asked, (size, size), True)
    if source.shape is not None:
        return _save(lock, asked, source.shape, False)
    sample = np.unique(np.linspace(0, source.size - 1, min(_SAMPLE, source.size)).astype(np.int64))
    with contextlib.closing(decoded(source, sample, threads=threads)) as examples:
        sizes = np.array([size for _, _, _, size, own in examples if own]).reshape(-1, 2)
    if len(sizes) and (sizes == sizes[0]).all():
        return _save(lock, asked, sizes[0].tolist(), False)
    # Where nearly all are smaller, a larger array would hold nothing more.
    side = min(cache.SIDE, int(np.ceil(np.quantile(sizes.max(1), 0.95)))) if len(sizes) else cache.SIDE
    return _save(lock, asked, (side, side), True)


def _fill(source, place, plan, threads, say):
    """Writes the shards that are missing and the index; the index."""
    shape, partial = tuple(plan["shape"]), place + cache.PARTIAL
    row = int(np.prod(shape)) * 3
    count = plan["asked"]["shards"] or min(max(1, -(-source.size * row // cache.SHARD)), cache.MOST)
    count = min(count, source.size)
    bounds = [source.size * i // count for i in range(count + 1)]
    parts = [_part(partial, i, count) for i in range(count)]
    missing = [i for i in range(count) if parts[i] is None]
    wanted = np.concatenate([np.arange(bounds[i], bounds[i + 1]) for i in missing] or [np.zeros(0, np.int64)])
    free = cache.free_bytes(partial)
    if len(wanted) * row > free:
        raise UsageError(f"{place}: {len(wanted)} images of {shape[0]} x {shape[1]} take "
                         f"{len(wanted) * row / 2**20:,.1f} MiB and {free / 2**20:,.1f} MiB are free; make room, or "
                         "take a smaller --size")
    done = source.size - len(wanted)
    say(f"{os.path.basename(place)}: {source.size:,} images as {shape[0]} x {shape[1]}, "
        f"{'squeezed' if plan['squeezed'] else 'as they are'}, in {count} shards, {source.size * row / 2**20:,.1f} MiB"
        + (f"; {count - len(missing)} shards are there" if done else ""))
    with contextlib.closing(decoded(source, wanted, shape, plan["squeezed"], threads=threads)) as examples:
        for i in missing:
            parts[i] = _write_shard(source, examples, bounds[i + 1] - bounds[i], partial, i, count, shape)
            done += bounds[i + 1] - bounds[i]
            if count > 1:
                say(f"  shard {i + 1} of {count}, {done / source.size:.0%}")
    index = _joined(source, parts, shape, plan["squeezed"])
    lines = sorted({line for part in parts for line in part["problems"]})
    if lines:
        left_out = os.path.join(partial, "left_out.txt")
        with open(left_out, "w", errors="surrogateescape") as f:
            f.write("\n".join(lines) + "\n")
    for line in lines[:20]:
        say(f"  left out: {line}")
    if lines:
        say(f"  left out: {len(lines)} unreadable examples, listed in {os.path.join(place, 'left_out.txt')}")
    small = 0 if index.sizes is None else int((index.sizes < shape).any(1).sum())
    if small:
        say(f"  {small:,} of {len(index.labels):,} images are smaller than {shape[0]} x {shape[1]} and were enlarged, "
            "as all are stored in one size; --size=N for another")
    cache.write_index(os.path.join(partial, cache.INDEX), index)
    return index


def _part(partial, number, count):
    """What is known of a shard written before: a dict; None if it is not there, whole."""
    try:
        about, arrays = cache.read_arrays(os.path.join(partial, f"part-{number:05}.npz"))
        size = os.path.getsize(os.path.join(partial, cache.shard(number, count)))
    except (OSError, ValueError):
        return None
    return {**about, **arrays} if about["bytes"] == size and about["shards"] == count else None


def _write_shard(source, examples, count, partial, number, shards, shape):
    labels, indices, sizes, captions = [], [], [], []
    file = os.path.join(partial, cache.shard(number, shards))
    out = cache.ShardFile(file, shape)
    try:
        for _ in range(count):
            index, image, label, size, own = next(examples)
            if not own:
                continue
            out.add(image)
            labels.append(label)
            indices.append(index)
            sizes.append(size)
            if source.captions is not None:
                captions.append(_captions(source, index))
        crc = out.finish()
    finally:
        out.close()
    about = dict(crc=crc, bytes=os.path.getsize(file), shards=shards, problems=list(source.problems()))
    arrays = dict(labels=np.array(labels, np.int64), examples=np.array(indices, np.int64),
                  sizes=np.array(sizes, np.int32).reshape(-1, 2))
    if source.captions is not None:
        arrays |= zip(("text", "ends", "first"), cache.packed(captions))
    cache.write_arrays(os.path.join(partial, f"part-{number:05}.npz"), about, arrays)
    return {**about, **arrays}


def _captions(source, index):
    try:
        return source.captions(int(index))
    except UsageError:
        raise
    except (OSError, ValueError) as e:
        raise UsageError(f"{source.describe}: the captions of example {index} cannot be read: "
                         f"{' '.join(str(e).split())}; mend or remove them") from None


def _joined(source, parts, shape, squeezed):
    """The index of all shards."""
    column = lambda name: np.concatenate([part[name] for part in parts])  # noqa: E731
    sizes, captions = column("sizes"), None
    if source.captions is not None:
        bytes_before = np.cumsum([0] + [len(p["text"]) for p in parts])
        texts_before = np.cumsum([0] + [len(p["ends"]) for p in parts])
        captions = (column("text"), np.concatenate([p["ends"] + n for p, n in zip(parts, bytes_before)]),
                    np.concatenate([[0], *(p["first"][1:] + n for p, n in zip(parts, texts_before))]))
    index = cache.Index(tuple(shape), np.array([len(p["labels"]) for p in parts]),
                        np.array([p["crc"] for p in parts], np.uint32), column("labels"), column("examples"),
                        sizes if squeezed and (sizes != shape).any() else None, captions, tuple(source.classes),
                        source.describe, source.digest, 0)
    return index._replace(digest=cache.digest(index))
