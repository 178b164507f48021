"""A method is one short file, and the table of them in docs/methods.md says what is true."""
import re

import jax
import pytest

from methods.test_laws import METHODS, RUN, TOYS
from runs import ROOT
from simclr_jax import config as configs, names

TEXT = (ROOT / "docs/methods.md").read_text()
ROWS = {row[0]: row[1:] for row in (
    [re.sub(r"^\[(.*?)\]\(.*", r"\1", cell.strip()) for cell in line.strip("|").split("|")]
    for line in TEXT.splitlines() if line.startswith("| ["))}
FILES = sorted((ROOT / "simclr_jax/methods").glob("[a-z]*.py"))
RECIPES = sorted(f.stem for f in (ROOT / "configs").glob("*.py") if f.stem != "folder")  # which takes any of the others


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_a_file_is_short_and_its_length_as_documented(file):
    lines = len(file.read_text().splitlines())
    assert lines <= 150, f"{file.name} has {lines} lines; its mathematics should be in sight"
    if file.stem in METHODS:
        said = ROWS[file.stem][0]
    else:
        said = re.search(rf"methods/{file.stem}\.py\) \((\d+)", TEXT)[1]
    assert int(said) == lines, f"docs/methods.md says {said} lines of {file.name}, which has {lines}"


@pytest.mark.parametrize("name", METHODS)
def test_what_a_method_needs_is_as_documented(name):
    toy = TOYS[name]
    method = names.make("methods", dict(name=name, **toy["spec"]), toy["nets"](), **RUN)
    params, extra = jax.eval_shape(method.init, jax.random.key(0), toy["batch"])
    found = {"teacher": "teacher" in extra, "queue": "queue" in extra, "predictor": "predictor" in params,
             "prototypes": "prototypes" in params or "last" in params, "multi-crop": "crops" in toy["batch"],
             "hidden patches": "patch_last" in params, "texts": "text" in params}
    said = {re.sub(r" \(.*", "", need) for need in ROWS[name][2].split(", ") if need}
    assert said == {need for need, there in found.items() if there}


def test_every_method_and_every_recipe_has_its_place():
    assert set(ROWS) == set(METHODS)
    listed = {name: cells[3].split(", ") for name, cells in ROWS.items()}
    assert sorted(sum(listed.values(), [])) == RECIPES
    for name, recipes in listed.items():
        for recipe in recipes:
            assert configs.load(f"{ROOT}/configs/{recipe}.py").method.name == name
