"""Weights that nets start from: those of another run, or of a file of named arrays."""
import jax
import numpy as np
from etils import epath

from simclr_jax.errors import UsageError
from simclr_jax.train import stored
from simclr_jax.train.checkpoint import Checkpoints

HEAD = "projection/"  # a tower may get a new one where the rest is loaded


def read(wanted) -> dict[str, dict[str, np.ndarray]]:
    """The arrays for each role.

    Args:
      wanted: {role: place}. A place is the workdir of a run, "WORKDIR" or "WORKDIR:ITS_ROLE", whose newest whole checkpoint
        counts; or a .npz or .safetensors file. An empty place is passed over.

    Returns:
      {role: {name: array}}, names as in a net's tree, such as "stem/conv/kernel"; batch statistics below "stats/".

    Raises:
      UsageError: no such file or run, a role that it does not have, or damage.
    """
    return {role: _read(role, place) for role, place in wanted.items() if place}


def place(state, loaded):
    """The state with loaded arrays in place of its own, where those were.

    Raises:
      UsageError: a role that the method does not have, or arrays that do not fit the net; the first is named.
    """
    params, stats = dict(state.params), dict(state.extra.get("stats", {}))
    for role, arrays in loaded.items():
        where = f"config.load.{role}"
        if role not in params:
            raise UsageError(f"{where}: the method has no net of that role; it has {', '.join(sorted(params))}")
        left = dict(arrays)
        params[role] = _filled(params[role], left, "", where)
        stats[role] = _filled(stats.get(role, {}), left, "stats/", where)
        if left:
            raise UsageError(f"{where}: {sorted(left)[0]!r} (and {len(left) - 1} more) is in no place of the net, whose arrays "
                             f"are named like {next(iter(stored.named(params[role])))!r}; make config.nets.{role} the net "
                             "that the weights are of")
    return state.replace(params=params, extra={**state.extra, "stats": stats} if "stats" in state.extra else state.extra)


def _filled(tree, arrays, prefix, where):
    leaves = []
    for name, leaf in stored.named(tree).items():
        new = arrays.pop(prefix + name, None)
        if new is None and not name.startswith(HEAD):
            raise UsageError(f"{where}: the weights have no {prefix + name!r} of shape {tuple(leaf.shape)}, which the net wants")
        if new is not None and new.shape != leaf.shape:
            raise UsageError(f"{where}: {prefix + name} has shape {new.shape}, and the net wants {tuple(leaf.shape)}")
        leaves.append(leaf if new is None else jax.device_put(new.astype(leaf.dtype), leaf.sharding))
    return jax.tree.unflatten(jax.tree.structure(tree), leaves)


def _read(role, place):
    where = f"config.load.{role}={place}"
    path = epath.Path(place)
    if path.suffix in (".npz", ".safetensors"):
        if not path.exists():
            raise UsageError(f"{where}: there is no such file")
        try:
            return _file(path)
        except Exception as e:  # each library raises its own kinds for a damaged file
            raise UsageError(f"{where}: cannot be read ({type(e).__name__}: {stored.one_line(e)})") from None
    part = role
    if not path.is_dir() and ":" in path.name:
        before, _, part = place.rpartition(":")
        path = epath.Path(before)
    steps = Checkpoints(path / "checkpoints", writable=False)
    if not steps.steps():
        raise UsageError(f"{where}: wanted the workdir of a run with a checkpoint, as in WORKDIR or WORKDIR:backbone, or a "
                         ".npz or .safetensors file")
    return _checkpoint(steps, part, where)


def _file(path):
    if path.suffix == ".npz":
        with path.open("rb") as f, np.load(f, allow_pickle=False) as z:
            return {name: z[name] for name in z.files}
    import safetensors.numpy
    return safetensors.numpy.load(path.read_bytes())


def _checkpoint(steps, role, where):
    problem = ""
    for step in reversed(steps.steps()):
        try:
            return _step(steps.directory / str(step), role)
        except KeyError as e:
            raise UsageError(f"{where}: that run has no net {role!r}; it has {e.args[0]}") from None
        except Exception as e:  # whatever a broken file makes JSON and TensorStore raise
            problem = stored.one_line(e)
    raise UsageError(f"{where}: no checkpoint of it is whole ({problem})")


def _step(directory, role):
    leaves = stored.record(directory)["leaves"]
    renamed = {f"params/{role}/": "", f"extra/stats/{role}/": "stats/"}
    names = {name: new + name.removeprefix(old) for name, *_ in leaves for old, new in renamed.items()
             if name.startswith(old)}
    if not names:
        raise KeyError(", ".join(sorted({name.split("/")[1] for name, *_ in leaves if name.startswith("params/")})))
    wanted = {name: np.broadcast_to(np.zeros((), dtype), shape) for name, dtype, shape, _ in leaves if name in names}
    read, _ = stored.read(directory, wanted, {name: crc for name, _, _, crc in leaves})
    return {names[name]: np.asarray(x) for name, x in read.items()}
