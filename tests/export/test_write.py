"""What is written is what the format says, one tensor at a time, and there whole or not at all."""
import json
import os
import pathlib
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
import safetensors

from simclr_jax.errors import UsageError
from simclr_jax.export import files, write
from simclr_jax.export.tensors import Tensor, of

ARRAYS = {"byte": np.arange(3, dtype=np.uint8), "a/w": np.arange(6, dtype=np.float32).reshape(2, 3),
          "half": np.arange(5, dtype=np.float16), "t": np.arange(6.0).reshape(2, 3).T, "one": np.asarray(3, np.int64),
          "brain": np.arange(3, dtype=ml_dtypes.bfloat16), "none": np.zeros((0, 2), np.float32), "no": np.array([True]),
          "z": np.ones(2, np.complex64)}


def test_the_library_reads_it_back(tmp_path):
    path = tmp_path / "w.safetensors"
    write.safetensors(path, {name: of(x) for name, x in ARRAYS.items()}, {"format": "pt", "text": "é\n"})
    assert list(tmp_path.iterdir()) == [path]
    with safetensors.safe_open(path, "np") as f:
        assert f.metadata() == {"format": "pt", "text": "é\n"} and set(f.keys()) == set(ARRAYS)
        for name in set(ARRAYS) - {"brain"}:  # bfloat16, which the library's NumPy side has not
            x = f.get_tensor(name)
            assert x.dtype == ARRAYS[name].dtype and np.array_equal(x, ARRAYS[name]), name
    brain = dict(safetensors.deserialize(path.read_bytes()))["brain"]
    assert (brain["dtype"], brain["shape"], bytes(brain["data"])) == ("BF16", [3], ARRAYS["brain"].tobytes())
    assert list(files.read(path)) == list(ARRAYS)


def test_header_and_tensors_are_aligned(tmp_path):
    path = tmp_path / "w.safetensors"
    write.safetensors(path, {name: of(x) for name, x in ARRAYS.items()})
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    assert length % 8 == 0
    for name, entry in json.loads(data[8:8 + length]).items():
        assert entry["data_offsets"][0] % ARRAYS[name].dtype.itemsize == 0, name


def test_permissions_are_those_of_any_new_file(tmp_path):
    old = os.umask(0o027)
    try:
        with write.directory(tmp_path / "out") as folder:
            write.safetensors(folder / "w.safetensors", {"a": of(np.ones(1))})
    finally:
        os.umask(old)
    assert [(tmp_path / p).stat().st_mode & 0o777 for p in ("out", "out/w.safetensors")] == [0o750, 0o640]


@pytest.mark.parametrize("read", [lambda: np.ones(3, np.float32), lambda: np.ones(2)])
def test_an_array_that_is_not_what_was_announced_leaves_the_old_file(tmp_path, read):
    path = tmp_path / "w.safetensors"
    path.write_bytes(b"old")
    with pytest.raises(ValueError, match="b: read float"):
        write.safetensors(path, {"a": of(np.ones(1)), "b": Tensor((2,), np.dtype(np.float32), read)})
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_what_the_format_has_not_is_refused_before_anything_is_there(tmp_path):
    with pytest.raises(TypeError, match="complex128"):
        write.safetensors(tmp_path / "w.safetensors", {"a": of(np.ones(1, complex))})
    with pytest.raises(TypeError, match="metadata"):
        write.safetensors(tmp_path / "w.safetensors", {"a": of(np.ones(1))}, {"step": 3})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, UsageError])
def test_of_a_directory_nothing_stays_when_anything_goes_wrong(tmp_path, error):
    with pytest.raises(error):
        with write.directory(tmp_path / "new" / "deep" / "out") as folder:
            (folder / "config.json").write_text("{}")
            (folder / "sub").mkdir()
            assert not (tmp_path / "new" / "deep" / "out").exists()
            raise error
    assert not list(tmp_path.iterdir())


def test_a_directory_comes_whole(tmp_path):
    (tmp_path / "out").mkdir()  # an empty one will do
    with write.directory(tmp_path / "out") as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "a").write_text("a")
        assert not list((tmp_path / "out").iterdir())
    assert (tmp_path / "out" / "sub" / "a").read_text() == "a" and [p.name for p in tmp_path.iterdir()] == ["out"]


def test_what_is_there_is_never_written_over(tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    (tmp_path / "link").symlink_to("gone")
    for name in ("file", "full", "link"):
        with pytest.raises(UsageError, match="there is something already") as refused:
            with write.directory(tmp_path / name):
                raise AssertionError("it was let in")
        assert "\n" not in str(refused.value)
    with pytest.raises(UsageError, match="cannot be written"):  # it came to be there in the meantime
        with write.directory(tmp_path / "late"):
            (tmp_path / "late").mkdir()
            (tmp_path / "late" / "file").write_text("mine")
    assert (tmp_path / "late" / "file").read_text() == (tmp_path / "full" / "file").read_text() == "mine"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "full", "late", "link"]
    with pytest.raises(UsageError, match="written locally"):
        with write.directory("gs://bucket/out"):
            pass


@pytest.mark.parametrize("out", ["/proc/none/out", "{tmp}/file/out"])
def test_places_that_cannot_be_written_are_refused_in_a_line(tmp_path, out):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written") as refused:
        with write.directory(out.format(tmp=tmp_path)):
            pass
    assert "\n" not in str(refused.value)
    with pytest.raises(UsageError, match="cannot be written"):
        write.safetensors(out.format(tmp=tmp_path), {"a": of(np.ones(1))})


CHILD = """
import os, re, sys
import numpy as np
from simclr_jax.export import files, write
from simclr_jax.export.tensors import Tensor

def peak():  # MiB; of this process alone, which ru_maxrss is not
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024

shape = 5 * 2**20,
first, second = sys.argv[1:]
write.safetensors(second, {"a": Tensor((3,), np.dtype(np.float32), lambda: np.ones(3, np.float32))})
base = peak()
tensors = {str(n): Tensor(shape, np.dtype(np.float32), lambda n=n: np.full(shape, n, np.float32)) for n in range(20)}
write.safetensors(first, tensors)
made = peak() - base
write.safetensors(second, files.check_finite(files.read(first), first))
assert os.path.getsize(second) == os.path.getsize(first) > 400 * 2**20, "not all of it was written"
assert files.read(second)["19"].read()[-1] == 19
print(made, peak() - base)
"""


@pytest.mark.slow
def test_memory_holds_a_tensor_and_not_the_file(tmp_path):
    """400 MiB in tensors of 20 MiB, written, and read and written again."""
    command = [sys.executable, "-c", CHILD, tmp_path / "1.safetensors", tmp_path / "2.safetensors"]
    env = os.environ | {"PYTHONPATH": str(pathlib.Path(__file__).parents[2])}
    done = subprocess.run(command, text=True, capture_output=True, env=env)
    for path in tmp_path.iterdir():
        path.unlink()
    assert done.returncode == 0, done.stderr
    written, copied = map(float, done.stdout.split())
    assert 10 < written < 100 and copied < 100, done.stdout
