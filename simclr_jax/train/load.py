"""Weights that nets start from: those of another run, of an export directory, or of a file of named arrays."""
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from simclr_jax.errors import UsageError
from simclr_jax.train import stored
from simclr_jax.train.checkpoint import Checkpoints

HEAD = "projection/"  # a tower may get a new one where the rest is loaded
TOWERS = "backbone", "image", "text", "audio"  # roles of nets that look at data; others are heads on them
SCALARS = "logit_scale", "logit_bias"  # parameters of losses, which come with a pair of towers
BESIDE = "beside"  # below it an export directory keeps arrays that no net of ours has
EXPORTED = "model.safetensors"  # beside a config.json: an export directory
BLOCKS = re.compile(r"((?:.*/)?stack/)blocks/(.*)")  # of nets with scan=True: all blocks, stacked
# Arguments of nets that do not change what weights mean, or that shapes tell.
FREE = "axis", "bn", "drop_path", "dtype", "image", "init", "out", "out_bias", "remat", "scan", "mask_token"


def resolve(wanted, init_from: str, roles, params=()) -> dict[str, str]:
    """{role: place}, as `read` takes them: those `wanted`, and for the other roles what `init_from` has for them.

    A role takes the weights of its own name; "image" those of "backbone" where that is the only tower there, and the
    recipe has no backbone itself. Where the method's `params` hold `SCALARS`, they come along.

    Args:
      wanted: {role: place or ""}; init_from: an export directory or the workdir of a run, or "".
      roles: of the recipe's nets; params: the method's, by name.

    Raises:
      UsageError: neither of both, or no role in common.
    """
    given = {role: place for role, place in wanted.items() if place}
    if not init_from:
        return given
    held = _roles(init_from)
    theirs = [role for role in held if role not in SCALARS]
    towers = [role for role in theirs if role in TOWERS]
    name = {role: role for role in roles if role in theirs}
    if "image" in roles and "backbone" not in roles and towers == ["backbone"]:
        name["image"] = "backbone"
    if not name:
        raise UsageError(f"config.init_from={init_from}: it has {', '.join(theirs)}, and the recipe's nets are "
                         f"{', '.join(roles)}; load one role from another, as in "
                         f"--config.load.{next(iter(roles), 'backbone')}={init_from}:{theirs[0]}")
    name |= {scalar: scalar for scalar in SCALARS if scalar in held and scalar in params}
    return {role: f"{init_from}:{theirs}" for role, theirs in name.items()} | given


def read(wanted) -> dict[str, dict[str, np.ndarray]]:
    """The arrays for each role.

    Args:
      wanted: {role: place}. A place is the workdir of a run, "WORKDIR" or "WORKDIR:ITS_ROLE", whose newest whole
        checkpoint counts; an export directory, "DIR" or "DIR:ITS_ROLE"; or a .npz or .safetensors file. An empty place
        is passed over.

    Returns:
      {role: {name: array}}, names as in a net's tree, such as "stem/conv/kernel"; batch statistics below "stats/".

    Raises:
      UsageError: no such file or run, a role that it does not have, or damage.
    """
    return {role: _read(role, place) for role, place in wanted.items() if place}


def place(state, loaded):
    """The state with loaded arrays in place of its own, where those were; teachers in `extra` start as copies of them.

    Blocks of a transformer may be stacked in the arrays, in the net, in both or in neither.

    Args:
      state: of arrays; or of ShapeDtypeStructs, which stay what they are.

    Raises:
      UsageError: a role that the method does not have, or arrays that do not fit the net; the first is named.
    """
    extra = dict(state.extra)
    params, stats = dict(state.params), dict(extra.get("stats", {}))
    for role, arrays in loaded.items():
        where = f"config.load.{role}"
        if role not in params:
            raise UsageError(f"{where}: the method has no net of that role; it has {', '.join(sorted(params))}")
        left = _apart(arrays)
        params[role] = _filled(params[role], left, "", where)
        if role in stats:
            stats[role] = _filled(stats[role], left, "stats/", where)
        if left:
            raise UsageError(f"{where}: {sorted(left)[0]!r} (and {len(left) - 1} more) is in no place of the net, whose arrays "
                             f"are named like {next(iter(stored.named(params[role])))!r}; make config.nets.{role} the net "
                             "that the weights are of")
    if "stats" in extra:
        extra["stats"] = stats
    if "teacher" in extra:
        mine = {"params": params, "stats": stats}
        extra["teacher"] = {**extra["teacher"], **{part: {
            role: jax.tree.map(_copied, mine[part][role]) if role in loaded else tree
            for role, tree in extra["teacher"][part].items()} for part in mine}}
    return state.replace(params=params, extra=extra)


def report(places, nets) -> list[str]:
    """What starts from where, in a line; and a line for each net whose arguments differ from those of the weights' net.

    Args:
      places: as `resolve` gives them; nets: {role: {"name": ..., arguments}} of the config.
    """
    if not places:
        return []
    fresh = [role for role in nets if role not in places]
    lines = ["weights: " + ", ".join(f"{role} from {place}" for role, place in places.items())
             + (f"; at random: {', '.join(fresh)}" if fresh else "")]
    for role, place in ((role, place) for role, place in places.items() if role in nets):
        theirs, ours = _made_with(role, place), json.loads(json.dumps(dict(nets[role])))
        differ = [f"{k}={theirs[k]!r}, here {x!r}" for k, x in ours.items() if k not in FREE and theirs.get(k, x) != x]
        if differ:
            lines.append(f"warning: the weights for {role} are of a net with {'; '.join(differ)}: see config.nets.{role}")
    return lines


def _apart(arrays):
    """Stacked blocks one by one, as "stack/block1/..", "stack/block2/..": a new dict."""
    out = {}
    for name, x in arrays.items():
        if blocks := BLOCKS.fullmatch(name):
            out |= {f"{blocks[1]}block{i + 1}/{blocks[2]}": part for i, part in enumerate(x)}
        else:
            out[name] = x
    return out


def _taken(arrays, name):
    """The array of a name, taken out; of stacked blocks all of them; None."""
    if not (blocks := BLOCKS.fullmatch(name)):
        return arrays.pop(name, None)
    parts = []
    while (part := f"{blocks[1]}block{len(parts) + 1}/{blocks[2]}") in arrays:
        parts.append(arrays.pop(part))
    return np.stack(parts) if parts else None


def _copied(x):
    """The step writes into what it is given, so that no two leaves may be one array."""
    return x if isinstance(x, jax.ShapeDtypeStruct) else jnp.copy(x)


def _filled(tree, arrays, prefix, where):
    leaves = []
    for name, leaf in stored.named(tree).items():
        new = _taken(arrays, prefix + name)
        if new is None and not name.startswith(HEAD):
            raise UsageError(f"{where}: the weights have no {prefix + name!r} of shape {tuple(leaf.shape)}, which the "
                             "net wants")
        if new is not None and new.shape != leaf.shape:
            raise UsageError(f"{where}: {prefix + name} has shape {new.shape}, and the net wants {tuple(leaf.shape)}")
        kept = new is None or isinstance(leaf, jax.ShapeDtypeStruct)
        leaves.append(leaf if kept else jax.device_put(new.astype(leaf.dtype), leaf.sharding))
    return jax.tree.unflatten(jax.tree.structure(tree), leaves)


def _split(place):
    """(the place, what follows its colon) of "DIR:ROLE"; a colon in a directory's own name is no such one."""
    path = epath.Path(place)
    if not path.is_dir() and ":" in path.name:
        before, _, role = place.rpartition(":")
        return epath.Path(before), role
    return path, ""


def _read(role, place):
    where = f"config.load.{role}={place}"
    path = epath.Path(place)
    if path.suffix in (".npz", ".safetensors") and not path.is_dir():
        if not path.exists():
            raise UsageError(f"{where}: there is no such file")
        return _checked(where, _npz if path.suffix == ".npz" else _safetensors, path)
    path, part = _split(place)
    if (path / EXPORTED).exists():
        theirs = _roles(str(path), where)
        part = part or (role if role in theirs or len(theirs) > 1 else theirs[0])
        if part not in theirs:
            raise UsageError(f"{where}: that directory has no net {part!r}; it has {', '.join(theirs)}")
        return _checked(where, _safetensors, path / EXPORTED, part + "/")
    steps = Checkpoints(path / "checkpoints", writable=False)
    if not steps.steps():
        raise UsageError(f"{where}: wanted the workdir of a run with a checkpoint, as in WORKDIR or WORKDIR:backbone, an "
                         "export directory, or a .npz or .safetensors file")
    return _checkpoint(steps, part or role, where)


def _roles(place, where=""):
    """The nets of an export directory or a run, in order."""
    path, where = epath.Path(place), where or f"config.init_from={place}"
    if (path / EXPORTED).exists():
        names = list(_checked(where, _header, path / EXPORTED))
        return [role for role in dict.fromkeys(name.split("/")[0] for name in names) if role != BESIDE]
    steps = Checkpoints(path / "checkpoints", writable=False)
    if not steps.steps():
        raise UsageError(f"{where}: wanted an export directory (with {EXPORTED}), or the workdir of a run with a "
                         "checkpoint")
    record = _checked(where, stored.record, steps.directory / str(steps.steps()[-1]))
    return list(dict.fromkeys(name.split("/")[1] for name, *_ in record["leaves"] if name.startswith("params/")))


def _made_with(role, place):
    """The arguments of the net that weights are of; {} where none are kept."""
    path, part = _split(place)
    try:
        nets = json.loads((path / "config.json").read_text())["nets"]
        return nets.get(part or role) or (next(iter(nets.values())) if len(nets) == 1 else {})
    except Exception:  # a file of arrays, or a config of another make
        return {}


def _checked(where, read, *args):
    try:
        return read(*args)
    except Exception as e:  # each library raises its own kinds for a damaged file
        raise UsageError(f"{where}: cannot be read ({type(e).__name__}: {stored.one_line(e)})") from None


def _npz(path):
    with path.open("rb") as f, np.load(f, allow_pickle=False) as z:
        return {name: z[name] for name in z.files}


def _safetensors(path, prefix=""):
    """{name without the prefix: array} of those that have it; "": the one array that is called so without the slash."""
    import safetensors
    import safetensors.numpy
    if "://" in str(path):
        arrays = safetensors.numpy.load(path.read_bytes())
        return {(name + "/").removeprefix(prefix)[:-1]: x for name, x in arrays.items() if (name + "/").startswith(prefix)}
    with safetensors.safe_open(str(path), framework="np") as f:
        return {(name + "/").removeprefix(prefix)[:-1]: f.get_tensor(name) for name in f.keys()
                if (name + "/").startswith(prefix)}


def _header(path):
    """The names of the tensors in a file, in its order (github.com/huggingface/safetensors, README, "Format")."""
    with path.open("rb") as f:
        size = int.from_bytes(f.read(8), "little")
        if size > 100_000_000:
            raise ValueError(f"a header of {size} bytes")
        return [name for name in json.loads(f.read(size)) if name != "__metadata__"]


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
             if name.startswith(old)} | {name: "" for name, *_ in leaves if name == f"params/{role}"}
    if not names:
        raise KeyError(", ".join(sorted({name.split("/")[1] for name, *_ in leaves if name.startswith("params/")})))
    wanted = {name: np.broadcast_to(np.zeros((), dtype), shape) for name, dtype, shape, _ in leaves if name in names}
    read, _ = stored.read(directory, wanted, {name: crc for name, _, _, crc in leaves})
    return {names[name]: np.asarray(x) for name, x in read.items()}
