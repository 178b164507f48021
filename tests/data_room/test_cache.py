"""The pre-decoded cache: what is read is what was written, and nothing damaged or half written is taken for one."""
import concurrent.futures
import errno
import fcntl
import itertools
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from simclr_jax import names
from simclr_jax.data import cache, cache_write
from simclr_jax.data.decoded import squeezed
from simclr_jax.data.source import of_arrays
from simclr_jax.data.sources import cache as reader
from simclr_jax.data.sources import folder
from simclr_jax.errors import UsageError

RNG = np.random.default_rng(0)
QUIET = dict(say=lambda line: None)


def arrays(n=23, side=(8, 6), captions=True):
    images = RNG.integers(0, 256, (n, *side, 3), np.uint8)
    texts = [[f"picture {i}", "naïve ☂ \n two"][:1 + i % 2] for i in range(n)] if captions else None
    return of_arrays(images, np.arange(n) % 5, classes=tuple("abcde"), captions=texts), images


def pictures(root, sizes, first=0):
    """PNG files of noise; returns the arrays in the order of their names."""
    root.mkdir(parents=True, exist_ok=True)
    made = []
    for i, size in enumerate(sizes, first):
        made.append(RNG.integers(0, 256, (*size, 3), np.uint8))
        Image.fromarray(made[-1]).save(root / f"{i:03}.png")
    return made


def written(tmp_path, source, name="c", **options):
    lines = []
    cache_write.write(source, str(tmp_path / name), "train", say=lines.append, **options)
    return reader.make(root=str(tmp_path / name), verify=True), lines


def contents(root):
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


# 144 bytes a row are gathered in one go, 24,300 row by row.
@pytest.mark.parametrize("side", [(8, 6), (90, 90)])
@pytest.mark.parametrize("shards", [0, 1, 5, 99])
def test_what_is_read_is_what_was_written(tmp_path, side, shards):
    source, images = arrays(side=side)
    made, _ = written(tmp_path, source, shards=shards)
    assert made.size == 23 and made.shape == side and made.sizes is None and made.classes == source.classes
    assert made.shards == () and made.problems() == []
    assert [made.captions(i) for i in range(23)] == [source.captions(i) for i in range(23)]
    for index in (np.arange(23), np.array([22, 0, 7, 7, 3, 22]), np.array([4]), np.zeros(0, np.int64)):
        got, labels = made.rows(index)
        assert got.dtype == np.uint8 and labels.dtype == np.int64 and got.flags.c_contiguous and got.flags.writeable
        assert np.array_equal(got, images[index]) and np.array_equal(labels, index % 5)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        asked = [RNG.permutation(23)[:9] for _ in range(200)]
        assert all(np.array_equal(got, images[i]) for i, (got, _) in zip(asked, pool.map(made.rows, asked)))
    files = sorted((tmp_path / "c" / "train").glob("images-*.npy"))
    assert len(files) == (min(shards, 23) or 1)
    assert np.array_equal(np.concatenate([np.load(f, mmap_mode="r") for f in files]), images)
    assert sorted(os.listdir(tmp_path / "c" / "train")) == [f.name for f in files] + ["index.npz"]


@pytest.mark.parametrize("index", [[23], [-1], [0, 99]])
def test_an_index_that_is_not_there_is_an_error_and_not_another_example(tmp_path, index):
    made, _ = written(tmp_path, arrays()[0], shards=3)
    with pytest.raises(IndexError):
        made.rows(np.array(index))


def test_images_of_several_sizes_are_squeezed_and_their_sizes_kept(tmp_path):
    images = pictures(tmp_path / "p" / "cat", [(40, 60), (50, 34)]) + pictures(tmp_path / "p" / "dog", [(33, 41)] * 3)
    source = folder.make(root=str(tmp_path / "p"))
    originals = [source.read(i) for i in range(source.size)]
    made, lines = written(tmp_path, source, size=32, shards=2)
    assert made.shape == (32, 32) and made.size == source.size and made.classes == ("cat", "dog")
    got, labels = made.rows(np.arange(made.size))
    for image, label, size, example in zip(got, labels, made.sizes, originals):
        original = example.image
        assert any(np.array_equal(original, i) for i in images)
        assert tuple(size) == original.shape[:2] and label == example.label
        assert np.array_equal(image, np.asarray(Image.fromarray(original).resize((32, 32), Image.BICUBIC)))
    assert made.sizes.dtype == np.int32
    # A cache of a cache knows the sizes of the very first.
    smaller, _ = written(tmp_path, made, name="smaller", size=16)
    assert smaller.shape == (16, 16) and np.array_equal(smaller.sizes, made.sizes)


def test_shrinking_keeps_the_mean_of_fine_stripes():
    stripes = np.zeros((300, 90, 3), np.uint8)
    stripes[::2] = 255
    small = squeezed(stripes, (30, 30)).astype(int)
    assert small.shape == (30, 30, 3) and np.abs(small[3:-3] - 127).max() <= 1  # single rows would be 0 or 255


@pytest.mark.parametrize("sizes, side, small", [
    ([(50, 40)] * 5, (50, 40), None), ([(500, 375)] * 3 + [(375, 500)], (320, 320), None),
    ([(30, 48), (48, 30), (40, 48)], (48, 48), "3 of 3"), ([(400, 330), (330, 400), (100, 90)], (320, 320), "1 of 3")])
def test_the_size_that_is_chosen(tmp_path, sizes, side, small):
    """as they are if all alike; else 320, or less where nothing is that large; what is enlarged is said."""
    pictures(tmp_path / "p", sizes)
    made, lines = written(tmp_path, folder.make(root=str(tmp_path / "p")))
    assert made.shape == side
    assert [line.split(" images")[0].strip() for line in lines if "enlarged" in line] == ([small] if small else [])


def test_an_image_of_another_size_among_many_alike_starts_it_anew(tmp_path):
    n = 2 * cache_write._SAMPLE
    sample = set(np.linspace(0, n - 1, cache_write._SAMPLE).astype(int))
    odd = next(i for i in range(n // 2, n) if i not in sample)
    images = pictures(tmp_path / "p", [(6, 5) if i == odd else (4, 4) for i in range(n)])
    made, lines = written(tmp_path, folder.make(root=str(tmp_path / "p")), shards=4)
    assert any("not all of one size" in line and "4 x 4" in line for line in lines)
    assert made.shape == (4, 4) and made.size == n and tuple(made.sizes[odd]) == (6, 5)
    got = made.rows(np.arange(n))[0]
    assert all(np.array_equal(got[i], images[i]) for i in range(n) if i != odd)


def test_unreadable_images_are_left_out_and_named(tmp_path):
    images = pictures(tmp_path / "p", [(9, 9)] * 12)
    for bad in (0, 5, 6, 11):
        (tmp_path / "p" / f"{bad:03}.png").write_bytes(b"no picture")
    source = folder.make(root=str(tmp_path / "p"), max_bad=0.4)
    made, lines = written(tmp_path, source, shards=6)  # one of them has none that can be read
    good = [i for i in range(12) if i not in (0, 5, 6, 11)]
    assert made.size == 8 and np.array_equal(made.rows(np.arange(8))[0], [images[i] for i in good])
    said = "\n".join(lines)
    assert all(f"{bad:03}.png: not a" in said for bad in (0, 5, 6, 11)) and "4 unreadable" in said
    listed = (tmp_path / "c" / "train" / "left_out.txt").read_text().splitlines()
    assert len(listed) == 4 and "011.png" in listed[3]
    assert cache.read(str(tmp_path / "c"), "train").examples.tolist() == good
    with pytest.raises(UsageError, match="[2-4] images cannot be read"):
        cache_write.write(folder.make(root=str(tmp_path / "p")), str(tmp_path / "d"), "train", **QUIET)


def interrupt(monkeypatch, after):
    """The writing of the shards ends with Ctrl-C in the midst of number `after`."""
    real, count = cache.ShardFile.add, itertools.count()

    def add(self, image):
        if next(count) == after:
            raise KeyboardInterrupt
        real(self, image)
    monkeypatch.setattr(cache.ShardFile, "add", add)


def test_an_interrupted_write_is_no_cache_and_goes_on(tmp_path, monkeypatch):
    source, images = arrays()
    written(tmp_path, source, name="whole", shards=4)
    for after in (2, 13):  # in the first shard, in the third
        with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
            interrupt(m, after)
            cache_write.write(source, str(tmp_path / "c"), "train", shards=4, **QUIET)
        with pytest.raises(UsageError, match="unfinished.*goes on"):
            reader.make(root=str(tmp_path / "c"))
    read = []
    counted = source._replace(read=lambda index: read.append(index) or source.read(index))
    made, lines = written(tmp_path, counted, shards=4)
    assert contents(tmp_path / "c") == contents(tmp_path / "whole")
    assert lines[0].startswith("going on") and min(read) > 10 and len(read) < 13  # what was finished is not read again
    assert sorted(os.listdir(tmp_path / "c")) == ["train"]


def test_what_was_begun_with_something_else_is_not_gone_on_with(tmp_path, monkeypatch):
    source, images = arrays()
    other = of_arrays(255 - images, classes=tuple("abcde"))
    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        interrupt(m, 13)
        cache_write.write(other, str(tmp_path / "c"), "train", shards=4, **QUIET)
    made, lines = written(tmp_path, source, shards=4)
    assert "something else" in lines[0] and np.array_equal(made.rows(np.arange(23))[0], images)


def test_a_cut_off_part_is_written_again(tmp_path, monkeypatch):
    source, images = arrays()
    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        interrupt(m, 13)
        cache_write.write(source, str(tmp_path / "c"), "train", shards=4, **QUIET)
    file = tmp_path / "c" / "train.partial" / cache.shard(1, 4)
    file.write_bytes(file.read_bytes()[:-1])
    made, _ = written(tmp_path, source, shards=4)
    assert np.array_equal(made.rows(np.arange(23))[0], images)


@pytest.mark.parametrize("at", [0, 50, 127, 128, 300, -1])
def test_a_flipped_bit_is_found_and_the_shard_named(tmp_path, at):
    made, _ = written(tmp_path, arrays()[0], shards=3)
    file = tmp_path / "c" / "train" / cache.shard(1, 3)
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.write_bytes(data)
    reader.make(root=str(tmp_path / "c"))  # the lengths are right
    with pytest.raises(UsageError, match=r"damaged.*images-00001-of-00003.npy;") as e:
        reader.make(root=str(tmp_path / "c"), verify=True)
    assert "\n" not in str(e.value)


def test_a_damaged_index_is_refused_wherever_the_damage_is(tmp_path):
    written(tmp_path, arrays()[0])
    file = tmp_path / "c" / "train" / "index.npz"
    data = file.read_bytes()
    for at in [*range(0, len(data), 101), len(data) - 1]:
        file.write_bytes(data[:at] + bytes([data[at] ^ 4]) + data[at + 1:])
        with pytest.raises(UsageError, match="index.npz is damaged"):
            reader.make(root=str(tmp_path / "c"))
    for short in (b"", data[:-1], data[:100]):
        file.write_bytes(short)
        with pytest.raises(UsageError, match="index.npz is damaged"):
            reader.make(root=str(tmp_path / "c"))


@pytest.mark.parametrize("change, said", [
    (lambda f: f.write_bytes(f.read_bytes()[:-1]), "images-00002-of-00003.npy has 1279 bytes and not 1280"),
    (lambda f: f.write_bytes(f.read_bytes() + b"\0"), "has 1281 bytes"),
    (lambda f: f.unlink(), "images-00002-of-00003.npy cannot be read")])
def test_a_shard_of_another_length_is_refused_without_reading_it(tmp_path, change, said):
    written(tmp_path, arrays()[0], shards=3)
    change(tmp_path / "c" / "train" / cache.shard(2, 3))
    with pytest.raises(UsageError, match=said):
        reader.make(root=str(tmp_path / "c"))


def test_a_format_of_the_future_is_refused(tmp_path, monkeypatch):
    with monkeypatch.context() as m:
        m.setattr(cache, "VERSION", 2)
        written(tmp_path, arrays()[0])
    with pytest.raises(UsageError, match="format version 2 and this program reads 1; update"):
        reader.make(root=str(tmp_path / "c"))


@pytest.mark.parametrize("spec, said", [
    (dict(root=""), "no root given"), (dict(root="nowhere"), "holds no cache; write one"),
    (dict(split="tset"), "no split 'tset'; it has: test, train"), (dict(root="gs://b/c"), "a disk of this machine")])
def test_refusals_of_the_reader(tmp_path, spec, said):
    for split in ("test", "train"):
        cache_write.write(arrays(5)[0], str(tmp_path / "c"), split, **QUIET)
    with pytest.raises(UsageError, match=said) as e:
        names.make("data.sources", dict(name="cache", **{"root": str(tmp_path / "c"), **spec}))
    assert "\n" not in str(e.value)


def test_a_split_may_have_any_name(tmp_path):
    cache_write.write(arrays(5)[0], str(tmp_path), "train[:90%]/../x", **QUIET)
    assert cache.splits(str(tmp_path)) == ["train[:90%]/../x"] and len(os.listdir(tmp_path)) == 1
    assert reader.make(root=str(tmp_path), split="train[:90%]/../x").size == 5


def test_what_is_there_already_is_left_alone(tmp_path):
    source, _ = arrays()
    written(tmp_path, source)
    before = contents(tmp_path)
    _, lines = written(tmp_path, source)
    assert "nothing to do" in lines[0]
    with pytest.raises(UsageError, match="holds another cache"):
        written(tmp_path, arrays(7)[0])
    with pytest.raises(UsageError, match="holds another cache"):
        written(tmp_path, source, size=4)
    for name in ("train", "train.partial"):
        (tmp_path / "mine" / name).mkdir(parents=True)
        (tmp_path / "mine" / name / "photo.jpg").write_bytes(b"precious")
        with pytest.raises(UsageError, match="train is there and holds no cache|is no unfinished cache"):
            written(tmp_path, source, name="mine")
        (tmp_path / "mine" / name / "photo.jpg").rename(tmp_path / "photo")
        (tmp_path / "mine" / name).rmdir()
        (tmp_path / "photo").unlink()
    assert contents(tmp_path) == before


def test_a_full_disk_is_one_line_and_the_rest_goes_on(tmp_path, monkeypatch):
    source, images = arrays()
    real, count = cache.ShardFile.add, itertools.count()

    def full(self, image):
        if next(count) == 13:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(self, image)
    with monkeypatch.context() as m, pytest.raises(UsageError, match="No space left on device.*goes on") as e:
        m.setattr(cache.ShardFile, "add", full)
        cache_write.write(source, str(tmp_path / "c"), "train", shards=4, **QUIET)
    assert "\n" not in str(e.value)
    with monkeypatch.context() as m, pytest.raises(UsageError, match="images of 8 x 6 take .* MiB are free"):
        m.setattr(cache, "free_bytes", lambda path: 1000)
        cache_write.write(source, str(tmp_path / "c"), "train", shards=4, **QUIET)
    made, _ = written(tmp_path, source, shards=4)
    assert np.array_equal(made.rows(np.arange(23))[0], images)


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written"):
        written(tmp_path, arrays()[0], name="file")


def test_two_writers_do_not_mix(tmp_path):
    (tmp_path / "c" / "train.partial").mkdir(parents=True)
    with open(tmp_path / "c" / "train.partial" / "plan.json", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UsageError, match="another process"):
            written(tmp_path, arrays()[0])
    written(tmp_path, arrays()[0])


def test_the_digest_is_of_what_is_seen(tmp_path):
    source, images = arrays()
    digests = {}
    changed = images.copy()
    changed[-1, -1, -1, -1] ^= 1
    texts = [source.captions(i) for i in range(23)]
    for name, other in dict(same=source, again=source, pixel=of_arrays(changed, np.arange(23) % 5, classes="abcde",
                                                                       captions=texts),
                            label=of_arrays(images, np.arange(23) % 4, classes="abcde", captions=texts),
                            text=of_arrays(images, np.arange(23) % 5, classes="abcde", captions=texts[::-1]),
                            classes=of_arrays(images, np.arange(23) % 5, classes="abcdf", captions=texts),
                            none=of_arrays(images, np.arange(23) % 5, classes="abcde")).items():
        digests[name] = written(tmp_path, other, name=name)[0].digest
    assert digests.pop("again") == digests["same"] and len(set(digests.values())) == len(digests)


def test_reading_needs_no_tensorflow(tmp_path):
    source, images = arrays()
    written(tmp_path, source, shards=2)
    program = (
        "import sys; sys.modules['tensorflow'] = None; sys.modules['PIL'] = None\n"
        "import numpy as np; from simclr_jax import names\n"
        f"s = names.make('data.sources', dict(name='cache', root={str(tmp_path / 'c')!r}, verify=True))\n"
        "x, y = s.rows(np.array([20, 3])); print(x.sum(), y.tolist(), s.captions(3), s.size)")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    wanted = f"{images[[20, 3]].sum()} [0, 3] {source.captions(3)} 23\n"
    assert (done.stdout, done.returncode) == (wanted, 0), done.stderr


def test_files_stay_open_for_a_bounded_number_of_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "MOST", 4)
    made, _ = written(tmp_path, arrays(side=(90, 90))[0], shards=23)
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    for i in range(23):
        made.rows(np.array([i]))
    assert not before or len(os.listdir("/proc/self/fd")) - before <= 4
