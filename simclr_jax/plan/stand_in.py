"""What stands in for data and tokenizers that are not here: a plan needs their numbers and sizes only."""
from etils import epath

from simclr_jax import build, data, names
from simclr_jax.data.source import Source
from simclr_jax.data.tokenizer import Tokenizer
from simclr_jax.errors import UsageError

# (source, data set, split): examples, and (height, width) where images are of one size. TFDS's catalogue; scikit-learn.
KNOWN = {
    ("tfds", "imagenet2012", "train"): (1281167, None), ("tfds", "imagenet2012", "validation"): (50000, None),
    ("tfds", "cifar10", "train"): (50000, (32, 32)), ("tfds", "cifar100", "train"): (50000, (32, 32)),
    ("tfds", "stl10", "unlabelled"): (100000, (96, 96)), ("tfds", "food101", "train"): (75750, None),
    ("digits", None, "train"): (1297, (8, 8)),
}
# Ids and end token where a file would say: openai/CLIP's clip/simple_tokenizer.py; c4_en of big_vision's SigLIP.
VOCABULARIES = {"clip": (49408, 49407), "sentencepiece": (32000, 1)}
# Of a run whose number of examples nobody knows. It sets the rate's schedule, which costs the same whatever its length.
ANY = 10**9


def source(config, examples: int = 0) -> tuple[Source, int | None]:
    """The source of the config as training reads it, or one like it; and its number of examples, None if unknown.

    Args:
      examples: their number where the data is not here, 0 if it is not given.
    """
    try:
        plain = config.copy_and_resolve_references().unlock()
        if plain.data.name == "tfds":
            plain.data.download = False
        found = data.as_read(build.source(plain))
        return found, examples or found.size
    except (UsageError, ImportError):  # not here, or not the libraries that read it
        known, shape = KNOWN.get((config.data.name, config.data.get("dataset"), config.data.get("split")), (None, None))
    size = examples or known
    return Source(size or ANY, None, shape, (), f"{config.data.name}: not here", list), size


def tokenizer(config) -> Tokenizer | None:
    """The tokenizer of the config, or one of its size.

    Raises:
      UsageError: a file that is not here of a kind whose files differ in size.
    """
    text = config.text
    if not text:
        return None
    if text.get("path") and epath.Path(text.path).exists():
        return names.make("data.tokenizers", text)
    if text.name == "bpe":  # trained on the captions, to a size that the config says
        vocab, eot = text.size, 2
    elif text.name in VOCABULARIES:
        vocab, eot = VOCABULARIES[text.name]
    else:
        raise UsageError(f"config.text.path={text.get('path', '')!r} is not here, and vocabularies of {text.name!r} "
                         "differ in size; give the path of the file")
    return Tokenizer(None, vocab, text.length, eot, 0, f"{text.name}: {vocab} tokens, not here", 0)
