"""Any SentencePiece model, with the end token kept: the text of SigLIP, T5 and Gemma.

Kudo and Richardson (2018). The convention is `tokenize(eos="sticky")` of big_vision's pp/ops_text.py: the end token is
put after every text, and a text too long is cut before it.
"""
from simclr_jax.data.tokenizer import Tokenizer, check_length, cleaner, digest, library, line, pack, read
from simclr_jax.errors import UsageError


def make(*, path: str, length: int = 64, lower: bool = False, mend: bool = False, canonical: bool = False,
         pad: int = -1) -> Tokenizer:
    """The tokenizer of a SentencePiece model file.

    SigLIP has big_vision's c4_en model at length=64 with lower=True and pad=1, which is its end token
    (`tokenize(max_len=64, eos="sticky", pad_value=1)`), and zero-shot prompts with canonical=True. open_clip gives its
    SigLIP models mend=True and canonical=True for every text. SigLIP 2 has Gemma's model and its pad token 0.

    Args:
      path: the model file, such as sentencepiece.model, spiece.model or tokenizer.model.
      length: tokens a row, with the end token.
      lower, mend, canonical: what to do to a text first; see `tokenizer.cleaner`.
      pad: id to pad with. -1: the model's pad token, or its end token if it has none, or else 0.

    Raises:
      UsageError: no such file, or a damaged one; a pad that is no id; length < 3; sentencepiece is not installed.
    """
    check_length("sentencepiece", length)
    if not path:
        raise UsageError("sentencepiece: no path given; name a SentencePiece model file, such as sentencepiece.model")
    data = read(path, "a SentencePiece model")
    processor = library("sentencepiece").SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(data)
        vocab = processor.get_piece_size()
    except Exception as e:
        raise UsageError(f"sentencepiece: {path} is not a SentencePiece model ({line(e)}); restore it, or for a "
                         'tokenizer.json use name="hf"') from None
    eot = processor.eos_id()
    if not -1 <= pad < vocab:
        raise UsageError(f"sentencepiece: pad={pad} given, and {path} has ids 0 to {vocab - 1}; give one, or -1")
    if pad < 0:
        pad = next((i for i in (processor.pad_id(), eot) if i >= 0), 0)
    clean = cleaner(mend=mend, canonical=canonical, lower=lower)

    def encode(texts):
        rows = [processor.encode(clean(t), out_type=int) for t in texts]
        return pack(rows, length, pad=pad, end=eot)

    return Tokenizer(encode, vocab, length, eot, pad, f"SentencePiece {path}: {vocab} tokens, length {length}",
                     digest("sentencepiece", data, length, lower, mend, canonical, pad))
