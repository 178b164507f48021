"""Tar shards: every sample with its own caption and label, in any order; and shards that are damaged, named."""
import gzip
import io
import itertools
import json
import os
import tarfile

import numpy as np
import pytest
from PIL import Image

from feeding import batches, examples as evaluated, read
from simclr_jax.data.sources import webdataset
from simclr_jax.errors import UsageError

VIEWS = ((("resize", dict(size=4)),),)


def png(shade):
    file = io.BytesIO()
    Image.fromarray(np.full((5, 4 + shade % 2, 3), shade, np.uint8)).save(file, "PNG")
    return file.getvalue()


def write(path, members, format=tarfile.GNU_FORMAT):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return str(path)


def sample(i, key=None):
    key = key or f"{i:06}"
    return [(f"{key}.png", png(i)), (f"{key}.txt", f"number {i}\n".encode()), (f"{key}.cls", str(i % 3).encode())]


def shards(root, sizes):
    first = np.cumsum([0, *sizes])
    for n, (start, size) in enumerate(zip(first, sizes)):
        write(root / f"{n:05}.tar", [m for i in range(start, start + size) for m in sample(int(i))])
    return f"{root}/{{00000..{len(sizes) - 1:05}}}.tar"


def examples(source):
    return [(int(e.image[0, 0, 0]), source.captions(e.index), e.label) for e in read(source)]


def wanted(indices):
    return [(i, (f"number {i}",), i % 3) for i in indices]


def test_samples_have_their_captions_and_labels(tmp_path):
    source = webdataset.make(root=shards(tmp_path, (3, 0, 5, 2)))
    assert examples(source) == wanted(range(10))
    assert source.shards == (3, 0, 5, 2) and source.classes == ("0", "1", "2")
    assert [e.image[0, 0, 0] for e in read(source, range(9, -1, -1))] == list(range(10))[::-1]
    assert [source.captions(i) for i in (7, 2)] == [("number 7",), ("number 2",)]


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_format_of_tar_and_every_kind_of_name(tmp_path, format):
    """long, with folders, not ASCII, with dots in the folder; and members that are no samples."""
    keys = ["a" * 90, "v1.0/" + "b" * 80 + "/" + "c" * 60, "Grüße", "./d", "e"]
    if format != tarfile.USTAR_FORMAT:
        keys += ["f" * 300, "g" * 200 + "/" + "h" * 200]
    members = [m for i, key in enumerate(keys) for m in sample(i, key)]
    with tarfile.open(tmp_path / "a.tar", "w", format=format) as tar:
        folder, link = tarfile.TarInfo("v1.0"), tarfile.TarInfo("z.png")
        folder.type, link.type, link.linkname = tarfile.DIRTYPE, tarfile.SYMTYPE, "e.png"
        tar.addfile(folder)
        tar.addfile(link)
        for name, content in [("._e.png", b"of macOS"), *members]:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    assert examples(webdataset.make(root=str(tmp_path / "a.tar"))) == wanted(range(len(keys)))
    with tarfile.open(tmp_path / "a.tar") as tar:  # Python's reader finds the same places
        places = [(m.name, m.offset_data, m.size) for m in tar if m.isreg()]
    with open(tmp_path / "a.tar", "rb") as f:
        assert list(webdataset._members(f, "a.tar", 10**9)) == places


def test_which_member_is_the_image_and_which_the_caption(tmp_path):
    write(tmp_path / "a.tar", [
        ("0.JPG", png(0)), ("0.txt", b"from the text"), ("0.json", b'{"caption": "from json"}'), ("0.seg.png", png(99)),
        ("1.json", json.dumps({"text": ["one", "two"], "caption": None}).encode()), ("1.webp", png(1)),
        ("2.png", png(98)), ("2.png", png(2)), ("2.caption", "\ufeffGrüße\r\n".encode())])
    source = webdataset.make(root=str(tmp_path))
    assert examples(source) == [(0, ("from the text",), -1), (1, ("one", "two"), -1), (2, ("Grüße",), -1)]
    other = webdataset.make(root=str(tmp_path), text_key="json", image_key="seg.png;webp", max_bad=0.9)
    assert examples(other) == [(99, ("from json",), -1), (1, ("one", "two"), -1)]
    plain = webdataset.make(root=str(tmp_path), text_key="", label_key="")
    assert plain.captions is None and plain.size == 3


def test_roots(tmp_path):
    for name in ("a", "b", "c", "d"):
        write(tmp_path / "x" / f"{name}.tar", sample(ord(name)))
    write(tmp_path / "y" / "07.tar", sample(7))
    write(tmp_path / "y" / "10.tar", sample(10))
    x, y = tmp_path / "x", tmp_path / "y"
    for root, shades in [(f"{x}/a.tar", "a"), (f"{x}", "abcd"), (f"{x}/{{d,b}}.tar", "db"), (f"{x}/[bc].tar", "bc"),
                         (f"{x}/c.tar::{x}/a.tar", "ca"), (f"{x}/c.tar, {x}/{{a,b}}.tar", "cab"),
                         (f"{y}/{{07..07}}.tar::{x}/*.tar::{x}/a.tar", "\x07abcd")]:
        assert [chr(v) for v, _, _ in examples(webdataset.make(root=root))] == list(shades)
    test = webdataset.make(root=str(x), test_root=str(y), split="test")
    assert [v for v, _, _ in examples(test)] == [7, 10]


@pytest.mark.parametrize("kwargs, said", [
    (dict(root=""), "no root given.*--config.data.root"), (dict(root="{dir}/{{0..2}}.tar"), "0.tar cannot be read"),
    (dict(root="{dir}/none/*.tar"), "no files .*none"), (dict(root="pipe:cat x.tar"), "is a command"),
    (dict(split="test"), "no shards are given for split 'test'.*test_root"), (dict(split="dev"), "no split 'dev'"),
    (dict(root="{dir}/empty.tar"), "no samples"), (dict(root="{dir}/label.tar"), "label of 5 is b'cat', not a number")])
def test_refusals(tmp_path, kwargs, said):
    shards(tmp_path / "good", (2,))
    write(tmp_path / "empty.tar", [])
    write(tmp_path / "label.tar", [("5.png", png(1)), ("5.txt", b"x"), ("5.cls", b"cat\n")])
    kwargs = {"root": "{dir}/good", **kwargs}
    with pytest.raises(UsageError, match=said) as e:
        webdataset.make(**{k: v.format(dir=tmp_path) for k, v in kwargs.items()})
    assert "\n" not in str(e.value)


def test_damaged_shards_are_named_with_the_byte(tmp_path):
    write(tmp_path / "a.tar", [m for i in range(4) for m in sample(i)])
    whole = (tmp_path / "a.tar").read_bytes()
    with tarfile.open(tmp_path / "a.tar") as tar:
        members = tar.getmembers()
    fifth, end = members[4], members[-1].offset_data + 512
    for content, said in [(whole[:fifth.offset_data + 3], f"cut off, in the member at byte {fifth.offset}"),
                          (whole[:fifth.offset + 100], f"cut off .* at byte {fifth.offset}"),
                          (whole[:end], f"cut off .*no end mark.* at byte {end}"), (b"", "at byte 0"),
                          (whole[:fifth.offset] + b"x" + whole[fifth.offset + 1:], f"damaged.* at byte {fifth.offset}"),
                          (b"<html>not found</html>" * 99, "no tar file, at byte 0"),
                          (gzip.compress(whole), "is compressed")]:
        (tmp_path / "a.tar").write_bytes(content)
        with pytest.raises(UsageError, match=said) as e:
            webdataset.make(root=str(tmp_path))
        assert "a.tar" in str(e.value) and "\n" not in str(e.value)
    (tmp_path / "a.tar").write_bytes(whole[:end] + b"\0" * 512)  # one block of the two is mark enough
    assert examples(webdataset.make(root=str(tmp_path))) == wanted(range(4))


@pytest.mark.scorecard(37)
def test_samples_that_lack_something_are_named_and_passed_over(tmp_path):
    members = {i: sample(i) for i in range(20)}
    members[3], members[7] = members[3][:1], members[7][1:]
    members[9][1] = ("000009.txt", b" \n")
    members[12][0] = ("000012.png", b"no image")
    members[15][1] = ("000015.json", b'{"title": "x"}')
    write(tmp_path / "a.tar", [m for i in range(10) for m in members[i]])
    write(tmp_path / "b.tar", [m for i in range(10, 20) for m in members[i]])
    make = lambda max_bad: webdataset.make(root=str(tmp_path), max_bad=max_bad, memory=0.0)  # noqa: E731
    source = make(0.25)
    assert source.size == 18 and source.shards == (8, 10)
    assert source.problems() == [f"{tmp_path}/a.tar: 000003: no member .txt, .caption, .json",
                                 f"{tmp_path}/a.tar: 000007: no member .jpg, .jpeg, .png, .webp"]
    stand_in = {9: 10, 12: 13, 15: 16}
    assert examples(source) == wanted(stand_in.get(i, i) for i in range(20) if i not in (3, 7))
    assert [p.split(": ", 1)[1] for p in source.problems()[2:]] == [
        "000009: its caption is empty", "000012: not a JPEG, PNG, BMP, GIF, WEBP or TIFF picture",
        "000015: its JSON has no field caption or text"]
    with pytest.raises(UsageError, match="max_bad=0.05 allows 1 of 20: .*000003.*000007"):
        make(0.05)
    with pytest.raises(UsageError, match="allows 4 of 20"):
        list(evaluated(make(0.2), VIEWS[0], batch=4))


def test_the_index_is_kept_for_these_shards_and_keys(tmp_path, monkeypatch):
    root = shards(tmp_path, (2, 3))
    before = examples(webdataset.make(root=root))
    with monkeypatch.context() as m:
        m.setattr(webdataset, "_scan", None)  # so that a second scan would fail
        assert examples(webdataset.make(root=root)) == before
        with pytest.raises(TypeError):
            webdataset.make(root=root, text_key="caption")
    kept = list(tmp_path.glob("tar_index_*.npz"))
    assert len(kept) == 1
    kept[0].write_bytes(kept[0].read_bytes()[:50])  # a damaged one is made again
    assert examples(webdataset.make(root=root)) == before
    size = (tmp_path / "00001.tar").stat().st_size
    write(tmp_path / "00001.tar", sample(9))
    os.utime(tmp_path / "00001.tar", (0, 0))
    assert (tmp_path / "00001.tar").stat().st_size == size  # tar rounds, so that sizes alone would not tell
    assert examples(webdataset.make(root=root)) == wanted([0, 1, 9])


class Tokens:
    length = 1

    @staticmethod
    def encode(texts):
        return np.array([[int(text.removeprefix("number "))] for text in texts], np.int32)


@pytest.mark.scorecard(33)
@pytest.mark.parametrize("count", [1, 2])
def test_batches_over_processes(tmp_path, count):
    """each process reads its shards, all of them in an epoch; pixels, texts and labels are of one sample."""
    source = webdataset.make(root=shards(tmp_path, (3, 5, 4, 0)), memory=0.0)
    seen = []
    for p in range(count):
        stream = batches(source, VIEWS, batch=2 * count, seed=0, process=(p, count), tokenizer=Tokens)
        rows = list(itertools.islice(stream, 6))
        for b in rows:
            shade = np.rint(b["views"][:, 0, 0, 0, 0] * 255)
            assert np.array_equal(shade, b["text"][:, 0]) and np.array_equal(shade, b["id"][:, 0])
            assert np.array_equal(b["label"], shade % 3)
        first = np.concatenate([b["id"] for b in rows])
        own = {0: range(0, 3), 1: range(3, 8), 2: range(8, 12)}
        mine = [i for s in range(p, 3, count) for i in own[s]]
        assert sorted(first[first[:, 1] == 0, 0]) == mine
        seen += mine
    assert sorted(seen) == list(range(12))
