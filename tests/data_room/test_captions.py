"""Files of captions, and the folders that have them: which images, which captions, which split; and what is refused."""
import json
import re

import numpy as np
import pytest
from etils import epath
from PIL import Image

from feeding import read
from simclr_jax.data import captions
from simclr_jax.data.source import failed
from simclr_jax.data.sources import digits, folder
from simclr_jax.errors import UsageError


def put(root, paths):
    """Pictures told apart by their shade: the n-th has n."""
    for i, path in enumerate(paths):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((5, 4, 3), i, np.uint8)).save(root / path, "PNG")


def pairs(source):
    """(shade, captions, label) of all examples."""
    return [(int(e.image[0, 0, 0]), source.captions(e.index), e.label) for e in read(source)]


def test_csv_joins_lines_and_columns_of_an_image(tmp_path):
    put(tmp_path, ["a.png", "b.png", "c.png", "not listed.png"])
    (tmp_path / "captions.csv").write_bytes(
        "\ufeffID,FileName,Caption_1,caption_2,title\r\n"
        "7,b.png,\"a cat, asleep\",,\"it said \"\"no\"\"\r\nand slept\"\r\n\r\n"
        "8,./a.png, ein Häuschen ,x,y\r\n9,c.png,z,,\r\n7,b.png,more,,\r\n".encode())
    train, test = (folder.make(root=str(tmp_path), split=s) for s in ("train", "test"))
    assert sorted(pairs(train) + pairs(test)) == [
        (0, ("ein Häuschen", "x", "y"), -1), (1, ("a cat, asleep", 'it said "no"\r\nand slept', "more"), -1),
        (2, ("z",), -1)]
    assert train.size == 2 and "2 images" in train.describe


@pytest.mark.parametrize("name, text", [
    ("captions.jsonl", '{"image": "a.png", "captions": ["one", "two"]}\n\n{"file_name": "b.png", "text": "three"}\n'),
    ("metadata.jsonl", '{"file": "a.png", "text": "one", "title": "two"}\n{"file": "b.png", "text": "three"}'),
    ("metadata.csv", "file_name,text\na.png,one\na.png,two\nb.png,three"),
    ("captions.csv", "filepath\ttitle\na.png\tone\na.png\ttwo\nb.png\tthree\n")])
def test_other_forms(tmp_path, name, text):
    put(tmp_path, ["a.png", "b.png"])
    (tmp_path / name).write_text(text)
    whole = [pairs(folder.make(root=str(tmp_path), split=s)) for s in ("train", "test")]
    assert sorted(whole[0] + whole[1]) == [(0, ("one", "two"), -1), (1, ("three",), -1)]


@pytest.mark.parametrize("name, text", [("metadata.csv", "file_name,label\na.png,cat\n"), ("metadata.csv", ""),
                                        ("metadata.jsonl", '{"version": 3}\n'), ("metadata.jsonl", "[1, 2]"),
                                        ("notes.csv", "file_name,text\na.png,one\n")])
def test_other_files_beside_images_change_nothing(tmp_path, name, text):
    put(tmp_path, ["a.png", "b.png"])
    (tmp_path / name).write_text(text)
    source = folder.make(root=str(tmp_path))
    assert source.captions is None and source.size == 2


def listing(root, paths, **fields):
    (root / "captions.jsonl").write_text("\n".join(
        json.dumps({"image": p, "caption": p, **{k: v[i] for k, v in fields.items()}}) for i, p in enumerate(paths)))


def names(source):
    return [texts[0] for _, texts, _ in pairs(source)]


def test_a_tenth_is_held_out_by_the_hash_of_its_path(tmp_path):
    paths = [f"{i:02}.png" for i in range(40)]
    put(tmp_path, paths)
    listing(tmp_path, paths)
    train, test = (folder.make(root=str(tmp_path), split=s) for s in ("train", "test"))
    assert [train.size, test.size] == [36, 4] and sorted(names(train) + names(test)) == paths
    assert names(train) == sorted(names(train)) and names(test) != paths[:4]
    listing(tmp_path, paths[::-1])
    assert names(folder.make(root=str(tmp_path), split="test")) == names(test)
    with pytest.raises(UsageError, match="no val split; there are 'train' and 'test', a tenth held out"):
        folder.make(root=str(tmp_path), split="val")


def test_a_field_split_decides(tmp_path):
    put(tmp_path, ["a.png", "b.png", "c.png"])
    listing(tmp_path, ["a.png", "b.png", "c.png"], split=["Test", "val", "train"])
    assert [names(folder.make(root=str(tmp_path), split=s)) for s in ("train", "test", "val")] == [
        ["c.png"], ["a.png"], ["b.png"]]
    listing(tmp_path, ["a.png", "b.png", "c.png"], split=["validation", "train", "train"])
    assert names(folder.make(root=str(tmp_path), split="test")) == ["a.png"]  # as with folders
    listing(tmp_path, ["a.png", "b.png", "c.png"], split=["train", "train", "train"])
    with pytest.raises(UsageError, match="no split 'test'; it has: train"):
        folder.make(root=str(tmp_path), split="test")


def test_split_folders_and_class_folders(tmp_path):
    put(tmp_path, ["train/cat/0.png", "train/dog/1.png", "val/dog/2.png"])
    listing(tmp_path / "train", ["cat/0.png", "dog/1.png"])
    listing(tmp_path / "val", ["dog/2.png"])
    both = {s: folder.make(root=str(tmp_path), split=s) for s in ("train", "test")}
    assert pairs(both["train"]) == [(0, ("cat/0.png",), 0), (1, ("dog/1.png",), 1)]
    assert pairs(both["test"]) == [(2, ("dog/2.png",), 1)] and both["test"].classes == ("cat", "dog")
    for part in ("train", "val"):
        (tmp_path / part / "captions.jsonl").unlink()
    listing(tmp_path, ["train/cat/0.png", "train/dog/1.png", "val/dog/2.png"])  # one file above says the same
    for split, source in both.items():
        again = folder.make(root=str(tmp_path), split=split)
        assert [(v, y) for v, _, y in pairs(again)] == [(v, y) for v, _, y in pairs(source)]


def test_held_out_classes_without_captions(tmp_path):
    """the common case of zero-shot classification: captions to train on, class folders to be tested on."""
    put(tmp_path, ["train/images/0.png", "train/images/1.png", "val/cat/2.png", "val/dog/3.png"])
    listing(tmp_path / "train", ["images/0.png", "images/1.png"])
    train, test = (folder.make(root=str(tmp_path), split=s) for s in ("train", "test"))
    assert train.captions(0) == ("images/0.png",) and train.classes == ()
    assert test.captions is None and test.classes == ("cat", "dog")


def test_the_sub_folder_of_an_image_need_not_be_named(tmp_path):
    put(tmp_path, ["images/a.png", "x/b.png", "y/b.png"])
    listing(tmp_path, ["a.png", str(tmp_path / "x" / "b.png")], split=["train"] * 2)
    assert sorted(v for v, _, _ in pairs(folder.make(root=str(tmp_path)))) == [0, 1]
    listing(tmp_path, ["a.png", "b.png"], split=["train"] * 2)  # of two, neither
    with pytest.raises(UsageError, match=r"b.png: not there \(.*captions.jsonl, line 2\)"):
        folder.make(root=str(tmp_path), max_bad=0.0)


def test_missing_images_count_as_unreadable(tmp_path):
    paths = [f"{i}.png" for i in range(10)]
    put(tmp_path, paths)
    listing(tmp_path, paths, split=["train"] * 10)
    (tmp_path / "3.png").unlink()
    (tmp_path / "5.png").write_bytes(b"no image")
    source = folder.make(root=str(tmp_path), max_bad=0.2, memory=0.0)
    assert source.problems() == [f"{tmp_path}/3.png: not there ({tmp_path}/captions.jsonl, line 4)"]
    found = pairs(source)
    assert [v for v, _, _ in found] == [0, 1, 2, 4, 6, 6, 7, 8, 9]  # 5 is unreadable, and 6 stands in
    assert all(texts == (f"{v}.png",) for v, texts, _ in found)
    assert len(source.problems()) == 2 and "5.png" in source.problems()[1]
    with pytest.raises(UsageError, match="1 images cannot be read, and max_bad=0.0 allows 0 of 10: .*3.png: not"):
        folder.make(root=str(tmp_path), max_bad=0.0)
    both = folder.make(root=str(tmp_path), max_bad=0.1, memory=0.0)
    pairs(both)
    assert "2 images cannot be read, and max_bad=0.1 allows 1 of 10" in str(failed(both))


def test_captions_are_part_of_what_a_source_holds(tmp_path):
    put(tmp_path, ["a.png", "b.png"])
    digests = set()
    for text in ("one", "two"):
        listing(tmp_path, ["a.png", "b.png"], text=[text] * 2, split=["train"] * 2)
        digests.add(folder.make(root=str(tmp_path)).digest)
    assert len(digests) == 2


@pytest.mark.parametrize("name, data, said", [
    ("captions.csv", b"image,caption\na.png,one\nb.png,  \n", "line 3: its caption is empty"),
    ("captions.csv", b"image,caption\na.png,\"one\ntwo\"\nb.png,a cat, asleep\n", "line 4: it has 3 fields"),
    ("captions.csv", b"image,caption\na.png\n", "line 2: it has 1 fields"),
    ("captions.csv", b"image,caption\na.png,ok\nb.png,\"open\nc.png,three\n", "line 3: unexpected end"),
    ("captions.csv", b"image,caption\na.png,ok\n\xff.png,two\n", "line 3: it is not UTF-8"),
    ("captions.csv", b"a.png,one\nb.png,two\n", "line 1: the header is 'a.png, one'; wanted one column of image"),
    ("captions.csv", b"image,caption\n,one\n", "line 2: it names no image"),
    ("captions.csv", b"image,caption,split\na.png,one,dev\n", "line 2: a.png is in split 'dev'"),
    ("captions.csv", b"image,caption,split\na.png,one,\n", "line 2: its split is empty"),
    ("captions.csv", b"image,caption,split\na.png,one,train\na.png,two,test\n", "line 3: a.png is in split 'test'"),
    ("captions.csv", b"image,caption\n", "lists no images"), ("captions.csv", b"", "line 1: the header is ''"),
    ("captions.jsonl", b'{"image": "a.png", "caption": "x"}\n{"image": "b.png"\n', "line 2: it is not a JSON object"),
    ("captions.jsonl", b'["a.png", "x"]\n', "line 1: it is not a JSON object"),
    ("captions.jsonl", b'{"image": "a.png", "captions": ["x", ""]}', "line 1: its caption is empty"),
    ("captions.jsonl", b'{"image": "a.png", "captions": []}', "line 1: it has no caption"),
    ("captions.jsonl", b'{"image": "a.png", "caption": null}', "line 1: it has no caption"),
    ("captions.jsonl", b'{"image": "a.png", "caption": 7}', "line 1: its caption is 7, not a text"),
    ("captions.jsonl", b'{"caption": "x"}', "line 1: it names no image"),
    ("captions.jsonl", b'{"image": "a.png", "caption": "x", "split": "test"}\n{"image": "b.png", "caption": "y"}',
     "line 2: b.png is in no split")])
def test_what_cannot_be_read_is_named_with_its_line(tmp_path, name, data, said):
    put(tmp_path, ["a.png", "b.png"])
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UsageError) as e:
        folder.make(root=str(tmp_path))
    assert said in str(e.value) and str(tmp_path / name) in str(e.value) and "\n" not in str(e.value)


def test_many_lines_keep_their_order(tmp_path):
    lines = [f"{i % 1000}.png,{i}" for i in range(5000)]
    (tmp_path / "captions.csv").write_text("\n".join(["image,caption", *lines]))
    found = captions.read(epath.Path(tmp_path / "captions.csv"))
    assert [item.image for item in found] == [f"{i}.png" for i in range(1000)]
    assert found[7].captions == ("7", "1007", "2007", "3007", "4007") and found[7].line == 9


def test_digits_captions_are_true_by_what_is_measured():
    """read back from the words: the class, and the third of the training split that each measure lies in."""
    source, plain = digits.make(captions=True), digits.make()
    assert plain.captions is None and plain.digest != source.digest and plain.classes == source.classes
    whole = [source.captions(i) for i in range(source.size)]
    assert len({text for texts in whole for text in texts}) >= 200
    assert all(len(set(texts)) == len(texts) == 6 for texts in whole)
    examples = [(e.image[..., 0] * (16 / 255), e.label) for e in read(source)]
    ink = np.array([image.mean() for image, _ in examples])
    rows, columns = np.mgrid[:8, :8]
    slant = np.array([-np.polyfit(rows.ravel(), columns.ravel(), 1, w=np.sqrt(im).ravel())[0] for im, _ in examples])
    wide = np.array([np.ptp(np.flatnonzero((image > 7.5).any(0))) + 1 for image, _ in examples])
    third = lambda x: np.searchsorted(np.quantile(x, [1 / 3, 2 / 3]), x, side="right")  # noqa: E731
    measured = [(third(ink), ("thin", "medium (?=strokes|\\d)", "thick")), (third(slant), ("left", "upright", "right")),
                (np.digitize(wide, [5, 6]), ("narrow", "medium-wide|medium width", "(?<!-)wide"))]
    for ranks, words in measured:
        said = [[any(re.search(rf"\b({word})", text) for text in texts) for word in words] for texts in whole]
        assert np.all(np.sum(said, 1) == 1)  # no sentence contradicts another
        # Not all, since pixels are rounded to 8 bits here, and the limits to three digits.
        assert np.mean(np.argmax(said, 1) == ranks) > 0.98
    for (_, label), texts in zip(examples, whole):
        assert all(str(label) in t or digits.WORDS[label] in t.split() or f"{digits.WORDS[label]}," in t for t in texts)


def test_digits_captions_follow_their_image_into_every_split():
    """one image, one set of sentences, whichever split it is in."""
    said = {}
    for split in ("train", "fit", "val"):
        source = digits.make(split=split, captions=True)
        for e in read(source):
            texts = source.captions(e.index)
            assert said.setdefault(e.image.tobytes(), texts) == texts
    assert len(said) > 1290
