"""Any tokenizer of the transformers library, from its tokenizer.json."""
import json
import os

from etils import epath

from simclr_jax.data.tokenizer import (Tokenizer, check_length, cleaner, digest, from_json, line, pack, read, rust_ids,
                                       valid)
from simclr_jax.errors import UsageError

ENDS = ("</s>", "<eos>", "[SEP]", "<|endoftext|>", "<|im_end|>", "<|end_of_text|>", "<end_of_text>")
PADS = ("[PAD]", "<pad>", "<|pad|>")
PROBES = ("a", "", "\u4e2d\U0001f600\U0010ffff\x00", "A photo of THE 1st dog!?")


def make(*, path: str, length: int = 64, lower: bool = False, mend: bool = False, canonical: bool = False,
         end: str = "", pad: str = "") -> Tokenizer:
    """The tokenizer of a tokenizer.json, with its own normalizer, special tokens and post-processor.

    The end token is the last one that the post-processor puts after a text. Where it puts none (GPT-2, Llama), the end
    token is `eos_token` of the tokenizer_config.json beside the file, or the first of `ENDS` in the vocabulary, and is
    put there by us, since text towers read it. The pad token is `pad_token` of that tokenizer_config.json, or that of
    the file's own padding, or the first of `PADS` in the vocabulary, or id 0.

    Args:
      path: the file, or the folder that it is in.
      length: tokens a row, with the special ones. Padding and cutting are on the right, whatever the file says.
      lower, mend, canonical: what to do to a text first; see `tokenizer.cleaner`. None by default, as in transformers.
        open_clip has mend for such tokenizers, mend and canonical for SigLIP's; transformers lower and canonical.
      end, pad: names of other tokens to use for them, such as "[SEP]". Another end comes after what the file puts last.

    Raises:
      UsageError: no such file, or no such token in it; a tokenizer that cannot encode every text; length < 3 or too
        small for the special tokens; tokenizers is not installed.
    """
    check_length("hf", length)
    if not path:
        raise UsageError("hf: no path given; name a tokenizer.json, or the folder of a model that has one")
    path = os.fspath(epath.Path(path).expanduser())
    path = os.path.join(path, "tokenizer.json") if epath.Path(path).is_dir() else path
    data = read(path, "a tokenizer.json")
    tokenizer = from_json(data, path)
    padding, ids = tokenizer.padding, tokenizer.get_vocab(with_added_tokens=True)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    _probe(tokenizer, path)

    def named(name, key):
        if name not in ids:
            raise UsageError(f"hf: {key}={name!r} is not in the vocabulary of {path}; give a token that is")
        return ids[name]

    names = _names(path)
    own = _last(tokenizer)
    if end or own < 0:
        eot = named(end, "end") if end else _first(ids, names.get("eos_token"), *ENDS)
    else:
        eot = own
    if pad:
        pad_id = named(pad, "pad")
    else:
        pad_id = _first(ids, names.get("pad_token"), (padding or {}).get("pad_token"), *PADS)
    pad_id = max(pad_id, 0)
    append = eot if eot != own else -1
    room = length - (append >= 0)
    if tokenizer.num_special_tokens_to_add(False) >= room:
        raise UsageError(f"hf: length={length} has no room beside the special tokens of {path}; give a larger one")
    tokenizer.enable_truncation(room)
    clean = cleaner(mend=mend, canonical=canonical, lower=lower)
    vocab = max(tokenizer.get_vocab_size(with_added_tokens=True), max(ids.values()) + 1)

    def encode(texts):
        return pack(rust_ids(tokenizer, [clean(t) for t in texts], special=True), length, pad=pad_id, end=append)

    return Tokenizer(encode, vocab, length, eot, pad_id, f"{path}: {vocab} tokens, length {length}",
                     digest("hf", data, length, lower, mend, canonical, eot, pad_id))


def _probe(tokenizer, path):
    """Refuses a tokenizer that raises on what it does not know: a reader thread would meet that hours later."""
    try:
        rust_ids(tokenizer, [valid(t) for t in PROBES], special=True)
    except Exception as e:  # the library raises bare Exceptions
        raise UsageError(f"hf: {path} cannot encode every text ({line(e)}); give it a token for the unknown") from None


def _last(tokenizer) -> int:
    """The id of the token that the post-processor puts last, or -1."""
    encoding = next((e for e in map(tokenizer.encode, PROBES) if 0 in e.special_tokens_mask), None)
    return encoding.ids[-1] if encoding and encoding.special_tokens_mask[-1] else -1


def _first(ids, *names) -> int:
    return next((ids[name] for name in names if name in ids), -1)


def _names(path) -> dict[str, str]:
    """The special tokens that transformers notes beside the file, if it does."""
    file = epath.Path(path).parent / "tokenizer_config.json"
    try:
        found = dict(json.loads(file.read_text())) if file.exists() else {}
    except (OSError, TypeError, ValueError) as e:
        raise UsageError(f"hf: {file} is no JSON object ({line(e)}); restore or remove it") from None
    named = {k: found[k] for k in ("eos_token", "pad_token") if k in found}
    named = {k: v.get("content") if isinstance(v, dict) else v for k, v in named.items()}
    return {k: v for k, v in named.items() if isinstance(v, str)}
