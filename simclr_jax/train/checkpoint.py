"""Checkpoints that are whole or not used: the one file that knows orbax.

Orbax writes a step under a temporary name and renames it when it is complete, but it restores a file with a flipped bit
without a word. So the JSON of each step holds a checksum of every leaf, taken of the host copy that is written, and one
of itself; `restore` takes the newest step for which all agree. `stored` reads them.

With several processes every method but `steps` and `meta` is for all of them, together.
"""
import logging
import math
import os
from typing import Any, Callable

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from simclr_jax.errors import CheckpointError, UsageError
from simclr_jax.train import checksum, stored

_GOOD, _DAMAGED, _OTHER = 0, 1, 2  # what a process found of a step; _OTHER: whole, but of another config

# Orbax logs a traceback of each failed write; the same failure reaches the user as one line of ours.
logging.getLogger("absl").addFilter(lambda record: f"{os.sep}orbax{os.sep}" not in record.pathname)


class Checkpoints:
    """The checkpoints of a run in `directory` (`gs://` too), and its best one in `best` next to it.

    Args:
      directory: made if missing. All processes see the same one.
      keep: how many of the newest steps stay.
      keep_every: steps that are a multiple of it stay as well; 0 for none.
      writable: False to read the steps of a run that may still be writing: nothing is made, cleaned or deleted.
      log: called with one line for each step that is damaged, by process 0.

    Raises:
      UsageError: `directory` cannot be written.
    """

    def __init__(self, directory, *, keep: int = 2, keep_every: int = 0, writable: bool = True,
                 log: Callable[[str], Any] = print):
        if keep < 1 or keep_every < 0:
            raise UsageError(f"checkpoints: keep={keep}, keep_every={keep_every}; wanted at least 1 and at least 0")
        directory = os.fspath(directory)
        self.directory = epath.Path(directory if "://" in directory else os.path.abspath(directory))
        self._keep, self._keep_every, self._log = keep, keep_every, log
        self._damaged: set[int] = set()
        self._manager = None
        self._best = None
        self._writable = writable
        if writable:
            self._open()

    def steps(self) -> list[int]:
        """The steps that were written to their end, ascending; reads the directory, and only names."""
        return sorted(ocp.utils.checkpoint_steps(self.directory))

    def save(self, step: int, state, meta: dict, *, wait: bool = False) -> None:
        """Copies `state` to the host and writes it in the background; a step that is there already is left alone.

        Args:
          step: the step's number; a step that `restore` found damaged is written over.
          state: pytree of jax.Array and numpy leaves. It may be donated or overwritten as soon as this returns.
          meta: what JSON can hold.
          wait: return when the step is whole.

        Raises:
          CheckpointError: this or an earlier write failed (a full disk); the older steps are as they were.
        """
        self.wait()
        manager = self._open()
        if step in self._damaged:
            if step in manager.all_steps():
                self._attempt(manager.delete, step)
            self._damaged.discard(step)
        if step in manager.all_steps():
            return
        leaves = stored.named(state)
        host, crcs = _to_write(leaves)
        sealed = stored.seal(meta, leaves, crcs)
        args = ocp.args.Composite(state=ocp.args.PyTreeSave(host), meta=ocp.args.JsonSave(sealed))
        self._attempt(manager.save, step, args=args, force=True)
        if wait:
            self.wait()

    def save_best(self, step: int, state, meta: dict, value: float) -> bool:
        """Saves to `best` if `value` is larger than that of the step kept there; `meta` gets it as "best".

        A step whose meta has another "best_of", the name of what was compared, is written over.

        The old one goes when the new one is whole. Returns whether it saved. Arguments and errors as `save`.
        """
        best = self._open_best()
        best.wait()
        held = best._value(meta.get("best_of"))
        if not _first(int(value > held)):
            return False
        best.save(step, state, {**meta, "best": float(value)})
        return True

    def restore(self, template):
        """The newest step that is whole, as (step, state, meta); None if there is no step.

        Args:
          template: pytree of arrays or jax.ShapeDtypeStruct as saved. A leaf with a sharding comes back as a
            jax.Array with it, on however many devices; one without as numpy.

        Raises:
          CheckpointError: there are steps and none is whole.
      UsageError: the newest whole one has other leaves, shapes or dtypes.
        """
        wanted = stored.named(template)
        tried: list[int] = []
        while (step := _first(max(set(self.steps()) - set(tried), default=-1))) >= 0:
            tried.append(step)
            finding, text, found = self._load(step, wanted)
            findings = _everyone(finding)
            where = self.directory / str(step)
            if _DAMAGED not in findings and _OTHER in findings:
                raise UsageError(f"checkpoint {where} is of another config: {text}; go on with the config it was "
                                 f"made with, or give another directory")
            if _DAMAGED not in findings:
                state, meta = found
                return step, jax.tree.unflatten(jax.tree.structure(template), list(state.values())), meta
            self._damaged.add(step)
            if jax.process_index() == 0:
                text = text if finding == _DAMAGED else f"process {findings.index(_DAMAGED)} could not read it"
                self._log(f"checkpoint {where} is damaged, trying the one before: {text}")
        if tried:
            raise CheckpointError(f"none of the checkpoints {', '.join(map(str, tried))} in {self.directory} is whole; "
                             f"bring one back from a copy, or give another directory to start anew")
        return None

    def meta(self, step: int | None = None) -> dict | None:
        """The `meta` of `step`, or of the newest step where it is whole; no array is read. None if there is no step.

        Raises:
          CheckpointError: it cannot be read.
        """
        candidates = self.steps()[::-1] if step is None else [step]
        for candidate in candidates:
            try:
                return stored.record(self.directory / str(candidate))["meta"]
            except Exception as e:
                cause = stored.one_line(e)
        if candidates:
            raise CheckpointError(f"checkpoint {self.directory / str(candidates[-1])}: its metadata cannot be read: "
                                  f"{cause}")
        return None

    def wait(self) -> None:
        """Returns when everything is written.

        Raises:
          CheckpointError: a write failed; names the directory and the cause.
        """
        if self._manager is not None:
            self._attempt(self._manager.wait_until_finished)
        if self._best is not None:
            self._best.wait()

    def close(self) -> None:
        """Waits, raises as `wait`, and ends orbax's threads."""
        try:
            self.wait()
        finally:
            for part in (self._manager, self._best):
                if part is not None:
                    part.close()
            self._manager = self._best = None

    def _open(self):
        if not self._writable:
            raise UsageError(f"checkpoints in {self.directory} were opened for reading only; they cannot be saved")
        if self._manager is None:
            options = ocp.CheckpointManagerOptions(preservation_policy=_Preserve(self._keep, self._keep_every,
                                                                                 self._damaged),
                                                   cleanup_tmp_directories=True, lightweight_initialize=True)
            # Without compression: trained weights hardly shrink, and zstd would take cores from the input pipeline.
            handlers = {"state": ocp.PyTreeCheckpointHandler(use_compression=False, use_ocdbt=True, use_zarr3=False),
                        "meta": ocp.JsonCheckpointHandler()}
            self._manager = self._attempt(ocp.CheckpointManager, self.directory, options=options,
                                          item_handlers=handlers)
        return self._manager

    def _open_best(self):
        if self._best is None:
            self._best = Checkpoints(self.directory.parent / "best", keep=1, writable=self._writable, log=self._log)
        return self._best

    def _value(self, of) -> float:
        """Of the best step there is; -inf without one, or if it was the best of something else.

        A step whose value cannot be read may be written over.
        """
        tried: set[int] = set()
        while (step := _first(max(set(self.steps()) - tried, default=-1))) >= 0:
            tried.add(step)
            try:
                meta = stored.record(self.directory / str(step))["meta"]
                value = float(meta["best"]) if meta.get("best_of") == of else -math.inf
            except Exception:
                value = None
            if all(_everyone(int(value is not None))):
                return value
            self._damaged.add(step)
        return -math.inf

    def _attempt(self, function, *args, **kwargs):
        """Calls orbax. After a failure its manager is not to be trusted: the next call gets a new one."""
        try:
            return function(*args, **kwargs)
        except Exception as e:
            self._manager = None
            raise CheckpointError(f"cannot write checkpoints in {self.directory}: {stored.one_line(e)}; make room or "
                                  f"give another directory, and start again: older checkpoints are as they were") from None

    def _load(self, step: int, wanted: dict):
        """(finding, text, None or ({path: leaf}, meta)) of one step, in this process."""
        finding, text, leaves, spread = _GOOD, "", {}, []
        try:
            record = stored.record(self.directory / str(step))
            crcs = {name: crc for name, _, _, crc in record["leaves"]}
            if text := stored.difference(record["leaves"], wanted):
                finding = _OTHER
            else:
                leaves, spread = stored.read(self.directory / str(step), wanted, crcs)
        except Exception as e:  # whatever a broken file makes JSON and TensorStore raise
            finding, text = _DAMAGED, stored.one_line(e)
        if max(_everyone(finding)) != _GOOD:  # no process waits for another's part of a leaf that it will not get
            return finding, text, None
        for name, crc in zip(spread, checksum.of_leaves([leaves[name] for name in spread])):
            if crc != crcs[name]:
                return _DAMAGED, f"{name}: its checksum does not match", None
        return _GOOD, "", (leaves, record["meta"])


class _Preserve:
    """Orbax's preservation policy of ours: the last `keep` steps saved and the multiples; no damaged ones.

    Orbax asks when a save starts and deletes when it is whole, so a good step is never gone too soon.
    """

    def __init__(self, keep: int, keep_every: int, damaged: set[int]):
        self._keep, self._keep_every, self._damaged = keep, keep_every, damaged

    def should_preserve(self, checkpoints, *, context) -> list[bool]:
        del context
        steps = [c.step for c in checkpoints]
        newest = [s for s in steps if s not in self._damaged][-self._keep:]
        multiple = {s for s in steps if self._keep_every and s % self._keep_every == 0} - self._damaged
        return [s in newest or s in multiple for s in steps]


def _to_write(leaves: dict):
    """({name: leaf for orbax}, [crc]). Orbax copies each before `save` returns; of empty ones it keeps nothing.

    Process 0 writes the numpy leaves and the JSON, so the others neither copy nor sum what they have whole.
    """
    first = jax.process_index() == 0
    whole = {name: checksum.whole_everywhere(x) for name, x in leaves.items()}
    host = dict(zip(leaves, checksum.parallel(
        lambda item: item[1] if not whole[item[0]] else checksum.to_host(item[1]) if first
        else np.broadcast_to(np.zeros((), item[1].dtype), item[1].shape), leaves.items())))
    crcs = checksum.of_leaves([x if first or not whole[name] else np.zeros(0) for name, x in host.items()])
    return {name: x for name, x in host.items() if x.size}, crcs


def _everyone(value: int) -> list[int]:
    """i32 of each process, by process."""
    if jax.process_count() == 1:
        return [value]
    return [int(v) for v in np.ravel(multihost_utils.process_allgather(np.int32(value)))]


def _first(value: int) -> int:
    """i32 of process 0."""
    return _everyone(value)[0]
