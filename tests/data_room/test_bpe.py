"""The BPE that is trained on captions: its own file, the same from the same captions, of the size asked for."""
import itertools

import numpy as np
import pytest

from simclr_jax.data import tokenizer as shared
from simclr_jax.data.tokenizers import bpe, hf
from simclr_jax.errors import UsageError
from texts import NASTY, SENTENCES, around, wordpiece


def test_bpe_round_trip_and_special_tokens():
    t = bpe.make(size=500, length=64, captions=lambda: SENTENCES)
    rust = shared.from_json(bpe._trained(iter([s.lower() for s in SENTENCES]), 500), "")
    texts = [*SENTENCES, "unseen words: \u00e9t\u00e9 \u732b \U0001f600!", "a <end_of_text> b<pad>"]
    for text, row in zip(texts, t.encode(texts)):
        end = row.tolist().index(1)
        assert row[0] == 2 and (row[end + 1:] == 0).all() and not (row[1:end] <= 2).any()
        assert rust.decode(row[1:end].tolist()) == " " + text.lower()
    assert (t.vocab, t.eot, t.pad) == (500, 1, 0)
    assert len(set(bpe.make(size=300, captions=lambda: ["dog dog"]).encode(["dog"])[0]) - {0, 1, 2}) == 1
    merged = t.encode(SENTENCES)
    assert (merged >= bpe.SMALLEST).any() and (merged > 2).sum() < 0.5 * sum(map(len, SENTENCES))


def test_bpe_file_works_elsewhere(tmp_path):
    """The kept file has its own lower case and start and end: another library's reader gets our ids of clean text."""
    file = tmp_path / "t.json"
    t = bpe.make(size=400, length=40, captions=lambda: SENTENCES, file=str(file))
    file.write_bytes(t.keep)
    ids = t.encode(SENTENCES[:1])[0]
    assert shared.from_json(file.read_bytes(), "").encode(SENTENCES[0]).ids == ids[ids != 0].tolist()
    other = hf.make(path=str(file), length=40)
    assert np.array_equal(other.encode(SENTENCES), t.encode(SENTENCES))
    assert (other.eot, other.pad, other.vocab) == (t.eot, t.pad, t.vocab)


def test_bpe_is_deterministic_and_its_file_is_kept(tmp_path):
    made = [bpe.make(size=400, captions=lambda: iter(SENTENCES)) for _ in range(2)]
    assert made[0].keep == made[1].keep
    file = tmp_path / "a.json"
    file.write_bytes(made[0].keep)

    def never():
        raise AssertionError("the file is there")
    again = bpe.make(size=400, captions=never, file=str(file))
    assert again.digest == made[0].digest == made[1].digest
    assert np.array_equal(again.encode(NASTY + SENTENCES), made[1].encode(NASTY + SENTENCES))
    assert np.array_equal(bpe.make(size=400, file=str(file)).encode(NASTY), made[0].encode(NASTY))
    other = bpe.make(size=400, captions=lambda: SENTENCES[:5])
    assert other.digest != again.digest
    with pytest.raises(UsageError, match="400 tokens.* size=500"):
        bpe.make(size=500, file=str(file))


@pytest.mark.parametrize("captions", [["one"], [""], ["\x00\ud800", "a" * 50_000], SENTENCES])
def test_bpe_vocabulary_is_of_the_size_asked_for(captions):
    for size in (259, 5000):
        t = bpe.make(size=size, captions=lambda: captions)
        assert t.vocab == size and t.encode(NASTY).max() < size
        rust = shared.from_json(t.keep, "")
        assert rust.get_vocab_size() == size


def test_bpe_reads_no_more_captions_than_its_limit(monkeypatch):
    monkeypatch.setattr(bpe, "CAPTIONS", 4)
    endless = bpe.make(size=300, captions=lambda: itertools.cycle(SENTENCES))
    assert endless.digest == bpe.make(size=300, captions=lambda: SENTENCES[:4]).digest


def test_bpe_refusals(tmp_path):
    file = tmp_path / "t.json"
    for size, captions, says in [(258, lambda: SENTENCES, "size=258 given; wanted at least 259"),
                                 (300, None, "no captions to train on"), (300, lambda: [], "no captions to train on")]:
        with pytest.raises(UsageError, match=says):
            bpe.make(size=size, captions=captions, file=str(file))
    assert not file.exists()
    whole = bpe.make(size=300, captions=lambda: SENTENCES).keep
    for bad in (whole[:999], b"", whole.replace(b"<pad>", b"<bad>"), around(wordpiece()).to_str().encode()):
        file.write_bytes(bad)
        with pytest.raises(UsageError, match=r"t\.json") as e:
            bpe.make(size=300, captions=lambda: SENTENCES, file=str(file))
        assert "\n" not in str(e.value) and file.read_bytes() == bad
