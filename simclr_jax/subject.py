"""What an evaluation is of: the net of a run, or a published one. Composition, for the commands."""
from typing import Any, Callable, NamedTuple

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from simclr_jax import augment, build, config as configs, data, dist, names
from simclr_jax.errors import UsageError
from simclr_jax.export import model as models
from simclr_jax.train.checkpoint import Checkpoints
from simclr_jax.train.state import init_state
from simclr_jax.types import Method


class Subject(NamedTuple):
    """Nets that are not read yet."""

    config: Any  # its data, evals and augment.eval are those to evaluate with, its nets those of the subject
    method: Method  # of which only `embed` and `weights` count
    tokenizer: Any  # None: without texts
    kind: str  # what records call it
    states: Callable  # () -> (step, (params, extra), () -> (params, extra) of the same nets as they are initialised)


def of_run(config, saved: dict, workdir, *, best: bool) -> Subject:
    """A run.

    Args:
      config: the run's, maybe with other data to evaluate on; saved: its own, plain.
      best: the checkpoint of the best score.
    """
    trained = build.source(configs.from_plain(saved))  # what the run was trained on, be it scored on something else
    tokenizer = build.tokenizer(config, trained, workdir)
    method = build.method(config, axis=None, examples=trained.size, tokenizer=tokenizer)

    def states():
        mesh = dist.make_mesh({dist.DATA: 1}, jax.local_devices()[:1])
        optimiser = build.optimiser(config, trained.size)
        data.check(trained, batch=config.batch)
        rows = build.rows(config, build.recipe(config), tokenizer)
        first = init_state(method, optimiser.tx, mesh, rows, seed=config.seed)
        restored = Checkpoints(workdir / ("best" if best else "checkpoints"), writable=False).restore(first)
        if restored is None:
            raise UsageError(f"--workdir={workdir}: there is no {'best ' if best else ''}checkpoint in it yet; the "
                             f"first is written at step {config.checkpoint.every}, or when the run is stopped")
        step, now, _ = restored
        return step, (now.params, now.extra), lambda: (first.params, first.extra)
    return Subject(config, method, tokenizer, config.method.name, states)


def of_directory(config, directory: str, *, texts: bool) -> Subject:
    """An export directory.

    Args:
      config: a recipe, of which the data and the settings of evaluations count, the views for fine-tuning, and of a
        tokenizer of the same name what the directory cannot know (a path).
      texts: whether texts are looked at, so that there must be a tokenizer.

    Raises:
      UsageError: the directory is none, or holds no net for images.
    """
    path = epath.Path(directory).expanduser()
    model = models.read(str(path))
    image = next((role for role in ("backbone", "image") if role in model.nets), None)
    if image is None:
        raise UsageError(f"--from-dir={directory}: it has {', '.join(model.nets)}, wanted a net for images (backbone "
                         "or image)")
    config = config.copy_and_resolve_references().unlock()
    config.nets = ConfigDict({role: {k: v for k, v in model.nets[role].items() if k != "remat"}
                              for role in (image, "text") if role in model.nets})
    same = config.text and config.text.name == model.text.get("name")
    path_of = {"path": config.text.path} if same and config.text.get("path") else {}
    config.augment.eval, config.text, config.remat = model.image["eval"], ConfigDict(), False
    config = configs.fill(config)
    nets = build.nets(config, axis=None)
    of = {"image": image, "text": "text"}

    def embed(params, extra, inputs):
        def one(role, x):
            return nets[role].apply(params[role], extra["stats"][role], x, train=False)[0]["pooled"]
        return {modality: one(of[modality], x) for modality, x in inputs.items()}

    def states():
        params, stats = {}, {}
        for role in nets:
            params[role], stats[role] = models.tree(model, role)

        def first():
            view = augment.build_eval(config.augment.eval)
            x = jax.ShapeDtypeStruct((1, view.size, view.size, 3), np.float32)
            fresh, its_stats = nets[image].init(jax.random.key(config.seed), x)
            return {image: fresh}, {"stats": {image: its_stats}}
        return int(model.meta.get("step", 0)), jax.device_put((params, {"stats": stats})), first
    tokenizer = None
    if texts and model.text and "text" in nets:
        tokenizer = names.make("data.tokenizers", model.text | path_of, captions=_none,
                               file=str(path / "tokenizer.json"))
    return Subject(config, Method(None, None, None, embed), tokenizer, path.name, states)


def _none():
    raise UsageError("--from-dir: there is no tokenizer.json in it, in which the tokenizer of a run's own captions is "
                     "kept; put it there, or leave out what needs texts, as in --evals=knn,linear")
