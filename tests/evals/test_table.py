"""The printed table and evals.json."""
import json

import pytest

from simclr_jax.errors import UsageError
from simclr_jax.evals import table


def record(name="knn", kind="simclr", n="all", accuracy=0.9, step=10, draws=1, **more):
    more = dict(k=20, k_asked=20, temperature=0.07) | more if name == "knn" else dict(protocol="lbfgs", l2=0.1) | more
    return dict(eval=name, features=kind, labels_per_class=n, accuracy=accuracy, std=0.0123 if draws > 1 else 0.0,
                draws=draws, step=step, chance=0.1, n_train=100, n_test=400, **more)


def test_table_has_a_row_a_kind_and_a_column_a_number_of_labels():
    lines = table.text([record(n="all"), record(n=10, draws=10, accuracy=0.5), record(n=5, draws=10, accuracy=0.11),
                        record(kind="pixels", accuracy=0.875), record("linear", accuracy=1.0)]).splitlines()
    assert lines[0] == "weighted kNN: test accuracy in %, k=20 T=0.07, mean ± std of 10 draws, step 10"
    assert lines[1].split() == ["labels", "per", "class", "5", "10", "all"]
    assert lines[3].split() == "simclr 11.0 ± 1.2* 50.0 ± 1.2 90.0".split()
    assert lines[4].split() == ["pixels", "-", "-", "87.5"]
    assert lines[6] == "linear probe: test accuracy in %, logistic regression, step 10"
    assert lines[9].split() == ["simclr", "100.0"]
    assert lines[-1] == "* no better than always naming the commonest class (10.0)"
    columns = [[i for i, c in enumerate(line) if c == "."] for line in lines[3:5]]
    assert columns[1][0] == columns[0][-1]  # decimal points line up


def test_steps_keep_rows_of_their_own():
    text = table.text([record(step=10), record(step=20, accuracy=0.95)])
    assert "simclr, step 10" in text and "simclr, step 20" in text and "chance" not in text


def test_merge_replaces_its_own_records_only(tmp_path):
    path = tmp_path / "run" / "evals.json"
    first = [record(n=1), record(n="all"), record("linear")]
    assert table.merge(first, path) == first == json.loads(path.read_text())
    new = [record(n="all", accuracy=0.5), record(n="all", step=20)]
    table.merge(new, path)
    assert json.loads(path.read_text()) == [first[0], new[0], first[2], new[1]]
    assert [p.name for p in path.parent.iterdir()] == ["evals.json"]


def test_merge_leaves_the_old_file_whole_when_the_write_fails(tmp_path):
    path = tmp_path / "evals.json"
    table.merge([record()], path)
    before = path.read_text()
    with pytest.raises(TypeError):
        table.merge([record(n=5, accuracy=object())], path)
    assert path.read_text() == before


@pytest.mark.parametrize("content", ["{", "[1]", '[{"eval": "knn"}]', '{"a": 1}'])
def test_a_file_that_is_not_ours_is_left_alone(tmp_path, content):
    path = tmp_path / "evals.json"
    path.write_text(content)
    with pytest.raises(UsageError, match="not a list of eval records"):
        table.merge([record()], path)
    assert path.read_text() == content
