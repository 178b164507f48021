"""Sentences that a class name is put into for zero-shot classification, and files of sentences and of class names.

The published sets are data, as needed to reproduce published figures. All come from openai/CLIP (Radford et al. 2021,
arXiv:2103.00020; MIT licence, copyright 2021 OpenAI): OPENAI and SIMPLE from its
notebooks/Prompt_Engineering_for_ImageNet.ipynb, CIFAR from its data/prompts.md. The articles ("a origami") are as
published.
"""
import json
import os
import string

from etils import epath

from simclr_jax.errors import UsageError
from simclr_jax.names import near

# 80, for ImageNet.
OPENAI = (
    "a bad photo of a {}.", "a photo of many {}.", "a sculpture of a {}.", "a photo of the hard to see {}.",
    "a low resolution photo of the {}.", "a rendering of a {}.", "graffiti of a {}.", "a bad photo of the {}.",
    "a cropped photo of the {}.", "a tattoo of a {}.", "the embroidered {}.", "a photo of a hard to see {}.",
    "a bright photo of a {}.", "a photo of a clean {}.", "a photo of a dirty {}.", "a dark photo of the {}.",
    "a drawing of a {}.", "a photo of my {}.", "the plastic {}.", "a photo of the cool {}.",
    "a close-up photo of a {}.", "a black and white photo of the {}.", "a painting of the {}.", "a painting of a {}.",
    "a pixelated photo of the {}.", "a sculpture of the {}.", "a bright photo of the {}.", "a cropped photo of a {}.",
    "a plastic {}.", "a photo of the dirty {}.", "a jpeg corrupted photo of a {}.", "a blurry photo of the {}.",
    "a photo of the {}.", "a good photo of the {}.", "a rendering of the {}.", "a {} in a video game.",
    "a photo of one {}.", "a doodle of a {}.", "a close-up photo of the {}.", "a photo of a {}.", "the origami {}.",
    "the {} in a video game.", "a sketch of a {}.", "a doodle of the {}.", "a origami {}.",
    "a low resolution photo of a {}.", "the toy {}.", "a rendition of the {}.", "a photo of the clean {}.",
    "a photo of a large {}.", "a rendition of a {}.", "a photo of a nice {}.", "a photo of a weird {}.",
    "a blurry photo of a {}.", "a cartoon {}.", "art of a {}.", "a sketch of the {}.", "a embroidered {}.",
    "a pixelated photo of a {}.", "itap of the {}.", "a jpeg corrupted photo of the {}.", "a good photo of a {}.",
    "a plushie {}.", "a photo of the nice {}.", "a photo of the small {}.", "a photo of the weird {}.",
    "the cartoon {}.", "art of the {}.", "a drawing of the {}.", "a photo of the large {}.",
    "a black and white photo of a {}.", "the plushie {}.", "a dark photo of a {}.", "itap of a {}.",
    "graffiti of the {}.", "a toy {}.", "itap of my {}.", "a photo of a cool {}.", "a photo of a small {}.",
    "a tattoo of the {}.")

# 7 of the 80, chosen for ImageNet by forward selection.
SIMPLE = (
    "itap of a {}.", "a bad photo of the {}.", "a origami {}.", "a photo of the large {}.", "a {} in a video game.",
    "art of the {}.", "a photo of the small {}.")

# 18, for CIFAR-10 and CIFAR-100.
CIFAR = (
    "a photo of a {}.", "a blurry photo of a {}.", "a black and white photo of a {}.",
    "a low contrast photo of a {}.", "a high contrast photo of a {}.", "a bad photo of a {}.", "a good photo of a {}.",
    "a photo of a small {}.", "a photo of a big {}.", "a photo of the {}.", "a blurry photo of the {}.",
    "a black and white photo of the {}.", "a low contrast photo of the {}.", "a high contrast photo of the {}.",
    "a bad photo of the {}.", "a good photo of the {}.", "a photo of the small {}.", "a photo of the big {}.")

PLAIN = ("a photo of a {}.",)

SETS = {"openai": OPENAI, "simple": SIMPLE, "cifar": CIFAR, "plain": PLAIN}


def read(path_or_name: str | os.PathLike) -> tuple[str, ...]:
    """The templates of a set in `SETS`, or of a UTF-8 text file (local or gs://) with one template a line.

    Or the templates themselves, with ";" between them: "the digit {};a {}".

    A template is a `str.format` string with one {} where the class name goes; {{ and }} are braces.

    Raises:
      UsageError: neither a set nor a file, or a line that is no such template.

    >>> read("plain")[0].format("tabby cat")
    'a photo of a tabby cat.'
    """
    if path_or_name in SETS:
        return SETS[path_or_name]
    name = os.fspath(path_or_name)
    if "{" in name:
        lines, name = [line.strip() for line in name.split(";")], "templates"
    elif epath.Path(name).is_file():
        lines = _lines(name)
    else:
        raise UsageError(f"templates: {name!r} is neither a file nor a known set{near(name, SETS)}, nor a template with {{}}")
    for number, line in enumerate(lines, 1):
        try:
            fields = [(f, s, c) for _, f, s, c in string.Formatter().parse(line) if f is not None]
        except ValueError:
            fields = None
        if fields != [("", "", None)]:
            raise UsageError(f"{name}, line {number}: {line!r} is no template; wanted one {{}} where the class name "
                             'goes, as in "a photo of a {}."')
    return tuple(lines)


def class_names(path: str | os.PathLike) -> list[str]:
    """The names of classes 0, 1, ...: a UTF-8 text file with one a line, or a .json with a list or {index: name}.

    Raises:
      UsageError: no such file, a blank name, indices that are not 0..C-1, or JSON of another kind.
    """
    name = os.fspath(path)
    if not epath.Path(name).is_file():
        raise UsageError(f"class names: there is no file {name!r}; wanted a text file with one name a line, or a .json")
    names = _of_json(name) if name.lower().endswith(".json") else _lines(name)
    for i, text in enumerate(names):
        if not isinstance(text, str) or not text.strip():
            raise UsageError(f"{name}: the name of class {i} is {text!r} (line {i + 1} of a text file); wanted some "
                             "text, as a class's number is its place in the file")
    return [" ".join(n.split()) for n in names]


def _lines(name):
    """Lines without the white space around them; what ends the last one starts no further line."""
    lines = [line.strip() for line in _text(name).split("\n")]
    lines = lines[:-1] if not lines[-1] else lines
    if not lines:
        raise UsageError(f"{name}: there is nothing in the file; wanted at least one line")
    return lines


def _of_json(name):
    def once(pairs):
        if len(dict(pairs)) < len(pairs):
            raise UsageError(f"{name}: an index is there twice; wanted each of 0..C-1 once")
        return dict(pairs)

    try:
        value = json.loads(_text(name), object_pairs_hook=once)
    except ValueError as e:
        if isinstance(e, UsageError):
            raise
        raise UsageError(f"{name}: no valid JSON ({e}); wanted a list of names or {{index: name}}") from None
    if isinstance(value, dict):
        wanted = [str(i) for i in range(len(value))]
        if set(value) != set(wanted):
            missing = next(i for i in wanted if i not in value) if value else "0"
            raise UsageError(f"{name}: {len(value)} names, but none for index {missing}; wanted the indices 0..C-1")
        value = [value[i] for i in wanted]
    if not isinstance(value, list) or not value:
        raise UsageError(f"{name}: no names in it; wanted a JSON list of names or {{index: name}}")
    return value


def _text(name):
    try:
        return epath.Path(name).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UsageError(f"{name}: not UTF-8 text; save it as UTF-8") from None
