"""Tokenizers: CLIP's ids exactly, an end token in every row, and the same ids from any thread, run or file."""
import functools
import gzip
import io
import itertools
import json
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import oracle
import pytest

from simclr_jax import names
from simclr_jax.data import tokenizer as shared
from simclr_jax.data.tokenizers import bpe, clip, hf, sentencepiece
from simclr_jax.errors import UsageError
from texts import NASTY, SENTENCES, around, wordpiece


@functools.cache
def vectors():
    """texts, i32[n,77] and {rank: merge} of open_clip; see tests/data/README.md."""
    z = np.load(oracle.DATA / "clip_bpe_tokens.npz")
    return json.loads(str(z["texts"])), z["ids"], dict(zip(z["ranks"].tolist(), z["merges"].tolist()))


def merges_file(merges):
    """A file with these merges at their ranks; at all others merges of bytes that UTF-8 does not have."""
    never = [chr(b) for b in (0xC0, 0xC1, *range(0xF5, 0x100))]
    words = ("".join(w) for n in range(2, 9) for w in itertools.product(never, repeat=n))
    lines = [merges.get(rank) or "{0} {1}".format((w := next(words))[:-1], w[-1]) for rank in range(clip.MERGES)]
    return "\n".join(["#version", *lines, "not a merge of CLIP"])


def sentencepiece_model(**options):
    writer = io.BytesIO()
    shared.library("sentencepiece").SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 4), model_writer=writer, vocab_size=80, hard_vocab_limit=False,
        minloglevel=2, **{**dict(pad_id=0, eos_id=1, unk_id=2, bos_id=-1), **options})
    return writer.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizers")
    (path / "merges.txt.gz").write_bytes(gzip.compress(merges_file(vectors()[2]).encode(), 1))
    (path / "sp.model").write_bytes(sentencepiece_model())
    (path / "bert.json").write_text(around(wordpiece()).to_str())
    return path


@pytest.fixture(scope="module")
def each(folder):
    """name -> a tokenizer of eight tokens."""
    return {"clip": clip.make(path=str(folder / "merges.txt.gz"), length=8),
            "sentencepiece": sentencepiece.make(path=str(folder / "sp.model"), length=8),
            "hf": hf.make(path=str(folder / "bert.json"), length=8),
            "bpe": bpe.make(size=400, length=8, captions=lambda: SENTENCES)}


ALL = pytest.mark.parametrize("name", ["clip", "sentencepiece", "hf", "bpe"])


def test_clip_equals_open_clip(folder):
    texts, ids, merges = vectors()
    made = clip.make(path=str(folder / "merges.txt.gz"))
    assert (made.vocab, made.length, made.eot, made.pad) == (49408, 77, 49407, 0)
    got = made.encode(texts)
    wrong = [t for t, a, b in zip(texts, got, ids) if not np.array_equal(a, b)]
    assert not wrong and got.shape == ids.shape
    first, second, *others = (rank for rank in merges if (ids == 512 + rank).any())  # of whole words, not parts
    assert len(others) > 150
    (folder / "swapped.txt").write_text(merges_file({**merges, first: merges[second], second: merges[first]}))
    other = clip.make(path=str(folder / "swapped.txt"))
    assert not np.array_equal(other.encode(texts), ids) and other.digest != made.digest


def test_clip_vocabulary_is_named_or_found(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(UsageError, match=r"give path=.*bpe_simple_vocab_16e6\.txt\.gz"):
        clip.make()
    merges = (folder / "merges.txt.gz").read_bytes()
    cached = tmp_path / "hub/models--openai--clip-vit-base-patch32/snapshots/abc/merges.txt"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(gzip.decompress(merges))
    assert str(cached) in clip.make().describe
    package = tmp_path / "open_clip"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit('imported')")
    (package / clip.FILE).write_bytes(merges)
    made = clip.make()
    assert str(package) in made.describe
    assert made.digest == clip.make(path=str(cached)).digest != clip.make(path=str(cached), length=76).digest


@pytest.mark.parametrize("damage, says", [
    (lambda b: b[:5000], "damaged"), (lambda b: gzip.compress(gzip.decompress(b)[:9000]), "merges, wanted 48894"),
    (lambda b: gzip.compress(gzip.decompress(b).replace("À À\n".encode(), b"in visible\n")), "unknown parts"),
    (lambda b: b"\xff\xfe", "damaged")])
def test_a_damaged_clip_vocabulary_is_one_line(folder, tmp_path, damage, says):
    path = tmp_path / "v.gz"
    path.write_bytes(damage((folder / "merges.txt.gz").read_bytes()))
    with pytest.raises(UsageError, match=says) as e:
        clip.make(path=str(path))
    assert str(path) in str(e.value) and "\n" not in str(e.value)


def test_the_fast_way_past_ftfy_changes_nothing():
    """mended() does not call ftfy for printable ASCII without "&"."""
    import html

    import ftfy
    rng = np.random.default_rng(0)
    for _ in range(2000):
        text = "".join(map(chr, rng.integers(32, 127, 30))).replace("&", "<")
        assert shared.mended(text) == " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split())
    assert shared.mended("l\u00c3\u00a9gende &amp;amp; it\u2019s\n\x00 <b>") == "l\u00e9gende & it's <b>"
    assert shared.mended("caf&eacute;\t <b> &amp;lt;") == "caf\u00e9 <b> <"
    assert shared.line("a\n  b" * 99).startswith("a ba b") and len(shared.line("a\n  b" * 99)) == 200


@ALL
def test_any_text_gives_a_row_that_ends(each, name):
    t = each[name]
    rows = t.encode(NASTY)
    assert rows.dtype == np.int32 and rows.shape == (len(NASTY), 8) and rows.min() >= 0 and rows.max() < t.vocab
    for text, row in zip(NASTY, rows):
        end = np.flatnonzero(row == t.eot)[-1:]  # the last, as a text may spell it out too
        assert len(end) and set(row[end[0] + 1:]) <= {t.pad} != {t.eot}, text
    assert t.encode([]).shape == (0, 8)
    alone = np.concatenate([t.encode([text]) for text in NASTY])
    assert np.array_equal(alone, rows)


@ALL
def test_cutting_keeps_the_end_and_the_beginning(each, folder, name):
    make = {"clip": lambda n: clip.make(path=str(folder / "merges.txt.gz"), length=n),
            "sentencepiece": lambda n: sentencepiece.make(path=str(folder / "sp.model"), length=n),
            "hf": lambda n: hf.make(path=str(folder / "bert.json"), length=n),
            "bpe": lambda n: bpe.make(size=400, length=n, captions=lambda: SENTENCES)}[name]
    text = "a dog on the grass and two cats in the rain"
    whole = make(100).encode([text])[0]
    size = int(np.flatnonzero(whole == make(100).eot)[0]) + 1  # with its end
    assert size > 12
    for length in (3, size - 1, size, size + 1):
        t = make(length)
        row = t.encode([text])[0]
        want = np.concatenate([whole[:length - 1], [t.eot]]) if length < size else whole[:length]
        assert np.array_equal(row, want), length
    with pytest.raises(UsageError, match="length=2"):
        make(2)


@ALL
def test_eight_threads_see_what_one_sees(each, name):
    t, texts = each[name], NASTY[:20] + SENTENCES
    want = t.encode(texts)
    with ThreadPoolExecutor(8) as pool:
        assert all(np.array_equal(rows, want) for rows in pool.map(lambda _: t.encode(texts), range(40)))


@pytest.mark.parametrize("name", ["clip", "bpe"])
def test_clip_and_bpe_clean_text(each, name):
    same = ["\u00c9 RED Bike's", "\u00e9  red\tbike\u2019s ", "&eacute; red bike&#39;s", "\u00c3\u00a9 red bike's"]
    assert len(np.unique(each[name].encode(same), axis=0)) == 1


def test_cleaning_options():
    clean = shared.cleaner
    assert clean()(" A_b  C! ") == " A_b  C! "
    assert clean(lower=True)("\u00c9T\u00c9 A") == "\u00e9t\u00e9 a"
    assert clean(canonical=True)(" A_Photo of, a (Dog)!  it\u2019s ") == "a photo of a dog it\u2019s"
    assert clean(mend=True)(" A &lt;  B it\u2019s") == "A < B it's"
    assert clean(mend=True, canonical=True)("A &lt;  B it\u2019s") == "a b its"
    assert clean()("\ud83d\ude00\ud800") == "\U0001f600\ufffd"


def test_pack():
    rows = [[], [5], [5, 6], [5, 6, 7], [5, 6, 7, 8]]
    assert shared.pack(rows, 4, pad=9).tolist() == [[9] * 4, [5, 9, 9, 9], [5, 6, 9, 9], [5, 6, 7, 9], [5, 6, 7, 8]]
    assert shared.pack(rows, 4, pad=0, end=1).tolist() == [
        [1, 0, 0, 0], [5, 1, 0, 0], [5, 6, 1, 0], [5, 6, 7, 1], [5, 6, 7, 1]]
    assert shared.pack(rows, 4, pad=1, end=1, start=2).tolist() == [
        [2, 1, 1, 1], [2, 5, 1, 1], [2, 5, 6, 1], [2, 5, 6, 1], [2, 5, 6, 1]]


def test_sentencepiece_is_sticky_and_pads_as_asked(folder):
    path = str(folder / "sp.model")
    own = shared.library("sentencepiece").SentencePieceProcessor(model_file=path)
    ids = own.encode("a photo")
    t = sentencepiece.make(path=path, length=64)
    assert (t.eot, t.pad, t.vocab) == (1, 0, own.get_piece_size())
    assert t.encode(["a photo"])[0].tolist() == ids + [1] + [0] * (63 - len(ids))
    siglip = sentencepiece.make(path=path, length=64, pad=1, canonical=True)  # big_vision: eos="sticky", pad_value=1
    assert siglip.encode(["A_photo!"])[0].tolist() == ids + [1] * (64 - len(ids))
    assert siglip.digest != t.digest == sentencepiece.make(path=path, length=64).digest
    low = sentencepiece.make(path=path, lower=True)
    assert np.array_equal(low.encode(["A PHOTO"]), t.encode(["a photo"]))
    assert not np.array_equal(t.encode(["A PHOTO"]), t.encode(["a photo"]))
    with pytest.raises(UsageError, match="pad=999"):
        sentencepiece.make(path=path, pad=999)


@pytest.mark.parametrize("options, eot, pad", [
    (dict(eos_id=1, pad_id=-1, unk_id=0), 1, 1), (dict(eos_id=1, pad_id=2, unk_id=0), 1, 2),
    (dict(eos_id=-1, pad_id=1, unk_id=0), -1, 1), (dict(eos_id=-1, pad_id=-1, unk_id=0), -1, 0)])
def test_sentencepiece_models_differ_in_pad_and_end(tmp_path, options, eot, pad):
    (tmp_path / "m").write_bytes(sentencepiece_model(**options))
    t = sentencepiece.make(path=str(tmp_path / "m"), length=60)
    assert (t.eot, t.pad) == (eot, pad)
    ids = [i for i in t.encode(["a dog"])[0].tolist() if i not in (eot, pad)]
    assert t.encode(["a dog"])[0].tolist() == ids + [eot] * (eot >= 0) + [pad] * (60 - len(ids) - (eot >= 0))


def test_hf_keeps_the_post_processor_of_the_file(folder):
    rust = shared.from_json((folder / "bert.json").read_bytes(), "")
    t = hf.make(path=str(folder / "bert.json"), length=32)
    want = rust.encode(SENTENCES[0]).ids
    assert t.encode(SENTENCES[:1])[0].tolist() == want + [t.pad] * (32 - len(want))
    assert (t.eot, t.pad, t.vocab) == (want[-1], 2, rust.get_vocab_size()) and want[-1] == rust.token_to_id("[SEP]")
    assert rust.decode(t.encode(["A red BIKE"])[0]) == "a red bike"
    assert hf.make(path=str(folder / "bert.json"), length=32, lower=True).digest != t.digest
    assert hf.make(path=str(folder / "bert.json"), length=32, pad="[UNK]").pad == 0
    other = hf.make(path=str(folder / "bert.json"), length=8, end="[UNK]")  # after the [SEP] of the file
    assert other.eot == 0 and other.encode([SENTENCES[0], ""])[:, -2:].tolist() == [[3, 0], [2, 2]]
    assert other.encode([""])[0].tolist() == [1, 3, 0, 2, 2, 2, 2, 2]
    with pytest.raises(UsageError, match="end='<x>' is not in the vocabulary"):
        hf.make(path=str(folder / "bert.json"), end="<x>")


def test_hf_puts_an_end_where_the_file_has_none(tmp_path):
    """GPT-2 and Llama: nothing or a start only; also the file's own padding and cutting do not count."""
    t = wordpiece()
    bare, started = tmp_path / "bare.json", tmp_path / "model" / "tokenizer.json"
    t.enable_padding(length=50, pad_id=1, pad_token="[CLS]", direction="left")
    t.enable_truncation(2)
    bare.write_text(t.to_str())
    started.parent.mkdir()
    started.write_text(around(t).to_str())
    assert hf.make(path=str(started), length=8).encode(["a dog " * 9])[0].tolist()[-2:] != [3, 3]
    t.post_processor = None
    made = hf.make(path=str(bare), length=8)
    assert (made.eot, made.pad) == (3, 1)
    assert made.encode(["a dog"])[0].tolist() == made.encode(["a dog"])[0].tolist()[:2] + [3] + [1] * 5
    long = made.encode(["a dog " * 9])[0].tolist()
    assert long[-1] == 3 and 3 not in long[:7]
    t.no_padding()
    started.write_text(around(t, "[CLS] $A").to_str())
    made = hf.make(path=str(started.parent), length=8)
    assert (made.eot, made.pad) == (3, 2)
    assert made.encode(["a dog " * 9])[0].tolist() == [1, *long[:6], 3]
    config = started.parent / "tokenizer_config.json"
    config.write_text(json.dumps({"eos_token": {"content": "[UNK]"}, "pad_token": "[UNK]", "x": None}))
    made = hf.make(path=str(started.parent), length=8)
    assert (made.eot, made.pad) == (0, 0) and made.encode(["a"])[0].tolist() == [1, long[0], *[0] * 6]
    config.write_text("[1]")
    with pytest.raises(UsageError, match="tokenizer_config.json is no JSON object"):
        hf.make(path=str(started.parent))


def test_hf_without_special_tokens(tmp_path):
    content = json.loads(wordpiece().to_str())
    content["model"] = {"type": "WordLevel", "vocab": {"pad me": 0, "?": 1, "dog": 5}, "unk_token": "?"}
    content |= {"added_tokens": [], "normalizer": None}
    (tmp_path / "level.json").write_text(json.dumps(content))
    t = hf.make(path=str(tmp_path / "level.json"), length=4)
    assert (t.eot, t.pad, t.vocab) == (-1, 0, 6)
    assert t.encode(["dog DOG", "dog " * 9]).tolist() == [[5, 1, 0, 0], [5] * 4]
    t = hf.make(path=str(tmp_path / "level.json"), length=4, lower=True, end="?")
    assert t.encode(["dog DOG", "dog " * 9]).tolist() == [[5, 5, 1, 0], [5, 5, 5, 1]]


def test_hf_refusals(tmp_path):
    t = wordpiece()
    (tmp_path / "many.json").write_text(around(t, "[CLS] [CLS] [CLS] $A [SEP] [SEP]").to_str())
    with pytest.raises(UsageError, match="length=5 has no room"):
        hf.make(path=str(tmp_path / "many.json"), length=5)
    content = json.loads(t.to_str())
    content["model"] = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "[UNK]"}
    content["added_tokens"] = []
    content["post_processor"] = None
    (tmp_path / "level.json").write_text(json.dumps(content))
    with pytest.raises(UsageError, match="cannot encode every text"):
        hf.make(path=str(tmp_path / "level.json"))


@pytest.mark.parametrize("make, good", [(hf.make, "bert.json"), (sentencepiece.make, "sp.model")])
def test_files_that_are_none_are_one_line(folder, tmp_path, make, good):
    data = (folder / good).read_bytes()
    for bad in (b"", b"{}", data[:len(data) // 2], b"\x00\xff" * 99, b"[]"):
        (tmp_path / "bad").write_bytes(bad)
        with pytest.raises(UsageError, match="bad is not a") as e:
            make(path=str(tmp_path / "bad"))
        assert "\n" not in str(e.value)
    with pytest.raises(UsageError, match="none cannot be read .*give the path of a"):
        make(path=str(tmp_path / "none"))
    with pytest.raises(UsageError, match="no path given"):
        make(path="")


@pytest.mark.parametrize("library", ["tokenizers", "ftfy", "sentencepiece"])
def test_a_missing_library_is_one_line(folder, monkeypatch, library):
    shared.library.cache_clear()
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(UsageError, match=f"pip install {library}"):
        if library == "sentencepiece":
            sentencepiece.make(path=str(folder / "sp.model"))
        else:
            bpe.make(captions=lambda: SENTENCES)
    shared.library.cache_clear()


def test_names_of_the_room(folder):
    assert names.available("data.tokenizers") == ["bpe", "clip", "hf", "sentencepiece"]
    t = names.make("data.tokenizers", {"name": "bpe", "size": 300}, captions=lambda: SENTENCES, file="")
    assert isinstance(t, shared.Tokenizer) and t.length == 32 and t.vocab == 300
    with pytest.raises(UsageError, match="did you mean 'size'"):
        names.make("data.tokenizers", {"name": "bpe", "sise": 300})
