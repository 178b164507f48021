"""The published sentences, and files of sentences and of class names."""
import json

import pytest

from simclr_jax.errors import UsageError
from simclr_jax.evals import templates


@pytest.mark.parametrize("name, count", [("openai", 80), ("simple", 7), ("cifar", 18), ("plain", 1)])
def test_each_set_is_whole_and_each_sentence_takes_a_name(name, count):
    sentences = templates.read(name)
    assert sentences is templates.SETS[name] and len(sentences) == len(set(sentences)) == count
    for s in sentences:
        assert s.count("{}") == 1 and s.format("tench") == s.replace("{}", "tench") and s == s.strip()


def test_the_sets_are_the_published_ones():
    assert set(templates.SIMPLE) < set(templates.OPENAI) and templates.PLAIN[0] in templates.OPENAI
    assert templates.OPENAI[0] == "a bad photo of a {}." and templates.OPENAI[-1] == "a tattoo of the {}."
    # every CIFAR sentence stands there with "a" and with "the"
    assert {t.replace(" a {", " the {").replace(" a small", " the small").replace(" a big", " the big")
            for t in templates.CIFAR[:9]} == set(templates.CIFAR[9:])


def test_a_file_has_one_template_a_line(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_bytes("\ufeffein Foto von {}.\r\n a {{braced}} {} \n猫 {}".encode())
    assert templates.read(path) == ("ein Foto von {}.", "a {{braced}} {}", "猫 {}")
    assert templates.read(str(path))[1].format("x") == "a {braced} x"


@pytest.mark.parametrize("content, message", [
    ("a {}\nno place\n", r"line 2: 'no place' is no template; wanted one \{\}"),
    ("a {}\n\n{}", "line 2: ''"),
    ("a {} and {}", "line 1"),
    ("a {0}", "line 1"),
    ("a {c}", "line 1"),
    ("a {:>9}", "line 1"),
    ("a {!r}", "line 1"),
    ("a {} {", "line 1"),
    ("", "there is nothing in the file"),
])
def test_a_line_that_is_no_template_is_named(tmp_path, content, message):
    path = tmp_path / "mine.txt"
    path.write_text(content)
    with pytest.raises(UsageError, match=message) as e:
        templates.read(path)
    assert "\n" not in str(e.value) and str(path) in str(e.value)


def test_an_unknown_set_names_its_neighbour(tmp_path):
    with pytest.raises(UsageError, match="'opnai' is neither a file nor a known set; did you mean 'openai'"):
        templates.read("opnai")
    with pytest.raises(UsageError, match="neither a file"):
        templates.read(tmp_path)  # a directory


@pytest.mark.parametrize("file, content", [
    ("names.txt", "tench\n great  white shark\r\nÜhu"),
    ("names.txt", "tench\ngreat white shark\nÜhu\n"),
    ("names.json", json.dumps(["tench", "great white shark", "Ühu"])),
    ("names.JSON", json.dumps({"2": "Ühu", "0": "tench", "1": "great white shark"})),
])
def test_class_names_from_text_and_json(tmp_path, file, content):
    (tmp_path / file).write_bytes(content.encode())
    assert templates.class_names(tmp_path / file) == ["tench", "great white shark", "Ühu"]


@pytest.mark.parametrize("file, content, message", [
    ("n.txt", b"a\n\nb\n", r"class 1 is '' \(line 2"),
    ("n.txt", b"a\nb\n\n", "class 2 is ''"),
    ("n.txt", b"", "nothing in the file"),
    ("n.txt", b"caf\xe9", "not UTF-8"),
    ("n.json", b"[", "no valid JSON"),
    ("n.json", b"[]", "no names in it"),
    ("n.json", b"{}", "no names in it"),
    ("n.json", b'"a"', "wanted a JSON list"),
    ("n.json", b'["a", " "]', "class 1 is ' '"),
    ("n.json", b'{"0": "a", "1": 7}', "class 1 is 7"),
    ("n.json", b'{"0": "a", "2": "b"}', "2 names, but none for index 1"),
    ("n.json", b'{"0": "a", "0": "b"}', "there twice"),
])
def test_class_names_that_cannot_work_are_refused_in_one_line(tmp_path, file, content, message):
    (tmp_path / file).write_bytes(content)
    with pytest.raises(UsageError, match=message) as e:
        templates.class_names(tmp_path / file)
    assert "\n" not in str(e.value)


def test_a_missing_file_of_names_is_named(tmp_path):
    with pytest.raises(UsageError, match="there is no file .*nowhere.txt"):
        templates.class_names(tmp_path / "nowhere.txt")


def test_templates_may_be_given_as_they_stand():
    assert templates.read("the digit {}; a {}") == ("the digit {}", "a {}")
    with pytest.raises(UsageError, match=r"templates, line 2: '{} {}' is no template"):
        templates.read("a {};{} {}")
