"""What a tokenizer is, and what all share: reading, cleaning text, and rows of one length that keep their end."""
import functools
import html
import importlib
import os
import string
import warnings
import zlib
from typing import Callable, Iterable, NamedTuple, Sequence

import numpy as np
from etils import epath

from simclr_jax.errors import UsageError

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


class Tokenizer(NamedTuple):
    """Text to token ids, on the host; `tokenizers/<name>.py` each have a `make` that returns one.

    `encode` takes any strings, from any thread, and is a function of them alone.
    """

    encode: Callable  # (Sequence[str]) -> i32[n, length]: padded on the right, cut so that the end token stays last
    vocab: int  # ids are below it
    length: int  # L
    eot: int  # id of the end-of-text token, which every row has; -1 if the tokenizer has none
    pad: int  # id that fills a row up; may be that of the end token
    describe: str  # one line for the log
    digest: int  # crc32 of what defines it: a resumed run must find the same
    keep: bytes = b""  # the file that a run has to keep, if the tokenizer was made for it


def pack(rows: Iterable[Sequence[int]], length: int, *, pad: int, end: int = -1, start: int = -1) -> np.ndarray:
    """i32[n,length]: each row between its start and end token (-1: none), cut to fit between them, then padded."""
    rows = list(rows)
    first, room = int(start >= 0), length - (start >= 0) - (end >= 0)
    out = np.full((len(rows), length), pad, np.int32)
    if start >= 0:
        out[:, 0] = start
    for line, row in zip(out, rows):
        stop = first + min(len(row), room)
        line[first:stop] = row[:room]
        if end >= 0:
            line[stop] = end
    return out


def mended(text: str) -> str:
    """The text with mojibake, curly quotes and HTML entities put right and white space made single spaces.

    That is what CLIP does before anything else (clip/simple_tokenizer.py of openai/CLIP, open_clip/tokenizer.py), by
    way of ftfy.
    """
    # ftfy leaves such text as it is, and takes longer over it than all the rest together.
    if not (text.isascii() and text.isprintable() and "&" not in text):
        text = html.unescape(html.unescape(library("ftfy").fix_text(text)))
    return " ".join(text.split())


def cleaner(*, mend: bool = False, canonical: bool = False, lower: bool = False) -> Callable[[str], str]:
    """A function that prepares a text as asked.

    Args:
      mend: as in `mended`.
      canonical: lower case without ASCII punctuation, "_" as a space, white space made single spaces, as for SigLIP's
        zero-shot prompts (`canonicalize_text` in big_vision's evaluators/proj/image_text/prompt_engineering.py).
      lower: lower case, of all alphabets; big_vision's own op lowers ASCII only.
    """
    if mend:
        library("ftfy")  # missing, it is better named now than by the first caption that is not ASCII

    def clean(text):
        text = mended(text) if mend else text
        if canonical:
            text = " ".join(text.replace("_", " ").translate(_NO_PUNCTUATION).split())
        return valid(text.lower() if lower or canonical else text)

    return clean


def valid(text: str) -> str:
    """The text with U+FFFD for a surrogate that stands alone, which UTF-8 has no bytes for."""
    try:
        text.encode()
        return text
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


@functools.cache  # of successes; hiding warnings is not for many threads, so `make` comes here first
def library(name: str):
    """Imports ftfy, sentencepiece or tokenizers on first use. UsageError if it is not installed."""
    # Texts are encoded from many threads already; a pool inside each would only warn of forks.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of SWIG, which made sentencepiece's module
            return importlib.import_module(name)
    except ImportError as e:
        raise UsageError(f"text needs the library {name}, which cannot be imported ({e}); pip install {name}") from None


def read(path: str, what: str) -> bytes:
    """The bytes of a file, local or remote. UsageError if there are none to be had; `what` says what was wanted."""
    try:
        return epath.Path(path).expanduser().read_bytes()
    except Exception as e:  # remote file systems raise what they like
        reason = getattr(e, "strerror", None) or str(e) or type(e).__name__
        raise UsageError(f"{path} cannot be read ({line(reason)}); give the path of {what}") from None


def from_json(data: bytes, path: str):
    """The `tokenizers.Tokenizer` of a tokenizer.json. UsageError if it is none."""
    library("tokenizers")
    from tokenizers import Tokenizer as Rust
    try:
        return Rust.from_str(data.decode())
    except Exception as e:  # the library raises bare Exceptions
        raise UsageError(f"{path} is not a tokenizer.json ({line(e)}); it may be cut short or of a newer version of "
                         "the library: restore it, or pip install -U tokenizers") from None


def rust_ids(tokenizer, texts: Sequence[str], *, special: bool = False) -> list[list[int]]:
    """The ids of each text; special: with the tokens that the tokenizer's own post-processor adds."""
    return [e.ids for e in tokenizer.encode_batch_fast(texts, add_special_tokens=special)]


def check_length(name: str, length: int) -> None:
    """Refuses a length that has no room for a start, a token and an end."""
    if length < 3:
        raise UsageError(f"{name}: length={length} given; wanted at least 3: a start, one token and an end")


def digest(*parts) -> int:
    """crc32 of bytes and of the repr of anything else."""
    value = 0
    for part in parts:
        value = zlib.crc32(part if isinstance(part, bytes) else repr(part).encode(errors="replace"), value)
    return value


def line(reason) -> str:
    """The reason of an error on one line, not too long."""
    return " ".join(str(reason).split())[:200]
