"""Hostile and broken files are refused in one line that names them, and nothing that is in them runs."""
import io
import json
import os
import pickle
import struct
import zipfile

import numpy as np
import pytest

from hostile import refuse, system  # noqa: F401
from simclr_jax.errors import UsageError
from simclr_jax.export import files, write
from simclr_jax.export.tensors import of


def stored(header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(begin=0, end=8, shape=(2,), dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


EIGHT = bytes(8)
SAFETENSORS = {
    "cut in its length": (b"\x10\0\0", "no"), "cut in its header": (stored({"a": entry()}, EIGHT)[:20], "not a whole"),
    "cut in its tensors": (stored({"a": entry()}, EIGHT[:5]), "8 bytes of tensors, and there are 5"),
    "longer than it says": (stored({"a": entry()}, EIGHT * 2), "8 bytes of tensors, and there are 16"),
    "a header past the end": (stored({"a": entry()}, EIGHT, 2**62), "not a whole"),
    "a huge header": (stored(b"{}", EIGHT, 2**40), "not a whole"), "no JSON": (stored(b"{'a': 1}", EIGHT), "JSON"),
    "no object": (stored([1], EIGHT), "JSON object"), "no UTF-8": (stored(b'{"\xff": 1}'), "JSON"),
    "nested without end": (stored(b"[" * 200_000), "recursion|JSON"),
    "a huge integer": (stored(b'{"a": %s}' % (b"9" * 10_000)), "integer|digits"),
    "overlapping": (stored({"a": entry(), "b": entry(4, 12)}, bytes(12)), "overlap"),
    "the same place twice": (stored({"a": entry(), "b": entry()}, EIGHT), "overlap"),
    "a hole": (stored({"a": entry(), "b": entry(12, 20)}, bytes(20)), "bytes that are of none"),
    "past the end": (stored({"a": entry(8, 16)}, EIGHT), "bytes that are of none"),
    "backwards": (stored({"a": entry(8, 0)}, EIGHT), "end before it begins"),
    "negative offsets": (stored({"a": entry(-8, 0)}, EIGHT), "no possible shape and place"),
    "a negative shape": (stored({"a": entry(shape=(-1, -2))}, EIGHT), "no possible shape and place"),
    "a shape too large for its bytes": (stored({"a": entry(shape=(3,))}, EIGHT), r"float32\[3\] 8 bytes"),
    "a shape that overflows": (stored({"a": entry(shape=(2**40, 2**40))}, EIGHT), "8 bytes"),
    "a shape of floats": (stored({"a": entry(shape=(2.0,))}, EIGHT), "no possible shape"),
    "a shape of truths": (stored({"a": entry(shape=(True, 2))}, EIGHT), "no possible shape"),
    "an unknown type": (stored({"a": entry(dtype="F4")}, EIGHT), "a is F4; it has to be stored as F32"),
    "no entry": (stored({"a": 3}, EIGHT), "no possible shape"),
    "no offsets": (stored({"a": {"dtype": "F32"}}, EIGHT), "no possible shape"),
    "a name twice": (stored(b'{"a":%s,"a":%s}' % ((json.dumps(entry()).encode(),) * 2), EIGHT), "a twice"),
    "a name upwards": (stored({"../a": entry()}, EIGHT), r"named '\.\./a'"),
    "a name upwards within": (stored({"a/../../b": entry()}, EIGHT), "which no library writes"),
    "a name upwards of Windows": (stored({"a\\..\\b": entry()}, EIGHT), "which no library writes"),
    "an absolute name": (stored({"/etc/passwd": entry()}, EIGHT), "which no library writes"),
    "a name with a NUL": (stored({"a\0b": entry()}, EIGHT), r"'a\\x00b'"),
    "a name of lines": (stored({"a\nb": entry()}, EIGHT), r"'a\\nb'"),
    "an escape code": (stored({"\x1b[2J": entry()}, EIGHT), "x1b"),
    "a long name": (stored({"a" * 10**5: entry()}, EIGHT), "aaa"),
    "no name": (stored({"": entry()}, EIGHT), "named ''"),
    "no tensors": (stored({}), "no arrays"),
}


@pytest.mark.parametrize("name", SAFETENSORS)
def test_broken_safetensors(tmp_path, refuse, name):
    data, match = SAFETENSORS[name]
    (tmp_path / "w.safetensors").write_bytes(data)
    refuse("w.safetensors", match)


def test_a_header_larger_than_any(tmp_path, refuse):
    with open(tmp_path / "w.safetensors", "wb") as f:
        f.write(struct.pack("<Q", 2**30))
        f.truncate(2**31)  # which takes no room
    refuse("w.safetensors", "more than the 33554432 that one may have")


def test_a_file_that_shrinks_while_it_is_read(tmp_path, refuse):
    write.safetensors(tmp_path / "w.safetensors", {"a": of(np.ones(3))})

    def cut(tensors):
        os.truncate("w.safetensors", 60)
        tensors["a"].read()
    refuse("w.safetensors", "shorter", cut)


@pytest.mark.parametrize("file", [
    "../w.safetensors", "/tmp/w.safetensors", "a/../../w.safetensors", "..\\w.safetensors", "w\0.safetensors",
    "w\n.safetensors", "", "..", "w.pkl", 3, None])
def test_shards_outside_the_directory(tmp_path, refuse, file):
    (tmp_path / "model").mkdir()
    write.safetensors(tmp_path / "w.safetensors", {"a": of(np.ones(3))})
    (tmp_path / "model" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": file}}))
    refuse("model", "no file of this directory|no weight_map")


def test_shards_that_are_not_as_the_index_says(tmp_path, refuse):
    (tmp_path / "model").mkdir()
    index = tmp_path / "model" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "1.safetensors"}}))
    refuse("model", "1.safetensors: cannot be read .No such file")
    write.safetensors(tmp_path / "model" / "1.safetensors", {"a": of(np.ones(3)), "b": of(np.ones(3))})
    refuse("model", "holds b, which model.safetensors.index.json has not there")
    index.write_text(json.dumps({"weight_map": dict.fromkeys("abc", "1.safetensors")}))
    refuse("model", "has no c, which")
    for text in ("{", "[]", "{}", '{"weight_map": {}}'):
        index.write_text(text)
        refuse("model", "index.json: ")


def archive(path, members, method=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", method) as z:
        for name, data in members:
            z.writestr(name, data)


def npy(x, **changed):
    f = io.BytesIO()
    np.lib.format.write_array_header_1_0(f, np.lib.format.header_data_from_array_1_0(x) | changed)
    return f.getvalue() + x.tobytes()


NPZ = {
    "pickled objects": (lambda: [("a.npy", npy(np.zeros(1), descr="|O"))], "pickled objects, which may run code"),
    "records": (lambda: [("a.npy", npy(np.zeros(1), descr=[("a", "<f8")]))], "numbers only"),
    "text": (lambda: [("a.npy", npy(np.zeros(1), descr="<U2"))], "numbers only"),
    "a shape too large": (lambda: [("a.npy", npy(np.zeros(1), shape=(2**40,)))], "and has 8 bytes"),
    "a shape too small": (lambda: [("a.npy", npy(np.zeros(3), shape=(2,)))], "and has 24 bytes"),
    "a negative shape": (lambda: [("a.npy", npy(np.zeros(4), shape=(-2, -2)))], "no possible shape"),
    "a header that is code": (lambda: [("a.npy", npy(np.zeros(1)).replace(b"'<f8'", b"dir()"))], "."),
    "no header": (lambda: [("a.npy", b"abc")], "."), "an empty member": (lambda: [("a.npy", b"")], "."),
    "no array": (lambda: [("a.txt", b"abc")], "no array of its own"), "no members": (lambda: [], "no arrays"),
    "a name upwards": (lambda: [("../a.npy", npy(np.zeros(1)))], "which no library writes"),
    "an absolute name": (lambda: [("/a.npy", npy(np.zeros(1)))], "which no library writes"),
    "a name of lines": (lambda: [("a\nb.npy", npy(np.zeros(1)))], "which no library writes"),
}


@pytest.mark.parametrize("name", NPZ)
def test_broken_archives(tmp_path, refuse, name):
    make, match = NPZ[name]
    archive(tmp_path / "w.npz", make())
    refuse("w.npz", match)


@pytest.mark.scorecard(43)
def test_archives_with_payloads(tmp_path, refuse):
    np.savez(tmp_path / "w.npz", good=np.ones(1), bad=np.array([system()], object))
    refuse("w.npz", "bad holds pickled objects")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_archives_packed_to_deceive(tmp_path, refuse):
    one = npy(np.zeros(1))
    archive(tmp_path / "w.npz", [("a.npy", one), ("a.npy", one)])
    refuse("w.npz", "no array of its own")
    archive(tmp_path / "w.npz", [("a.npy", one)], zipfile.ZIP_BZIP2)
    refuse("w.npz", "what NumPy does not use")
    np.savez_compressed(tmp_path / "w.npz", a=np.zeros(9 * 2**20))  # 72 MiB of nothing in 72 KiB
    refuse("w.npz", "unpacks to 75497472 bytes")
    archive(tmp_path / "w.npz", [("a.npy", npy(np.arange(100.0)))])
    data = bytearray((tmp_path / "w.npz").read_bytes())
    data[400] ^= 1
    (tmp_path / "w.npz").write_bytes(data)
    refuse("w.npz", "Bad CRC-32")
    (tmp_path / "w.npz").write_bytes(data[:500])
    refuse("w.npz", "not an .npz archive")


def test_archives_that_lie_about_their_length_never_fill_memory(tmp_path, refuse):
    """The member's true length in the directory of the archive, the claim in its header; and the other way round."""
    archive(tmp_path / "w.npz", [("a.npy", npy(np.zeros(1000)))], zipfile.ZIP_DEFLATED)
    data = (tmp_path / "w.npz").read_bytes()
    at = data.rindex(b"PK\x01\x02") + 24
    size = struct.unpack_from("<I", data, at)[0]
    for claimed in (size - 8, size + 8, 2**31):
        (tmp_path / "w.npz").write_bytes(data[:at] + struct.pack("<I", claimed) + data[at + 4:])
        refuse("w.npz", "by its header, and has")


def test_torch_files_with_payloads(tmp_path, refuse):
    torch = pytest.importorskip("torch")
    for old in (False, True):
        torch.save({"w": torch.ones(2), "x": system()}, tmp_path / "w.pt", _use_new_zipfile_serialization=not old)
        refuse("w.pt", "wants posix.system.; nothing of it was run")
    torch.save({"w": torch.ones(1).expand(10**6, 10**6)}, tmp_path / "w.pt")
    refuse("w.pt", "larger than the file")
    torch.save({"w": torch.eye(3).to_sparse()}, tmp_path / "w.pt")
    refuse("w.pt", "have it stored dense")
    bomb = [torch.ones(1)]
    for _ in range(50):
        bomb = [bomb, bomb]
    torch.save(bomb, tmp_path / "w.pt")
    refuse("w.pt", "without end")
    archive(tmp_path / "w.pt", [("w/data.pkl", b"0" * 2**22), ("w/version", b"3")], zipfile.ZIP_DEFLATED)
    refuse("w.pt", "more than twice its size")
    torch.save({"w": torch.ones(2)}, tmp_path / "w.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "w.pt").read_bytes()[:-100])
    refuse("cut.pt", "refuses it")
    (tmp_path / "cut.pt").write_bytes(b"no torch file at all")
    refuse("cut.pt", "refuses it")


def test_places_and_names_that_are_not_weights(tmp_path, refuse):
    np.savez(tmp_path / "w.npz", a=np.ones(1))
    for suffix in (".safetensors", ".pkl", ".onnx", ".h5", ""):
        (tmp_path / f"renamed{suffix}").write_bytes((tmp_path / "w.npz").read_bytes())
        refuse(f"renamed{suffix}", "not a whole safetensors|no pickle of protocol|it ends in none of")
    for suffix in files.SUFFIXES:
        (tmp_path / f"empty{suffix}").touch()
        refuse(f"empty{suffix}", "it is empty")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder.npz").mkdir()
    refuse("folder", "a directory without")
    refuse("folder.npz", "a directory without")
    refuse("gone.npz", "there is no such file")
    refuse("gone.npz:key", "there is no such file")
    (tmp_path / "link.npz").symlink_to("gone.npz")
    refuse("link.npz", "no file|No such file")
    refuse("https://x.org/w.npz", "download it first")
    with pytest.raises(UsageError, match="NUL"):
        files.read("w\0.npz")


def test_files_that_may_not_be_read(tmp_path, refuse, monkeypatch):
    np.savez(tmp_path / "w.npz", a=np.ones(1))
    (tmp_path / "w.pkl").write_bytes(pickle.dumps({"a": np.ones(1)}))
    write.safetensors(tmp_path / "w.safetensors", {"a": of(np.ones(1))})
    if os.geteuid():
        for name in ("w.npz", "w.pkl", "w.safetensors"):
            os.chmod(name, 0)
    else:  # to whom nothing is forbidden
        def forbidden(path, *_, **__):
            raise PermissionError(13, "Permission denied", path)
        monkeypatch.setattr("builtins.open", forbidden)
        monkeypatch.setattr("io.open", forbidden)
    for name in ("w.npz", "w.pkl", "w.safetensors"):
        refuse(name, "cannot be read .Permission denied.|not an .npz archive")
