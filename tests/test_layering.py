"""Who may import whom: rooms stay rooms only if a test says so."""
import ast
import pathlib

import pytest

PACKAGE = pathlib.Path(__file__).parents[1] / "simclr_jax"
LEAVES = {"errors", "names", "keys", "life", "__init__"}
# What each room may import of ours, beyond itself and the leaves.
MAY = {
    # Composition, for the commands.
    "embed": {"augment", "build", "data", "evals"}, "pairs": {"build", "embed", "evals"}, "probes": {"build", "embed", "evals"},
    "tuning": {"augment", "build", "data", "dist", "embed", "evals", "train", "types"},
    "subject": {"augment", "build", "config", "data", "dist", "export", "train", "types"},
    "attention": {"build", "embed", "evals", "nets", "tuning"},
    "replay": {"augment", "build", "config", "dist", "train", "types"},
    "watch": {"build", "embed", "evals", "pairs"}, "bench": {"augment", "build", "data", "dist", "train"},
    "plan": {"bench", "build", "config", "data", "dist", "train"},
    "types": set(), "dist": set(), "config": {"train.optim"},
    "build": {"dist", "types", "train.optim", "train.guard", "train.placement", "train.state", "train.step", "data", "augment"},
    "losses": {"types", "dist"},
    "nets": {"types", "dist"},
    "methods": {"types", "dist", "losses"},
    "data": set(),
    "augment": {"types"},
    "evals": {"types"},
    "export": {"types", "nets"},
    "trained": {"build", "config", "export", "train"},
    "train": {"types", "dist"},
}


def imports(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield node.module
            yield from (f"{node.module}.{a.name}" for a in node.names)


FILES = sorted(f for f in PACKAGE.rglob("*.py") if f.name != "__main__.py")


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_imports_stay_within_the_layers(file):
    room = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if room in LEAVES:
        allowed = {"errors", room}
    else:
        allowed = MAY[room] | LEAVES | {room}
    modules = set(imports(ast.parse(file.read_text())))
    ours = {m.removeprefix("simclr_jax").lstrip(".") for m in modules if m.split(".")[0] == "simclr_jax"} - {""}
    for module in ours:
        prefixes = {".".join(module.split(".")[:i + 1]) for i in range(module.count(".") + 1)}
        assert prefixes & allowed or any(a.startswith(module + ".") for a in allowed), \
            f"{file.name} imports simclr_jax.{module}; its room may see {sorted(allowed)}"


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_libraries_stay_in_their_rooms(file):
    path = str(file.relative_to(PACKAGE))
    top = {m.split(".")[0] for m in imports(ast.parse(file.read_text()))}
    linen = any(m.startswith("flax.linen") for m in imports(ast.parse(file.read_text())))
    assert not linen or path.startswith("nets/"), "flax.linen is for nets/"
    assert "jax" not in top or not path.startswith("data/"), "data/ knows no jax"
    assert "tensorflow" not in top or path.startswith("data/") or path == "export/_tf.py", "tensorflow is for data/"
    assert "orbax" not in top or path == "train/checkpoint.py", "orbax is for train/checkpoint.py"
