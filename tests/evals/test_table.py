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


def zero_shot(kind="clip", accuracy=0.5, step=10, **more):
    return dict(eval="zero_shot", features=kind, labels_per_class=0, accuracy=accuracy, top5=0.9, mean_per_class=0.45,
                std=0.0, draws=1, step=step, chance=0.12, n_train=0, n_test=400, classes=10, templates=80) | more


def retrieval(kind="clip", step=10, **more):
    return dict(eval="retrieval", features=kind, labels_per_class=0, step=step,
                image_to_text={"r1": 0.583, "r5": 0.815, "r10": 1.0, "median_rank": 1.0},
                text_to_image={"r1": 0.377, "r5": 0.624, "r10": 0.723, "median_rank": 2.5},
                chance={"image_to_text": {"r1": 0.01, "r5": 0.049, "r10": 0.096},
                        "text_to_image": {"r1": 0.01, "r5": 0.05, "r10": 0.1}},
                n_images=100, n_texts=500, accuracy=0.48, chance_r1=0.01) | more


def test_zero_shot_and_retrieval_have_blocks_with_chance_in_the_last_rows():
    assert table.text([zero_shot(), zero_shot("random_init", 0.103), retrieval()]) == """\
zero-shot: test accuracy in %, 400 images, 10 classes, 80 templates, step 10
                              top 1  top 5  mean per class
  --------------------------------------------------------
  clip                         50.0   90.0            45.0
  random_init                  10.3   90.0            45.0
  always the commonest class   12.0

retrieval: recall in %, 100 images, 500 captions, step 10
                                R@1   R@5   R@10  median rank
  -----------------------------------------------------------
  clip, image to text          58.3  81.5  100.0            1
  clip, text to image          37.7  62.4   72.3          2.5
  random order, image to text   1.0   4.9    9.6
  random order, text to image   1.0   5.0   10.0
"""


def test_few_classes_have_no_top_5_and_other_test_sets_a_block_of_their_own():
    lines = table.text([zero_shot(), zero_shot(classes=3, top5=None, templates=1, chance=0.4)]).splitlines()
    assert lines[6] == "zero-shot: test accuracy in %, 400 images, 3 classes, 1 template, step 10"
    assert lines[7].split() == ["top", "1", "mean", "per", "class"] and lines[9].split() == ["clip", "50.0", "45.0"]
    assert lines[10].split()[-1] == "40.0"
    text = table.text([retrieval(), retrieval(n_images=50), retrieval(step=20)])
    assert text.count("retrieval: recall") == 2 and "50 images" in text
    assert "clip, step 10, image to text" in text and "clip, step 20, text to image" in text
    assert "captions\n" in text and "50 images, 500 captions, step 10\n" in text


def test_they_leave_the_other_blocks_as_they_are():
    others = [record(n=5, draws=10, accuracy=0.11), record("linear", accuracy=1.0)]
    alone, beside = table.text(others), table.text([zero_shot(chance=0.9), *others, retrieval()])
    blocks, foot = alone.rsplit("\n\n", 1)
    assert blocks in beside and beside.endswith(foot)  # the star's line still has the chance of the probes


def test_their_records_merge_and_print_the_same_from_the_file(tmp_path):
    path = tmp_path / "evals.json"
    table.merge([zero_shot(), retrieval(), record()], path)
    new = zero_shot(accuracy=0.6)
    held = table.merge([new, zero_shot("random_init"), retrieval(step=20)], path)
    assert held == [new, retrieval(), record(), zero_shot("random_init"), retrieval(step=20)]
    assert table.text(json.loads(path.read_text())) == table.text(held)


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
