"""`python -m simclr_jax.export`: weights out, weights in, and features.

    --workdir=runs/x --to=timm --out=DIR           a run for torchvision, timm, transformers, open_clip, flax or stablehlo
    --from-dir=DIR --to=timm --out=DIR2            the same of a directory that --from or --to=flax made
    --from=timm --weights=FILE_OR_DIR --out=DIR    published weights as a directory to evaluate, fine-tune or go on from
    --features --from-dir=DIR --images=DIR --out=F.npz    embeddings of a folder of pictures
"""
import importlib
import json
import re

from etils import epath

from simclr_jax import config as configs, embed, names, trained
from simclr_jax.data.sources import folder
from simclr_jax.errors import UsageError
from simclr_jax.export import card, check, features, files, layout, model as models, stablehlo, write as writing
from simclr_jax.life import command
from simclr_jax.names import near

TO = "torchvision", "timm", "transformers", "open_clip", "flax", "stablehlo"
FROM = "timm", "torchvision", "transformers", "open_clip", "simclr_tf", "moco", "dino", "dinov2", "swav", "byol"
CONFIGS = "config.json", "open_clip_config.json"
OPTIONS = {"workdir": "", "from-dir": "", "to": "", "out": "", "from": "", "weights": "", "net": "", "best": False, "heads": False,
           "licence": "", "check": True, "features": False, "images": "", "batch": 64}


def main(argv: list[str]) -> None:
    flags = configs.options(argv, **OPTIONS)
    if flags["features"]:
        embed_folder(flags)
    elif flags["from"]:
        read(flags)
    else:
        write(flags)


def embed_folder(flags) -> None:
    """A folder's pictures as an array of embeddings."""
    for flag in ("from-dir", "images", "out"):
        if not flags[flag]:
            raise UsageError(f"--features needs --{flag}; as in --features --from-dir=DIR --images=PICTURES --out=features.npz")
    if flags["batch"] < 1:
        raise UsageError(f"--batch={flags['batch']}, wanted at least 1")
    paths, _ = folder.images(flags["images"])
    model = models.read(flags["from-dir"])
    apply, params = models.embedder(model)
    view = [op for op in model.image["eval"] if op[0] != "normalize"]  # which `apply` does itself
    features.write(flags["out"], paths,
                   lambda part: embed.of_files(flags["images"], part, view, lambda x: apply(params, image=x)["image"], 1,
                                               batch=flags["batch"]),
                   features.identity(flags["from-dir"], flags["images"], paths))


def read(flags) -> None:
    """Their file as a directory of ours."""
    _one_of("from", flags["from"], FROM)
    for flag in ("weights", "out"):
        if not flags[flag]:
            raise UsageError(f"--from={flags['from']} needs --{flag}; as in --from=timm --weights=model.safetensors --out=DIR")
    where = f"--weights={flags['weights']}"
    weights = files.read(flags["weights"])
    module = importlib.import_module(f"simclr_jax.export.{flags['from']}")
    try:
        found = module.read(weights, _config(flags["weights"]), where)
    except (KeyError, IndexError, ValueError, TypeError) as e:
        if isinstance(e, UsageError):
            raise
        raise UsageError(f"{where}: is no file of {flags['from']}'s that can be read ({type(e).__name__}: {e}); "
                         f"choose another --from of {', '.join(FROM)}") from None
    ours, beside = layout.ours(found.layout, weights, where)
    ours = files.check_finite(ours, where)
    nets = _overridden(found.nets, flags["net"])
    model = models.Model(nets, ours, beside, found.image, found.text, dict(source=flags["from"], licence=flags["licence"]))
    models.write(flags["out"], model)
    for role, net in nets.items():
        print(f"{role}: {net['name']} " + ", ".join(f"{k}={v}" for k, v in net.items() if k != "name"))
    if beside:
        print(f"kept beside, as no net here has them: {', '.join(sorted(beside)[:6])}" + (f" and {len(beside) - 6} more" if len(beside) > 6 else ""))
    print(f"{len(ours)} arrays, {layout.size(ours) / 2**20:.1f} MiB: {flags['out']}")


def write(flags) -> None:
    """A run, or a directory of ours, as another library opens it."""
    _one_of("to", flags["to"], TO)
    if not flags["out"]:
        raise UsageError(f"--to={flags['to']} needs --out, a new directory")
    if bool(flags["workdir"]) == bool(flags["from-dir"]):
        raise UsageError("give one of --workdir (a run) and --from-dir (a directory that --from or --to=flax made)")
    if flags["workdir"]:
        model = trained.read(flags["workdir"], best=flags["best"], heads=flags["heads"])
    else:
        model = models.read(flags["from-dir"])
    model = model._replace(nets={role: _filled(net) for role, net in model.nets.items()})
    model, heads = (model, {}) if flags["to"] == "flax" else _without_heads(model)
    if flags["to"] == "flax":
        models.write(flags["out"], model)
        print(f"{len(model.weights)} arrays: {flags['out']}")
    elif flags["to"] == "stablehlo":
        stablehlo.write(flags["out"], model, card.text(model, "JAX", (), weights="model.safetensors", licence=flags["licence"]))
        print(f"{len(model.weights)} arrays: {flags['out']}")
    else:
        _package(flags, model, heads if flags["heads"] else {})


def _without_heads(model):
    """(the model with its towers alone, {name: Tensor} of its other nets and of what a run has besides)."""
    ours = "method" in model.meta  # of a run of ours nothing beside is another library's
    heads = {n: t for n, t in model.weights.items() if n.split("/")[0] in set(model.nets) - set(trained.TOWERS)}
    towers = {role: net for role, net in model.nets.items() if role in trained.TOWERS}
    weights = {n: t for n, t in model.weights.items() if n not in heads}
    return model._replace(nets=towers, weights=weights, beside={} if ours else model.beside), heads | (model.beside if ours else {})


def _package(flags, model, heads):
    package = importlib.import_module(f"simclr_jax.export.{flags['to']}").package(model)
    rows = {r.ours for r in package.layout.rows}
    left = [n for n in model.weights if n not in rows and (n in models.SCALARS or any(re.fullmatch(p, n) for p in package.left))]
    theirs = layout.theirs(package.layout, {n: t for n, t in model.weights.items() if n not in left}, model.beside,
                           f"--to={flags['to']}")
    theirs = files.check_finite(theirs, flags["workdir"] or flags["from-dir"])
    found = []
    with writing.directory(flags["out"]) as folder:
        writing.safetensors(folder / package.weights, theirs, {"format": "pt"})
        for name, text in package.files.items():
            (folder / name).write_text(text + "\n")
        if heads:
            writing.safetensors(folder / "heads.safetensors", files.check_finite(heads, "the heads"), {"format": "flax"})
        check.same_bytes(package, files.read(folder / package.weights), model)
        missing = check.library(package) if flags["check"] else ""
        if flags["check"] and not missing:
            found = check.differences(package, folder, model)
            check.hold(found)
        lines = [line.format(dir="DIR") for line in package.lines]
        (folder / "README.md").write_text(card.text(model, flags["to"], lines, found, weights=package.weights, licence=flags["licence"]))
    for d in found:
        print(f"{d.role}/{d.layer}: largest difference {d.largest:.1e}, values up to {d.scale:.1e}")
    if missing:
        print(f"not run by {flags['to']}, as {missing} is not here (pip install {missing.replace(', ', ' ')}); every array was read "
              "back and is the same")
    if left:
        print(f"left out, as {flags['to']} has no place for it: {', '.join(left)}")
    print(f"{len(theirs)} arrays: {flags['out']}; README.md there says how to open it")


def _config(place) -> dict:
    """The config.json that weights came with, and under "preprocessor" how their pictures are prepared; {} if there is none."""
    path = epath.Path(place.rpartition(":")[0] if ":" in epath.Path(place).name and not epath.Path(place).exists() else place).expanduser()
    folder, out = path if path.is_dir() else path.parent, {}
    for name in (*CONFIGS, "preprocessor_config.json"):
        if (folder / name).exists():
            try:
                held = json.loads((folder / name).read_text())
            except (json.JSONDecodeError, UnicodeDecodeError) as e:
                raise UsageError(f"{folder / name} is no JSON ({e})") from None
            out |= {"preprocessor": held} if name == "preprocessor_config.json" else held
    return out


def _filled(net) -> dict:
    """A net's arguments, all of them."""
    factory = names.factory("nets", net["name"])
    return {**names.defaults(factory, ("axis", "remat")), **net}


def _overridden(nets, text) -> dict:
    """Nets with --net=KEY=VALUE,... or --net=ROLE.KEY=VALUE,... in them."""
    nets = {role: dict(net) for role, net in nets.items()}
    for part in filter(None, text.split(",")):
        key, _, value = part.partition("=")
        role, _, name = key.rpartition(".")
        role = role or next(iter(nets))
        if role not in nets:
            raise UsageError(f"--net={text}: there is no net {role!r}; there are {', '.join(nets)}")
        takes = names.parameters(names.factory("nets", nets[role]["name"]))
        if name not in takes:
            raise UsageError(f"--net={text}: nets/{nets[role]['name']} has no {name!r}{near(name, takes)}")
        try:
            nets[role][name] = json.loads(value)
        except json.JSONDecodeError:
            nets[role][name] = value
    return nets


def _one_of(flag, name, known):
    if name not in known:
        raise UsageError(f"--{flag}={name}: wanted one of {', '.join(known)}")


if __name__ == "__main__":
    command(main)
