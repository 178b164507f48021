"""`python -m simclr_jax.export`: weights out, weights in, and features.

    --workdir=runs/x --to=timm --out=DIR           a run for timm, torchvision, transformers, open_clip, flax, stablehlo
    --from-dir=DIR --to=timm --out=DIR2            the same of a directory that --from or --to=flax made
    --from=timm --weights=FILE_OR_DIR --out=DIR    published weights as a directory to evaluate, fine-tune or go on from
    --features --from-dir=DIR --images=DIR --out=F.npz    embeddings of a folder of pictures
"""
import importlib
import json
import re

from simclr_jax import config as configs, embed, names, trained
from simclr_jax.data.sources import folder
from simclr_jax.errors import UsageError
from simclr_jax.export import card, check, features, files, layout, model as models, stablehlo, write as writing
from simclr_jax.life import command
from simclr_jax.names import near

TO = "torchvision", "timm", "transformers", "open_clip", "flax", "stablehlo"
FROM = "timm", "torchvision", "transformers", "open_clip", "simclr_tf", "moco", "dino", "dinov2", "swav", "byol"
OPTIONS = {"workdir": "", "from-dir": "", "to": "", "out": "", "from": "", "weights": "", "net": "", "best": False,
           "heads": False, "licence": "", "check": True, "features": False, "images": "", "batch": 64}


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
    _wants(flags, "--features", ("from-dir", "images", "out"), "--from-dir=DIR --images=PICTURES --out=features.npz")
    if flags["batch"] < 1:
        raise UsageError(f"--batch={flags['batch']}, wanted at least 1")
    model = models.read(flags["from-dir"])
    if not {"backbone", "image"} & set(model.nets):
        raise UsageError(f"--from-dir={flags['from-dir']}: it has {', '.join(model.nets)}, wanted a net for images")
    paths, _ = folder.images(flags["images"])
    apply, params = models.embedder(model)
    view = [op for op in model.image["eval"] if op[0] != "normalize"]  # which `apply` does itself

    def of_files(part):
        return embed.of_files(flags["images"], part, view, lambda x: apply(params, image=x)["image"], 1,
                              batch=flags["batch"])
    features.write(flags["out"], paths, of_files, features.identity(flags["from-dir"], flags["images"], paths))


def read(flags) -> None:
    """Their file as a directory of ours."""
    library, where = flags["from"], f"--weights={flags['weights']}"
    _one_of("from", library, FROM)
    _wants(flags, f"--from={library}", ("weights", "out"), "--weights=model.safetensors --out=DIR")
    weights, config = files.read(flags["weights"]), files.config(flags["weights"])
    try:
        found = importlib.import_module(f"simclr_jax.export.{library}").read(weights, config, where)
    except (KeyError, IndexError, ValueError, TypeError) as e:
        if isinstance(e, UsageError):
            raise
        raise UsageError(f"{where}: is no file of {library}'s that can be read ({type(e).__name__}: {e}); choose "
                         f"another --from of {', '.join(FROM)}") from None
    ours, beside = layout.ours(found.layout, weights, where)
    nets = _overridden(found.nets, flags["net"])
    models.write(flags["out"], models.Model(nets, files.check_finite(ours, where), beside, found.image, found.text,
                                            dict(source=library, licence=flags["licence"])))
    for role, net in nets.items():
        print(f"{role}: {net['name']} " + ", ".join(f"{k}={v}" for k, v in net.items() if k != "name"))
    if beside:
        more = f" and {len(beside) - 6} more" if len(beside) > 6 else ""
        print(f"kept beside, as no net here has them: {', '.join(sorted(beside)[:6])}{more}")
    print(f"{len(ours)} arrays, {layout.size(ours) / 2**20:.1f} MiB: {flags['out']}")


def write(flags) -> None:
    """A run, or a directory of ours, as another library opens it."""
    target, out = flags["to"], flags["out"]
    _one_of("to", target, TO)
    _wants(flags, f"--to={target}", ("out",), "--out=DIR, a new directory")
    model = _model(flags)
    if target == "flax":
        models.write(out, model)
        print(f"{len(model.weights)} arrays: {out}")
        return
    model, heads = _split(model)
    if target == "stablehlo":
        if flags["heads"]:
            raise UsageError("--to=stablehlo writes towers alone; leave --heads out, or take --to=flax")
        stablehlo.write(out, model, card.text(model, "JAX", weights="model.safetensors"))
        print(f"{len(model.weights)} arrays: {out}")
        return
    _package(flags, model, heads if flags["heads"] else {})


def _model(flags) -> models.Model:
    """What is to be written, with all arguments of its nets."""
    if bool(flags["workdir"]) == bool(flags["from-dir"]):
        raise UsageError("give one of --workdir (a run) and --from-dir (a directory that --from or --to=flax made)")
    if flags["workdir"]:
        model = trained.read(flags["workdir"], best=flags["best"], heads=flags["heads"])
    elif flags["best"]:
        raise UsageError("--best is of a run, and --from-dir gives none; leave it out")
    else:
        model = models.read(flags["from-dir"])
    licence = flags["licence"] or model.meta.get("licence", "")
    return model._replace(nets={role: models.filled(net) for role, net in model.nets.items()},
                          meta=model.meta | {"licence": licence})


def _split(model):
    """(the model with its towers alone, {name: Tensor} of its other nets and of what a run has besides)."""
    towers = {role: net for role, net in model.nets.items() if role in trained.TOWERS}
    heads = {n: t for n, t in model.weights.items() if n.split("/")[0] in set(model.nets) - set(towers)}
    weights = {n: t for n, t in model.weights.items() if n not in heads}
    beside = model.beside
    if "method" in model.meta:  # a run of ours: nothing beside is a classifier that came with the weights
        heads, beside = heads | beside, {}
    return model._replace(nets=towers, weights=weights, beside=beside), heads


def _package(flags, model, heads) -> None:
    """Writes for a library, reads back, and runs it there if it is installed; nothing stays if anything is amiss."""
    target, source = flags["to"], flags["workdir"] or flags["from-dir"]
    package = importlib.import_module(f"simclr_jax.export.{target}").package(model)
    left = _left(package, model)
    weights = {n: t for n, t in model.weights.items() if n not in left}
    theirs = files.check_finite(layout.theirs(package.layout, weights, model.beside, f"--to={target}"), source)
    missing, found = check.library(package) if flags["check"] else "", []
    with writing.directory(flags["out"]) as folder:
        writing.safetensors(folder / package.weights, theirs, {"format": "pt"})
        for name, text in package.files.items():
            (folder / name).write_text(text + "\n")
        if heads:
            writing.safetensors(folder / "heads.safetensors", files.check_finite(heads, source), {"format": "flax"})
        check.same_bytes(package, files.read(folder / package.weights), model)
        if flags["check"] and not missing:
            found = check.differences(package, folder, model)
            check.hold(found)
        (folder / "README.md").write_text(card.text(model, target, weights=package.weights, lines=package.lines,
                                                    call=package.call, differences=found))
    for d in found:
        print(f"{d.role}/{d.layer}: largest difference {d.largest:.1e}, values up to {d.scale:.1e}")
    if missing:
        print(f"not run by {target}, as {missing} is not here (pip install {missing.replace(',', '')}); every array "
              "was read back and is the same")
    if left:
        print(f"left out, as {target} has no place for it: {', '.join(left)}")
    print(f"{len(theirs)} arrays: {flags['out']}; README.md there says how to open it")


def _left(package, model) -> list[str]:
    """Those of our arrays that the library has no place for, and its features do not need."""
    placed = {r.ours for r in package.layout.rows}
    return [n for n in model.weights if n not in placed
            and (n in models.SCALARS or any(re.fullmatch(pattern, n) for pattern in package.left))]


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


def _wants(flags, asked, needed, example):
    for flag in needed:
        if not flags[flag]:
            raise UsageError(f"{asked} needs --{flag}; as in {asked} {example}")


def _one_of(flag, name, known):
    if name not in known:
        raise UsageError(f"--{flag}={name}: wanted one of {', '.join(known)}")


if __name__ == "__main__":
    command(main)
