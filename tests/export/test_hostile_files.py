"""Hostile and broken files are refused in one line that names them, and nothing that is in them runs."""
import io
import json
import os
import pickle
import pickletools
import re
import struct
import zipfile

import numpy as np
import pytest

from simclr_jax.errors import UsageError
from simclr_jax.export import files, unpickle, write
from simclr_jax.export.tensors import of


@pytest.fixture
def refuse(tmp_path, monkeypatch):
    """Reads a file, all of it, and holds the refusal to one line; no payload has made its canary, and no file another."""
    monkeypatch.chdir(tmp_path)

    def check(path, match, then=lambda tensors: [t.read() for t in tensors.values()]):
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(UsageError, match=match) as refused:
            then(files.read(path))
        said = str(refused.value)
        assert os.path.basename(path).split(":")[0] in said and "\n" not in said and said.isprintable() and len(said) < 700, said
        assert sorted(tmp_path.rglob("*")) == before and not (tmp_path / "canary").exists()
    return check


class Call:
    """Pickles as a call."""

    def __init__(self, function, *args, state=None):
        self.reduced = (function, args) if state is None else (function, args, state)

    def __reduce__(self):
        return self.reduced


def system():
    return Call(os.system, "touch canary")


PAYLOADS = {
    "os.system": (system, "posix.system"),
    "eval": (lambda: Call(eval, "open('canary', 'w')"), "builtins.eval"),
    "exec": (lambda: Call(exec, "open('canary', 'w')"), "builtins.exec"),
    "open": (lambda: Call(open, "canary", "w"), "open"),
    "getattr": (lambda: Call(getattr, Call(__import__, "os"), "system"), "builtins"),
    "in a key": (lambda: {"a": {"b": [np.ones(3), (1, system())]}}, "posix.system"),
    "as a state": (lambda: Call(np.dtype, "f4", state=system()), "posix.system"),
    "in a shape": (lambda: Call(np.ones(1).__reduce__()[0], np.ndarray, (system(),), b"b"), "posix.system"),
    "another class of array": (lambda: Call(np.ones(1).__reduce__()[0], np.matrix, (0,), b"b"), "class numpy.matrix"),
    "objects": (lambda: np.array([1, "a", None], object), "the type O8"),
    "records": (lambda: np.zeros(2, [("a", "f4")]), "the type V4"),
    "text": (lambda: np.array(["a"]), "the type U1"),
    "a set": (lambda: {1, 2}, "instruction|builtins.set"),
    "a class of its own": (lambda: Call(re.compile, "a"), "re.compile|function re"),
    "numpy's loader": (lambda: Call(np.load, "x.npy"), "function numpy.load"),
    "complex": (lambda: complex(1, 2), "builtins.complex|function"),
}


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("name", PAYLOADS)
def test_a_pickle_that_holds_more_than_arrays(tmp_path, refuse, name, protocol):
    make, match = PAYLOADS[name]
    (tmp_path / "w.pkl").write_bytes(pickle.dumps({"w": np.ones(2), "x": make()}, protocol=protocol))
    refuse("w.pkl", match.replace("builtins", "(builtins|__builtin__)"))


def test_the_payload_is_one(tmp_path, monkeypatch):
    """What the others prove by the canary's absence needs a bird that sings."""
    monkeypatch.chdir(tmp_path)
    pickle.loads(pickle.dumps(system()))
    assert (tmp_path / "canary").exists()


RAW = {  # programs that no pickler writes
    "an old protocol": (b"cos\nsystem\n(S'touch canary'\ntR.", "no pickle of protocol 2"),
    "old instructions": (b"\x80\x02(S'touch canary'\nios\nsystem\n.", "instruction 0x53"),
    "an instance": (b"\x80\x02(U\x0ctouch canaryios\nsystem\n.", "instruction 0x69"),
    "a persistent id": (b"\x80\x02K\x01Q.", "instruction 0x51"),
    "an extension": (b"\x80\x02\x82\x01.", "instruction 0x82"),
    "an object with keywords": (b"\x80\x04\x8c\x02os\x8c\x06system\x93)}\x92.", "instruction 0x92"),
    "an object of a class": (b"\x80\x02cos\nsystem\n)\x81.", "class os.system"),
    "a name made of parts": (b"\x80\x04\x8c\x08builtins\x8c\x0edict.__class__\x93)R.", "builtins.dict.__class__"),
    "attributes of what may be called": (b"\x80\x02cnumpy\ndtype\n(N}U\x08__code__K\x01stb.", "state for what is no array"),
    "items of what may be called": (b"\x80\x02ccollections\nOrderedDict\nU\x01aK\x01s.", "items for what is no dict"),
    "items of an array": (b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87RU\x01aK\x01s.",
                          "items for what is no dict"),
    "a call of an array": (b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R)R.",
                           "call of what is no function"),
    "a call of text": (b"\x80\x02U\x0bnumpy dtype)R.", "call of what is no function"),
    "an encoding that decodes": (b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x03\x00\x00\x00rot\x86R.", "code that bytes"),
    "a huge number": (b"\x80\x02\x8b\x00\x00\x00\x7f.", "number of more than 32 bytes"),
    "a huge text": (b"\x80\x02X\xff\xff\xff\x7fa.", "ends too early"),
    "a huge string": (b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7fa.", "ends too early"),
    "a string of negative length": (b"\x80\x02T\xff\xff\xff\xffa.", "ends too early"),
    "no end": (b"\x80\x02}", "ends too early"),
    "nothing": (b"\x80\x02.", "takes what is not there"),
    "a mark that is missing": (b"\x80\x02e.", "pop from empty list|not there"),
    "memory that is not there": (b"\x80\x02h\x05.", "never had"),
    "a mark as a value": (b"\x80\x02(.", "takes what is not there"),
    "two values": (b"\x80\x02}}.", "more than one object"),
    "a dictionary in itself": (b"\x80\x02}q\x00U\x01ah\x00s.", "without end"),
    "a list in itself": (b"\x80\x02]q\x00h\x00a.", "without end"),
    "a container as a key": (b"\x80\x02}]K\x01s.", "neither a name nor a number"),
    "no arrays": (b"\x80\x02}U\x01aK\x01s.", "no arrays"),
    "two arrays of one name": (pickle.dumps({"a/b": np.ones(1), "a": {"b": np.ones(1)}}), "two arrays named a/b"),
}


@pytest.mark.parametrize("name", RAW)
def test_a_pickle_that_no_pickler_writes(tmp_path, refuse, name):
    program, match = RAW[name]
    (tmp_path / "w.pkl").write_bytes(program)
    refuse("w.pkl", match)


@pytest.mark.parametrize("shape, dtype, data, match", [
    ((2**40, 2**40), "f4", b"0000", "of 4 bytes"), ((-1, -4), "f4", b"0000" * 4, "no possible shape"),
    (("a",), "f4", b"0000", "no possible shape"), ((1.0,), "f4", b"0000", "no possible shape"), ((True,), "f4", b"0000", "no possible"),
    ((3,), "f4", b"0000", "of 4 bytes"), ((1,), "S4", b"0000", "which is no number"), ((1,), "f4,f4", b"0" * 8, "no number"),
    ((1,), "V4", b"0000", "which is no number"), ((1,), "f4", [1], "without its bytes"), ((0, 2**50), "f4", b"", "no possible shape"),
])
def test_a_pickled_array_that_lies_about_itself(tmp_path, refuse, shape, dtype, data, match):
    reconstruct, args, state = np.ones(1, np.float32).__reduce__()
    kind = Call(np.dtype, dtype, False, True)
    (tmp_path / "w.pkl").write_bytes(pickle.dumps({"w": Call(reconstruct, *args, state=(1, shape, kind, False, data))}))
    refuse("w.pkl", match)


def test_a_pickle_of_references_to_references(tmp_path, refuse):
    """2**60 arrays in 300 bytes."""
    bomb = [np.ones(1)]
    for _ in range(60):
        bomb = [bomb, bomb]
    (tmp_path / "w.pkl").write_bytes(pickle.dumps(bomb))
    refuse("w.pkl", "without end")


def test_a_pickle_of_too_many_instructions(tmp_path, refuse, monkeypatch):
    monkeypatch.setattr(unpickle, "INSTRUCTIONS", 100)
    (tmp_path / "w.pkl").write_bytes(b"\x80\x02" + b"N0" * 100 + b"N.")
    refuse("w.pkl", "more than 100 instructions")


def test_every_cut_and_every_changed_byte_of_a_pickle(tmp_path, refuse):
    """Whatever is read is then an array, whatever is not is refused; no other error gets out."""
    data = pickle.dumps({"w": np.ones(3, np.float32), "l": [np.float32(1), (2, "a")]}, protocol=4)
    path = tmp_path / "w.pkl"
    for n in range(1, len(data)):
        path.write_bytes(data[:n])
        refuse("w.pkl", "w.pkl")
    rng = np.random.default_rng(0)
    for _ in range(300):
        changed = bytearray(data)
        for at in rng.integers(2, len(data), rng.integers(1, 4)):
            changed[at] = rng.integers(256)
        path.write_bytes(changed)
        try:
            assert all(isinstance(t.read(), np.ndarray) for t in files.read(path).values())
        except UsageError as e:
            assert "\n" not in str(e)
    assert pickletools.genops(data)  # the unchanged one is a pickle
    path.write_bytes(data)
    assert list(files.read(path)) == ["w", "l/0"]


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
    "nested without end": (stored(b"[" * 200_000), "recursion|JSON"), "a huge integer": (stored(b'{"a": %s}' % (b"9" * 10_000)), "."),
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
    "no entry": (stored({"a": 3}, EIGHT), "no possible shape"), "no offsets": (stored({"a": {"dtype": "F32"}}, EIGHT), "no possible"),
    "a name twice": (stored(b'{"a":' + json.dumps(entry()).encode() + b',"a":' + json.dumps(entry()).encode() + b"}", EIGHT), "a twice"),
    "a name upwards": (stored({"../a": entry()}, EIGHT), r"named '\.\./a'"),
    "a name upwards within": (stored({"a/../../b": entry()}, EIGHT), "which no library writes"),
    "a name upwards of Windows": (stored({"a\\..\\b": entry()}, EIGHT), "which no library writes"),
    "an absolute name": (stored({"/etc/passwd": entry()}, EIGHT), "which no library writes"),
    "a name with a NUL": (stored({"a\0b": entry()}, EIGHT), r"'a\\x00b'"),
    "a name of lines": (stored({"a\nb": entry()}, EIGHT), r"'a\\nb'"), "an escape code": (stored({"\x1b[2J": entry()}, EIGHT), "x1b"),
    "a long name": (stored({"a" * 10**5: entry()}, EIGHT), "aaa"), "no name": (stored({"": entry()}, EIGHT), "named ''"),
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


@pytest.mark.parametrize("file", ["../w.safetensors", "/tmp/w.safetensors", "a/../../w.safetensors", "..\\w.safetensors",
                                  "w\0.safetensors", "w\n.safetensors", "", "..", "w.pkl", 3, None])
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
    refuse("w.pt", "store it dense")
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
