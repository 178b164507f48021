"""A byte-level BPE of lower-cased text, trained on the captions at hand: no download, no file to look for.

Sennrich et al. (2016); over bytes, with words that keep the space before them, as in GPT-2 (Radford et al. 2019).
"""
import itertools
import json

from etils import epath

from simclr_jax.data.tokenizer import (Tokenizer, check_length, cleaner, digest, from_json, library, line, pack, read,
                                       rust_ids)
from simclr_jax.errors import UsageError

PAD, END, START = 0, 1, 2  # an end token of 2 would mean another thing to transformers' CLIP
SPECIAL = ("<pad>", "<end_of_text>", "<start_of_text>")
SMALLEST = len(SPECIAL) + 256  # special tokens and bytes, no merges
CAPTIONS = 1_000_000  # are read for training at most


def make(*, size: int = 4096, length: int = 32, captions=None, file: str = "") -> Tokenizer:
    """A BPE trained on captions, to be kept in a file so that a resumed run has the same one.

    The text is cleaned as for CLIP (mended, white space made single spaces, lower case). Training is deterministic: the
    same captions in the same order give the same file. `vocab` is `size` whatever the captions, so that the config
    alone tells the shape of the net: captions too few for as many tokens leave ids at the end, named <unused0> and so
    on, that no text has. The file is a tokenizer.json that transformers reads, and gives the same ids there for text
    that is clean.

    Args:
      size: ids in the vocabulary, with 3 special tokens and 256 bytes.
      length: tokens a row, with start and end.
      captions: () -> iterable of str, from the caller; the first million are read. Needed if there is no file yet.
      file: path of the tokenizer.json, from the caller: read if it exists. If not, `keep` of the result is what to write.

    Returns:
      A tokenizer with pad 0, end 1 and start 2. A text never gets those by spelling them out.

    Raises:
      UsageError: size < 259, length < 3; no captions; a file that is damaged, or of another size; tokenizers or ftfy is
        not installed.
    """
    check_length("bpe", length)
    if size < SMALLEST:
        raise UsageError(f"bpe: size={size} given; wanted at least {SMALLEST}: 256 bytes and {len(SPECIAL)} special "
                         "tokens")
    clean = cleaner(mend=True, lower=True)
    library("tokenizers")
    if file and epath.Path(file).exists():
        data = read(file, "the tokenizer.json of this run")
    else:
        if captions is None:
            raise UsageError(f"bpe: there is no {file or 'file'} and there are no captions to train on; give a source "
                             "that has captions, or the tokenizer.json of an earlier run")
        data = _trained(map(clean, itertools.islice(captions(), CAPTIONS)), size)
    tokenizer = from_json(data, file)
    found = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1
    if found != size or [tokenizer.token_to_id(t) for t in SPECIAL] != [PAD, END, START]:
        raise UsageError(f"bpe: {file} has {found} tokens, or not {', '.join(SPECIAL)} as the first; wanted "
                         f"size={size}; set size to that of the file, or remove the file to train again")
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.encode_special_tokens = True  # a caption that spells <end_of_text> out is text
    try:
        rust_ids(tokenizer, ["\x00"])
    except Exception as e:
        raise UsageError(f"bpe: {file} cannot encode every text ({line(e)}); remove it to train again") from None

    def encode(texts):
        return pack(rust_ids(tokenizer, [clean(t) for t in texts]), length, pad=PAD, start=START, end=END)

    return Tokenizer(encode, size, length, END, PAD, f"BPE of {size} tokens trained on captions, length {length}",
                     digest(data), data)


def _trained(texts, size: int) -> bytes:
    """The tokenizer.json of a BPE with exactly `size` tokens."""
    from tokenizers import Tokenizer as Rust
    from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers
    first = next(texts, None)
    if first is None:
        raise UsageError("bpe: there are no captions to train on; give a source that has some")
    tokenizer = Rust(models.BPE())
    tokenizer.normalizer = normalizers.Lowercase()  # for others who read the file: our texts are in lower case already
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{SPECIAL[START]} $A {SPECIAL[END]}", special_tokens=[(SPECIAL[i], i) for i in (START, END)])
    trainer = trainers.BpeTrainer(vocab_size=size, min_frequency=2, special_tokens=list(SPECIAL), show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(itertools.chain([first], texts), trainer)
    content = json.loads(tokenizer.to_str())
    vocab = content["model"]["vocab"]
    vocab.update({f"<unused{i}>": at for i, at in enumerate(range(len(vocab), size))})
    return json.dumps(content, ensure_ascii=False, indent=1).encode()
