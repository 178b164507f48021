"""A recipe's JAX part run on the host's own cores, ahead of the step: XLA's CPU backend beside whatever the step is on."""
import collections
import sys
from concurrent import futures
from typing import Callable, Iterator

import jax
import numpy as np

from simclr_jax.augment import resample, stage
from simclr_jax.augment.recipe import View
from simclr_jax.errors import UsageError


def cpu():
    """The host's CPU as a JAX device.

    Raises:
      UsageError: JAX was told to use other platforms only.
    """
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        raise UsageError(f"JAX_PLATFORMS={jax.config.jax_platforms!r} leaves no CPU backend to augment and evaluate with; "
                         "add ',cpu' to it, or unset it") from None


def finished(pieces: Iterator[dict], augment: Callable, *, rows: int, workers: int) -> Iterator[dict[str, np.ndarray]]:
    """Batches of `rows` rows, augmented, from pieces of them: `workers` pieces at a time, each on one core.

    Args:
      pieces: dicts of arrays whose number of rows divides `rows`, and is always the same.
      augment: `device.make(recipe, seed)`.
    """
    device, run = cpu(), jax.jit(augment)

    def work(piece):
        return jax.tree.map(np.asarray, run(jax.device_put(piece, device)))

    waiting, pool, buffers = collections.deque(), futures.ThreadPoolExecutor(workers), {}
    try:
        while True:
            batch, at = None, 0
            while at < rows:
                while len(waiting) <= workers:
                    waiting.append(pool.submit(work, next(pieces)))
                piece = waiting.popleft().result()
                n = len(piece["id"])
                if n == rows:
                    batch = piece
                else:
                    batch = batch or {k: _free(buffers.setdefault(k, []), (rows, *v.shape[1:]), v.dtype)
                                      for k, v in piece.items()}
                    for k, v in piece.items():
                        batch[k][at:at + n] = v
                at += n
            yield batch
    finally:
        for task in waiting:
            task.cancel()
        pool.shutdown()
        if hasattr(pieces, "close"):
            pieces.close()


def _free(buffers, shape, dtype):
    """An array to write a batch into: one of an earlier batch that no one holds any more, or a new one.

    A new one of this size is new pages, which the kernel has to clear first. Views, and transfers that are under way,
    hold on to their array, so counting references tells who is done with it.
    """
    for i in range(len(buffers)):
        if sys.getrefcount(buffers[i]) == 2:  # the list's and the call's
            return buffers[i]
    buffers.append(np.empty(shape, dtype))
    return buffers[-1]


def evaluate(view: View) -> Callable:
    """What an eval view does beyond cropping images of any size: a function of NumPy arrays.

    Returns:
      images -> f32[n, S, S, 3]: of u8[n, H, W, 3] all of the view, of f32[n, S, S, 3] (crops made already) the pixel ops.
    """
    most = {}  # rows of the largest batch of a shape; smaller ones, at the end, are filled up to it, as XLA wants one

    def nothing(images):  # is what the ops of an eval view draw
        return tuple(np.zeros([len(images), 0], np.float32) for _ in view.pixels)

    @jax.jit
    def whole(images):
        windows, (height, width) = [], images.shape[1:3]
        for op in view.chain:
            windows.append(op.windows(np.zeros([len(images), op.uniforms], np.float32), height, width, np))
            height, width = resample.shape(op, height, width)
        return stage.run(view.chain, view.pixels, images, tuple(windows), nothing(images))

    @jax.jit
    def pixels(images):
        return stage.finish(view.pixels, images, nothing(images))

    def run(images):
        if images.dtype != np.uint8 and not view.pixels:
            return images
        n, key = len(images), (images.shape[1:], images.dtype)
        most[key] = max(n, most.get(key, 0))
        images = np.concatenate([images, np.repeat(images[-1:], most[key] - n, axis=0)])
        made = (whole if images.dtype == np.uint8 else pixels)(jax.device_put(images, cpu()))
        return np.asarray(made)[:n]
    return run
