"""What a run has learned, as a `Model`. Composition, for the commands."""
import functools
import json

import jax
import numpy as np
from etils import epath

from simclr_jax import build, config as configs, names
from simclr_jax.errors import UsageError
from simclr_jax.export.model import SCALARS, Model
from simclr_jax.export.tensors import Tensor
from simclr_jax.train import stored, workdir as workdirs
from simclr_jax.train.checkpoint import Checkpoints

TOWERS = "backbone", "image", "text", "audio"


def read(workdir, *, best: bool = False, heads: bool = False) -> Model:
    """The nets of a run and their weights at its newest whole checkpoint, read when asked for.

    Where a method embeds by its teacher (DINO), the teacher's weights count.

    Args:
      workdir: of `simclr_jax.train`. best: the checkpoint of the best score. heads: projectors and predictors, too; and
        what else the optimiser owns, such as prototypes, as `Model.beside`.

    Raises:
      UsageError: no run, no checkpoint, or none that is whole.
    """
    workdir = workdirs.resolve(str(workdir))
    saved = workdirs.read_config(workdir)
    if saved is None:
        raise UsageError(f"--workdir={workdir}: there is no config.json in it; wanted the directory of a "
                         "`simclr_jax.train` run")
    config = configs.from_plain(saved)
    plain, tokenizer = configs.plain(config), _tokenizer(config, workdir)
    teacher = _by_teacher(config, tokenizer)
    directory, step, leaves = _newest(workdir / ("best" if best else "checkpoints"))
    nets = {role: _spec(net, tokenizer) for role, net in config.nets.items() if heads or role in TOWERS}
    weights, beside = {}, {}
    for path, dtype, shape, crc in leaves:
        name = _embedding(path, teacher)
        if name is None:
            continue
        role, *rest = name.split("/")
        shape = tuple(shape)
        tensor = Tensor(shape, np.dtype(dtype), functools.partial(_leaf, directory, path, dtype, shape, crc))
        if role in nets:
            weights |= _layers(name, tensor)
        elif name in SCALARS:
            weights[name] = tensor
        elif heads and role not in config.nets and rest[:1] != ["stats"]:
            beside[name] = tensor
    meta = dict(method=config.method.name, step=step, config=plain, evals=_evals(workdir), teacher=teacher)
    return Model(nets, weights, beside, {"eval": plain["augment"]["eval"]}, plain["text"] if tokenizer else {}, meta,
                 tokenizer.keep if tokenizer else b"")


def _embedding(path: str, teacher: bool) -> str | None:
    """"ROLE/leaf" or "ROLE/stats/leaf" of a leaf of a checkpoint, or None if it is not of the nets that embed."""
    params, stats = ("extra/teacher/params/", "extra/teacher/stats/") if teacher else ("params/", "extra/stats/")
    if path.startswith(params):
        return path.removeprefix(params)
    if path.startswith(stats):
        role, _, leaf = path.removeprefix(stats).partition("/")
        return f"{role}/stats/{leaf}"
    return None


def _newest(folder):
    steps = Checkpoints(folder, writable=False)
    problem = "there is none yet"
    for step in reversed(steps.steps()):
        directory = steps.directory / str(step)
        try:
            return directory, step, stored.record(directory)["leaves"]
        except Exception as e:  # whatever a broken file makes JSON raise
            problem = stored.one_line(e)
    raise UsageError(f"--workdir={folder.parent}: wanted a whole checkpoint in {folder.name}: {problem}")


@functools.lru_cache(maxsize=1)  # the layers of a scanned net are asked for one after the other
def _leaf(directory, name, dtype, shape, crc):
    wanted = np.broadcast_to(np.zeros((), dtype), shape)
    try:
        return np.asarray(stored.read(directory, {name: wanted}, {name: crc})[0][name])
    except ValueError as e:
        raise UsageError(f"{directory}: {e}; export an earlier step, or the best one by --best") from None


def _layers(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """A leaf of a net with `scan`, whose layers are stacked, as those of one without."""
    if "/stack/blocks/" not in name:
        return {name: tensor}
    of = lambda i: Tensor(tensor.shape[1:], tensor.dtype, lambda: np.ascontiguousarray(tensor.read()[i]))
    return {name.replace("/stack/blocks/", f"/stack/block{i + 1}/"): of(i) for i in range(tensor.shape[0])}


def _spec(net, tokenizer) -> dict:
    """A net's arguments as they are outside a run: f32, unrolled."""
    factory = names.factory("nets", net.name)
    takes = names.parameters(factory)
    plain = dict(scan=False, dtype="float32", bn="global", **build.given(tokenizer))
    spec = {**names.defaults(factory, ("axis", "vocab", "length", "eot", "remat")), **json.loads(net.to_json())}
    return {k: v for k, v in {**spec, **{k: v for k, v in plain.items() if k in takes}}.items()}


def _tokenizer(config, workdir):
    if not config.text:
        return None

    def none():
        raise UsageError(f"--workdir={workdir}: the tokenizer.json that was made for the run is gone; restore it")
    return names.make("data.tokenizers", config.text, captions=none, file=str(epath.Path(workdir) / "tokenizer.json"))


def _by_teacher(config, tokenizer) -> bool:
    """Whether the method embeds by its teacher."""
    method = build.method(config, axis=None, examples=config.batch, tokenizer=tokenizer)
    rows = build.rows(config, build.recipe(config), tokenizer)
    params, extra = jax.eval_shape(method.init, jax.random.key(0), rows)
    return "teacher" in extra and method.weights(params, extra)[0] is extra["teacher"]["params"]


def _evals(workdir) -> list:
    path = workdir / "evals.json"
    return json.loads(path.read_text()) if path.exists() else []
