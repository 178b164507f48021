"""Sentences and nasty strings that every tokenizer has to take, and a small tokenizer.json."""
SENTENCES = [
    "A photo of a dog on the grass.", "two dogs run through the snow", "A dog jumps over the fence",
    "the cat sat on a mat", "a red bike leans on the wall", "A woman holds a blue umbrella in the rain",
    "the man rides a red bike in the rain", "a man and a woman sit on the grass", "Children play on the beach",
    "a child and a dog play in the snow"]
NASTY = [
    "", " ", "\n\t", "a", "\x00", "nul \x00 in it", "\x1b[31m\x7f\x85", "\ud800", "x\udfff\ud83d\ude00", "\ufeff\u200b",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467 \u2764\ufe0f", "\u4e00\u53ea\u732b", "\u0645\u0631\u062d\u0628\u0627",
    "\u0130I\u0131\u017f\u1e9e", "\U0010ffff\u0378\ue000", "&amp;amp;&#0;&#xd800;&bogus;", "l\u00c3\u00a9gende",
    "<end_of_text>", "</s><pad>[SEP][PAD]", "<unk>", "!" * 3000, "a" * 100_000, "long words " * 9000, "\u4e2d" * 20_000,
    "'" * 999]


def wordpiece():
    """A tokenizer like BERT's, trained here, not yet with special tokens around a text."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
    t = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    t.normalizer, t.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    t.train_from_iterator(SENTENCES, trainers.WordPieceTrainer(
        vocab_size=200, special_tokens=["[UNK]", "[CLS]", "[PAD]", "[SEP]"], show_progress=False))
    return t


def around(t, template="[CLS] $A [SEP]"):
    from tokenizers import processors
    specials = [(s, t.token_to_id(s)) for s in template.split() if s != "$A"]
    t.post_processor = processors.TemplateProcessing(single=template, special_tokens=specials)
    return t
