"""CLIP's tokenizer: byte-level BPE of lower-cased text, with the ids of openai/CLIP and open_clip.

Radford et al. (2021), section 2.4; clip/simple_tokenizer.py of openai/CLIP and `SimpleTokenizer` of open_clip.
"""
import gzip
import importlib.util
import os
import zlib
from pathlib import Path

from simclr_jax.data.tokenizer import Tokenizer, check_length, cleaner, digest, library, line, pack, read, rust_ids
from simclr_jax.errors import UsageError

FILE = "bpe_simple_vocab_16e6.txt.gz"
MERGES = 48894  # of the 262,144 in the file: with 2 x 256 bytes and two special tokens that makes 49,408
START, END = 49406, 49407
SPECIAL = {"<start_of_text>": START, "<end_of_text>": END}
# Contractions, runs of letters, single digits, runs of what is neither; white space is dropped. So is U+0345, a mark
# whose other case is a letter: the original's pattern, which ignores case, finds it in no group.
SPLIT = r"(?i:<start_of_text>|<end_of_text>|'s|'t|'re|'ve|'m|'ll|'d)|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}\u0345]+"


def make(*, path: str = "", length: int = 77) -> Tokenizer:
    """CLIP's tokenizer: start 49406, end 49407, padded with 0; a long text is cut and keeps its end.

    Args:
      path: the file bpe_simple_vocab_16e6.txt.gz of openai/CLIP or open_clip, or the merges.txt that transformers
        keeps of it. If not given, it is looked for in the installed packages open_clip and clip, and among the files
        that transformers has downloaded of openai/clip-*.
      length: tokens a row, with start and end; all of CLIP's models have 77.

    Returns:
      A tokenizer of 49,408 ids, equal to open_clip's with its default `clean="lower"`. As there, a text that spells
      out "<end_of_text>" gets that token. Which characters are letters is for the Unicode tables of Python and of the
      library `tokenizers` to say.

    Raises:
      UsageError: no such file, or a damaged one; length < 3; tokenizers or ftfy is not installed.
    """
    check_length("clip", length)
    library("tokenizers")
    clean = cleaner(mend=True, lower=True)
    path = path or _found()
    merges = _merges(read(path, f"{FILE} of openai/CLIP"), path)
    tokenizer = _rust(merges, path)

    def ids_with_special(text):
        # Special tokens of the library match before the split does, and so in more places ("!<end_of_text>").
        ids = []
        for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text):
            ids += [SPECIAL[piece]] if piece in SPECIAL else [t.id for t in tokenizer.model.tokenize(piece)]
        return ids

    def encode(texts):
        texts = [clean(t) for t in texts]
        rows = rust_ids(tokenizer, texts)
        for i, text in enumerate(texts):
            if any(name in text for name in SPECIAL):
                rows[i] = ids_with_special(text)
        return pack(rows, length, pad=0, start=START, end=END)

    return Tokenizer(encode, END + 1, length, END, 0, f"CLIP's BPE of {END + 1} tokens ({path}), length {length}",
                     digest("clip", merges, length))


def _found() -> str:
    """The path of the merges where other packages keep them. None of these is imported."""
    for package in ("open_clip", "clip"):
        spec = importlib.util.find_spec(package)
        for folder in (spec and spec.submodule_search_locations) or ():
            if os.path.isfile(os.path.join(folder, FILE)):
                return os.path.join(folder, FILE)
    home = os.environ.get("HF_HOME") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "huggingface")
    hub = Path(os.environ.get("HF_HUB_CACHE") or os.path.join(home, "hub"))
    for file in sorted(hub.glob("models--openai--clip-*/snapshots/*/merges.txt")):
        return str(file)
    raise UsageError("clip: no vocabulary: open_clip, clip and a downloaded openai/clip-* are not on this machine; "
                     f"give path={FILE!r}, the file of github.com/openai/CLIP, or pip install open_clip_torch")


def _merges(data: bytes, path: str) -> list[tuple[str, str]]:
    """The merges in order of rank; the first line of the file is its version."""
    try:
        lines = (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode().split("\n")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as e:
        raise UsageError(f"clip: {path} is damaged ({line(e)}); fetch {FILE} of openai/CLIP again") from None
    merges = [tuple(text.split()) for text in lines[1:MERGES + 1]]
    whole = [m for m in merges if len(m) == 2]
    if len(whole) != MERGES or len(merges) != MERGES:
        raise UsageError(f"clip: {path} has {len(whole)} merges, wanted {MERGES} or more; give {FILE} of openai/CLIP, "
                         "or a merges.txt of openai/clip-*")
    return merges


def _rust(merges, path):
    """The `tokenizers.Tokenizer`: no normalizer, no special tokens."""
    from tokenizers import Regex, models, pre_tokenizers
    from tokenizers import Tokenizer as Rust
    symbols = _byte_symbols()
    tokens = [*symbols, *(s + "</w>" for s in symbols), *map("".join, merges)]
    try:
        tokenizer = Rust(models.BPE({t: i for i, t in enumerate(tokens)}, merges, end_of_word_suffix="</w>"))
    except Exception as e:  # the library raises bare Exceptions
        raise UsageError(f"clip: {path} has merges of unknown parts ({line(e)}); give {FILE} of openai/CLIP") from None
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(SPLIT), behavior="removed", invert=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    return tokenizer


def _byte_symbols() -> list[str]:
    """The character of each byte, in the order of ids: printable Latin-1 stands for itself, others from U+0100 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(256 - len(printable))]
