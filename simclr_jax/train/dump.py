"""A step that a run has given up on, written so that it can be run again anywhere, and run again.

    <workdir>/bad/<step>/config.json     of the run
                         given.json      what its tokenizer told the nets; its number of examples; how many processes wrote rows
                         rows-<i>.npz    the batch as process i had it, views made
                         state/          a checkpoint of the state that the step started from
"""
import io
import json

import jax
import numpy as np
from etils import epath

from simclr_jax.errors import UsageError
from simclr_jax.train import stored
from simclr_jax.train.checkpoint import Checkpoints


def write(workdir, nets: dict, examples: int, config: str, state, batch: dict, step: int):
    """Writes a step for `simclr_jax.replay`; all processes call it. Returns the directory.

    Args:
      nets: what nets know beside their config, see `build.given`; examples: of the source; config: as JSON.
      state: from which the step started, but for its count; batch: placed, of the step after which `step` were done.
    """
    folder = epath.Path(workdir) / "bad" / str(step)
    first = jax.process_index() == 0
    if first:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(config)
        (folder / "given.json").write_text(json.dumps({"nets": nets, "examples": examples, "processes": jax.process_count()}))
    state = state.replace(step=jax.device_put(np.int32(step - 1), state.step.sharding))
    checkpoints = Checkpoints(folder / "state", keep=1)
    checkpoints.save(step - 1, state, {}, wait=True)  # every process is past the making of the directory then
    checkpoints.close()
    packed = io.BytesIO()
    np.savez(packed, **{k: _own_rows(x) for k, x in batch.items()})
    (folder / f"rows-{jax.process_index()}.npz").write_bytes(packed.getvalue())
    return folder


def _own_rows(x):
    """This process's rows of a global array, in order."""
    shards = {s.index[0].start or 0: s.data for s in x.addressable_shards}
    return np.concatenate([np.asarray(shards[k]) for k in sorted(shards)])


def read(folder):
    """(config as JSON has it, {"nets", "examples"} as `write` got them, the global batch as {name: numpy}) of a dump.

    Raises:
      UsageError: it is no dump, or not whole.
    """
    folder = epath.Path(folder)
    try:
        config = json.loads((folder / "config.json").read_text())
        given = json.loads((folder / "given.json").read_text())
        parts = []
        for i in range(given["processes"]):
            with np.load(io.BytesIO((folder / f"rows-{i}.npz").read_bytes()), allow_pickle=False) as part:
                parts.append({k: part[k] for k in part.files})
    except (OSError, ValueError, KeyError) as e:
        raise UsageError(f"--replay={folder}: {stored.one_line(e)}; wanted what a run left under WORKDIR/bad/STEP"
                         ) from None
    return config, given, {k: np.concatenate([part[k] for part in parts]) for k in parts[0]}
