"""The config: every top-level key with its default, reading it from a file and a command line, comparing two.

A config file has `get_config(arg="")` and returns `base()` with its own values set. `--config=FILE:ARG` passes ARG, and
`--config.optim.lr=0.5` overrides one field.
"""
import importlib.util
import inspect
import json
import os
import pathlib
import sys

from absl import flags
from ml_collections import ConfigDict, config_flags

from simclr_jax import names
from simclr_jax.errors import UsageError
from simclr_jax.names import near

# Fields that may differ when a run is resumed: they do not change what is computed, only where and how it is watched.
FREE = ("augment.workers", "checkpoint", "compile_cache", "devices", "evals", "guard.stop", "life", "log_every", "mesh", "pictures",
        "profile", "remat", "wandb")


def base() -> ConfigDict:
    """A config with every top-level key, locked: a key that is not here is refused."""
    # evals: in training, every so many steps, `run` scores: knn and linear a fixed fifth of `limit` examples of split
    # `train` with the others as neighbours or labels, zero_shot and retrieval `limit` pairs of split `pairs`; `best`
    # names the score by which the best checkpoint is kept. The command `simclr_jax.evals` scores split `test`, which
    # training never sees.
    return ConfigDict(dict(
        seed=0,  # of the initial parameters, the order of examples and every random draw
        batch=256,  # global: examples a step, over all devices and processes
        microbatches=1,  # pieces a batch is forwarded in; exact but for batch statistics
        remat=False,  # make each block's activations again in the backward pass: less memory, about a third more work
        epochs=100.0,  # length of the run; or
        steps=0,  # in steps, if not 0
        method=dict(name="simclr"),  # simclr_jax/methods/<name>.py and its arguments
        nets=dict(),  # role -> simclr_jax/nets/<name>.py and its arguments
        data=dict(name="digits"),  # simclr_jax/data/sources/<name>.py and its arguments
        text=dict(),  # simclr_jax/data/tokenizers/<name>.py and its arguments; {}: the batch has no text
        # Weights that nets start from. init_from: an export directory or the workdir of a run, for all roles that it
        # shares with `nets`. load: role -> FILE, or DIR[:ROLE] of either kind; goes before init_from, for its role.
        init_from="",
        load=dict(),
        # views: a tuple of views, each a tuple of (op, arguments); eval: one such view. where: the pixel ops (and crops of
        # images of one size) run on the "host" or on the "device"; workers: threads of the host's part, 0: chosen. mask:
        # arguments of simclr_jax/augment/masks.py:make, for methods that hide patches; {}: none.
        augment=dict(views=(), eval=(), where="host", workers=0, mask=dict()),
        optim=dict(),  # arguments of simclr_jax/train/optim.py:make
        devices=0,  # on a CPU: simulated devices; elsewhere: devices used. 0: chosen, see the README
        # devices by axis, -1: what is left. data: over which rows are spread; model: over which big parameters are.
        mesh=dict(data=-1, model=1),
        log_every=50,  # steps between log lines
        checkpoint=dict(every=1000, keep=2, keep_every=0),  # in steps; keep: newest ones; keep_every: kept for good
        # A step is skipped if it is not finite or its gradient is `spike` times as long as usual (0: only if not finite);
        # after `stop` in a row the run stops (0: never). See train/guard.py.
        guard=dict(spike=100.0, stop=10),
        # Seconds: to wait for the other processes to join; after which a silent one is lost; after which one that holds up
        # a step is named, and all end (ten times as long for the first step, which compiles); between a request to stop
        # and the end. check: steps between comparisons of all devices' parameters.
        life=dict(join=120.0, heartbeat=100.0, warn=120.0, abort=1800.0, grace=15.0, check=1000),
        compile_cache=True,  # keep compiled programs in workdir/compiled/, for the next start
        evals=dict(every=0, run=("knn",), best="", limit=10000, train="train", test="test", pairs="test",
                   classes="", templates="plain"),  # see above; classes, templates: of zero_shot, as the command's flags
        pictures=True,  # write workdir/images/
        profile=dict(start=0, steps=0),  # trace these steps into workdir/profile/
        wandb=False,  # also log to Weights & Biases
    )).lock()


def variant(arg: str, **defaults):
    """Reads the ARG of `--config=FILE:ARG`, "key=value,key=value", by the types of `defaults`.

    Returns:
      ConfigDict of the defaults with the given values.

    Raises:
      UsageError: an unknown key or a value of the wrong type.
    """
    chosen = dict(defaults)
    for part in filter(None, (p.strip() for p in (arg or "").split(","))):
        key, sep, value = part.partition("=")
        if not sep and isinstance(defaults.get(key), bool):
            value = "true"
        if key not in defaults:
            raise UsageError(f"--config=…:{arg}: unknown variant {key!r}{near(key, defaults)}")
        kind = type(defaults[key])
        try:
            chosen[key] = {"true": True, "false": False}[value] if kind is bool else kind(value)
        except (ValueError, KeyError):
            raise UsageError(f"--config=…:{arg}: {key}={value!r}, wanted {kind.__name__}") from None
    return ConfigDict(chosen)


def parse(argv: list[str], **options) -> tuple[ConfigDict, dict]:
    """Reads the command line of a command that takes a config.

    Args:
      argv: as `sys.argv`; options: further flags, name=default (str, int, float or bool).

    Returns:
      The config, every field of every factory filled in; and {option: value}.

    Raises:
      UsageError: anything that the file or the command line has wrong. SystemExit(0) after --help.
    """
    given = [a.split("=", 1)[1] for a in argv if a.startswith("--config=")]
    if not given and "--help" not in argv:
        raise UsageError("no --config given; wanted --config=FILE[:VARIANT], as in --config=configs/simclr_digits.py")
    rest = [a for a in argv if not a.startswith("--config=")]
    config = fill(_rename(load(given[-1]), rest)) if given else None
    known = set(_fields(config)) if given else set()
    for a in rest[1:]:
        field = a.removeprefix("--config.").split("=")[0].split("[")[0]
        if a.startswith("--config.") and field not in known:
            raise UsageError(f"{a}: the config has no field {field!r}{near(field, known)}")
    values = flags.FlagValues()
    chosen = _parse(rest, values, {"config": "FILE[:VARIANT]", "config.FIELD": "VALUE"}, options, config)
    return fill(values.config), chosen


def options(argv: list[str], **options) -> dict:
    """Reads the command line of a command without a config: {option: value}. Raises as `parse`."""
    return _parse(argv, flags.FlagValues(), {}, options)


def _rename(config, argv):
    """Applies `--config.SECTION.name=NEW` before the rest, keeping those of the section's keys that NEW takes too."""
    rooms = {"method": "methods", "data": "data.sources", "text": "data.tokenizers"}
    rooms |= {f"nets.{role}": "nets" for role in config.get("nets", {})}
    for a in argv:
        section, equals, name = a.removeprefix("--config.").partition(".name=")
        if a.startswith("--config.") and equals and section in rooms:
            parent, _, last = section.rpartition(".")
            parent = config[parent] if parent else config
            takes = names.parameters(names.factory(rooms[section], name))
            parent[last] = ConfigDict({**{k: v for k, v in parent[last].items() if k in takes}, "name": name})
    return config


def _parse(argv, values, others, options, config=None):
    for name, default in options.items():
        define = {bool: flags.DEFINE_boolean, int: flags.DEFINE_integer, str: flags.DEFINE_string,
                  float: flags.DEFINE_float}[type(default)]
        define(name, default, "", flag_values=values)
    if "--help" in argv:
        shown = {**others, **{k: str(v).lower() if isinstance(v, bool) else v for k, v in options.items()}}
        print("\n".join(f"  --{k}={v}" for k, v in shown.items()))
        print("The fields of a config and their meaning: simclr_jax/config.py; recipes: configs/")
        raise SystemExit(0)
    for a in argv[1:]:
        name = a.removeprefix("--").split("=")[0]
        if not a.startswith("--"):
            raise UsageError(f"{a!r} is no flag; flags are written --name=value")
        if not name.startswith("config.") and name.removeprefix("no") not in options and name not in options:
            raise UsageError(f"{a}: unknown flag{near(name, [*options, *others])}")
        if "=" not in a and not isinstance(options.get(name.removeprefix("no"), options.get(name)), bool):
            raise UsageError(f"{a}: no value given; flags are written --name=value")
    try:
        if config is not None:
            config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
        values(argv)
    except (flags.Error, ValueError, TypeError, AttributeError, KeyError, IndexError) as e:
        raise UsageError(" ".join(str(e).split())[:300]) from e
    return {name: getattr(values, name) for name in options}


def load(given: str) -> ConfigDict:
    """Runs `get_config` of FILE[:ARG]."""
    path, _, arg = given.partition(":")
    file = pathlib.Path(path)
    if not file.is_file():
        there = sorted(str(f) for f in (file.parent if file.parent.is_dir() else pathlib.Path("configs")).glob("*.py"))
        raise UsageError(f"--config={given}: there is no file {path}{near(path, there)}")
    root = str(file.resolve().parent.parent)
    if root not in sys.path:
        sys.path.append(root)  # so that a recipe finds configs/common from any working directory
    spec = importlib.util.spec_from_file_location("simclr_jax_config", file)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        if not hasattr(module, "get_config"):
            raise UsageError(f"--config={given}: {path} has no function get_config")
        takes_arg = bool(inspect.signature(module.get_config).parameters)
        if arg and not takes_arg:
            raise UsageError(f"--config={given}: {path} takes no variant after the colon")
        config = module.get_config(arg) if takes_arg else module.get_config()
        if not isinstance(config, ConfigDict):
            raise UsageError(f"--config={given}: get_config returned {type(config).__name__}, wanted the config of base()")
        return config
    except UsageError:
        raise
    except Exception as e:
        line = next((t.tb_lineno for t in _traceback(e) if t.tb_frame.f_code.co_filename == str(file)), "?")
        text = " ".join(str(e).split("Other fields present")[0].split())
        raise UsageError(f"{path}, line {line}: {type(e).__name__}: {text[:300]}") from e


def fill(config: ConfigDict) -> ConfigDict:
    """A config with every default of every factory it names written out, so that each field can be overridden."""
    from simclr_jax.train import optim
    missing = sorted(set(base()) - set(config))
    unknown = sorted(set(config) - set(base()))
    if missing or unknown:
        raise UsageError(f"the config lacks {missing}" if missing else
                         f"the config has an unknown field {unknown[0]!r}{near(unknown[0], base())}")
    config = ConfigDict(config.to_dict())

    def filled(field, spec, room, given=()):
        if not isinstance(spec, ConfigDict):
            raise UsageError(f"config.{field}={spec!r}, wanted dict(name=..., ...)")
        function = optim.make if room is None else names.factory(room, spec.get("name"))
        return ConfigDict(names.floats(function, {**names.defaults(function, given), **dict(spec)}))

    config.method = filled("method", config.method, "methods", ("batch", "steps", "examples"))
    for role in config.nets:
        config.nets[role] = filled(f"nets.{role}", config.nets[role], "nets", ("axis", "vocab", "length", "eot", "remat"))
    config.data = filled("data", config.data, "data.sources")
    if config.text:
        config.text = filled("text", config.text, "data.tokenizers", ("captions", "file"))
    config.optim = filled("optim", config.optim, None)
    for section in ("augment", "checkpoint", "evals", "guard", "life", "mesh", "profile"):
        if not isinstance(config[section], ConfigDict):
            raise UsageError(f"config.{section}={config[section]!r}, wanted a dict")
        unknown = sorted(set(config[section]) - set(base()[section]))
        if unknown:
            raise UsageError(f"config.{section} has an unknown field {unknown[0]!r}{near(unknown[0], base()[section])}")
        config[section] = ConfigDict({**base()[section].to_dict(), **config[section].to_dict()})
    # A run is resumed and evaluated from any directory.
    paths = [("data", "root"), ("data", "test_root"), ("data", "data_dir"), ("text", "path"), ("evals", "classes")]
    config.load = ConfigDict({**dict.fromkeys(config.nets, ""), **config.load})
    for section, key in paths + [("load", role) for role in config.load]:
        if value := config[section].get(key):
            config[section][key] = _absolute(value)
    config.init_from = _absolute(config.init_from)
    return config.lock()


def _absolute(places: str) -> str:
    """Paths joined by "::", each from the root; "" stays."""
    return "::".join(p if "://" in p or not p else os.path.abspath(os.path.expanduser(p)) for p in places.split("::"))


def check(config: ConfigDict) -> None:
    """Refuses values that no run can have, before anything is built."""
    for field, least in (("batch", 2), ("microbatches", 1), ("log_every", 1), ("mesh.model", 1), ("devices", 0),
                         ("steps", 0), ("seed", 0)):
        value = config.mesh.model if field == "mesh.model" else config[field]
        if value < least:
            raise UsageError(f"config.{field}={value}, wanted at least {least}")
    if config.steps == 0 and not 0 < config.epochs < float("inf"):
        raise UsageError(f"config.steps=0 and config.epochs={config.epochs}: set one of them above 0")
    if config.batch % config.microbatches:
        raise UsageError(f"config.batch={config.batch} does not split into config.microbatches={config.microbatches}")
    if len(config.augment.views) < 2 and config.method.name == "simclr":
        raise UsageError(f"config.augment.views has {len(config.augment.views)} views, wanted 2; "
                         "see configs/common/recipes.py")
    if config.augment.where not in ("host", "device") or config.augment.workers < 0:
        raise UsageError(f"config.augment.where={config.augment.where!r}, config.augment.workers={config.augment.workers}: "
                         "wanted 'host' or 'device', and 0 workers (chosen) or more")
    for role in config.method.get("locked", ()):
        if not config.load.get(role) and not config.init_from:
            raise UsageError(f"config.method.locked names {role!r}, which would stay as it starts, at random; give its weights, "
                             f"as in --config.load.{role}=WORKDIR:backbone")
    if config.checkpoint.every < 1 or config.checkpoint.keep < 1:
        raise UsageError(f"config.checkpoint={config.checkpoint.to_dict()}, wanted every and keep of at least 1")
    guard, life = config.guard, config.life
    if guard.stop < 0 or not (guard.spike == 0 or guard.spike > 1):
        raise UsageError(f"config.guard.spike={guard.spike}, config.guard.stop={guard.stop}: wanted a spike of 0 (never) or "
                         "above 1, and a stop of 0 (never) or more")
    if min(life.join, life.heartbeat, life.warn, life.abort, life.grace) <= 0 or life.check < 0:
        raise UsageError(f"config.life={life.to_dict()}, wanted seconds above 0 and a check of 0 (only at the start) or more")


def to_json(config: ConfigDict) -> str:
    """The config as indented JSON, keys sorted, so that equal configs are equal texts."""
    return json.dumps(plain(config), indent=2, sort_keys=True)


def plain(config) -> dict:
    """The config as JSON has it: dicts and lists."""
    return json.loads(config.to_json())


def from_plain(fields: dict) -> ConfigDict:
    """A config back from JSON, filled; a field that an earlier version did not have gets its default.

    Lists stay lists: all that read them take either.
    """
    return fill(ConfigDict({**base().to_dict(), **fields}))


def changes(old: dict, new: dict) -> list[str]:
    """Fields that a resumed run may not change and that differ, each as "field: old -> new"."""
    bns = [net.get("bn", "global") for net in new["nets"].values()]
    by_device = any(bn == "local" or bn.startswith("devices") for bn in bns)  # then the number of devices is mathematics
    free = set(FREE) - ({"devices", "mesh"} if by_device else set())
    # What an earlier version did not have is at its default.
    old = {**plain(base()), **old, "load": {**dict.fromkeys(old["nets"], ""), **old.get("load", {})}}
    a, b = ({k: v for k, v in _fields(c).items() if k not in free and k.split(".")[0] not in free} for c in (old, new))
    return [f"{k}: {json.dumps(a.get(k))} -> {json.dumps(b.get(k))}" for k in sorted(a.keys() | b.keys())
            if a.get(k) != b.get(k)]


def _fields(tree, prefix="") -> dict:
    out = {}
    for key, value in (tree.items() if hasattr(tree, "items") else ()):
        out.update(_fields(value, f"{prefix}{key}.") if hasattr(value, "items") and len(value)
                   else {f"{prefix}{key}": value})
    return out


def _traceback(e):
    t = e.__traceback__
    while t:
        yield t
        t = t.tb_next
