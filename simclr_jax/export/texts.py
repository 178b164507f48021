"""What transformers is told of texts: ids that begin, end and pad them, and a tokenizer that was trained for a run."""
import json

CLIP = 49408  # tokens of CLIP's own vocabulary, of which the last two begin and end a text
LARGEST = 2  # an end token by which CLIPModel means the largest id of a text
OURS = {"pad": "<pad>", "eos": "<end_of_text>", "bos": "<start_of_text>"}  # of data/tokenizers/bpe.py


def ids(kind: str, net: dict, tokenizer: bytes) -> dict:
    """The fields of a text_config that are about ids.

    Args:
      kind: "clip" or "siglip". net: of nets/text. tokenizer: a tokenizer.json, or b"".
    """
    vocab = net["vocab"]
    if tokenizer:
        found = {token["content"]: token["id"] for token in json.loads(tokenizer)["added_tokens"]}
        special = {f"{name}_token_id": found[token] for name, token in OURS.items()}
    elif kind == "clip":
        # Where the end token is the largest id, the first of it is where "argmax" looks.
        end = net["eot"] if net["pool"] == "eot" or net["eot"] == vocab - 1 else LARGEST
        # CLIPTokenizer pads with the end token; no text looks at what is behind its end.
        special = dict(bos_token_id=max(0, vocab - 2), eos_token_id=end, pad_token_id=end if vocab == CLIP else 0)
    else:
        special = dict(bos_token_id=0, eos_token_id=min(1, vocab - 1), pad_token_id=0)
    return dict(vocab_size=vocab, max_position_embeddings=net["length"], **special)


def files(net: dict, tokenizer: bytes) -> dict[str, str]:
    """{name: text} of what `PreTrainedTokenizerFast.from_pretrained` opens, if there is a tokenizer.json."""
    if not tokenizer:
        return {}
    config = dict(tokenizer_class="PreTrainedTokenizerFast", model_max_length=net["length"],
                  **{f"{name}_token": token for name, token in OURS.items()})
    return {"tokenizer.json": tokenizer.decode(), "tokenizer_config.json": json.dumps(config, indent=2)}


def lines(net: dict, text: dict, tokenizer: bytes, *, transformers: bool) -> list[str]:
    """Markdown: where the ids of texts come from.

    text: the tokenizer, as in config.text, or {}. transformers: whether it is transformers that opens the net.
    """
    how = f"ids below {net['vocab']}, rows of {net['length']}"
    if tokenizer:
        opened = ("`transformers.PreTrainedTokenizerFast.from_pretrained(\"DIR\")`, with `padding=\"max_length\", "
                  "truncation=True`" if transformers else "the library tokenizers, or transformers' "
                  "PreTrainedTokenizerFast,")
        return [f"tokenizer.json ({how}) was trained on the captions of the run; {opened} opens it. Texts were mended "
                "by ftfy, and their white space made single spaces, before."]
    if net["vocab"] == CLIP:
        of = ("`transformers.CLIPTokenizer.from_pretrained(\"openai/clip-vit-base-patch32\")`, with "
              f"`padding=\"max_length\", max_length={net['length']}, truncation=True`" if transformers
              else f"`open_clip.SimpleTokenizer(context_length={net['length']})`")
        return [f"CLIP's own byte-level BPE ({how}): {of}."]
    named = f"{text['name']}, " if text.get("name") else ""
    return [f"The tokenizer is not in this directory ({named}{how}); take the one that the net was trained with."]
