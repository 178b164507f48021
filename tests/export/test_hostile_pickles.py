"""Of a pickle come arrays and containers or a refusal in one line; nothing that is in it runs."""
import os
import pickle
import re

import numpy as np
import pytest

from hostile import Call, refuse, system  # noqa: F401
from simclr_jax.errors import UsageError
from simclr_jax.export import files, unpickle


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


@pytest.mark.scorecard(43)
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


ARRAY = b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
RAW = {  # programs that no pickler writes
    "an old protocol": (b"cos\nsystem\n(S'touch canary'\ntR.", "no pickle of protocol 2"),
    "old instructions": (b"\x80\x02(S'touch canary'\nios\nsystem\n.", "instruction 0x53"),
    "an instance": (b"\x80\x02(U\x0ctouch canaryios\nsystem\n.", "instruction 0x69"),
    "a persistent id": (b"\x80\x02K\x01Q.", "instruction 0x51"),
    "an extension": (b"\x80\x02\x82\x01.", "instruction 0x82"),
    "an object with keywords": (b"\x80\x04\x8c\x02os\x8c\x06system\x93)}\x92.", "instruction 0x92"),
    "an object of a class": (b"\x80\x02cos\nsystem\n)\x81.", "class os.system"),
    "a name made of parts": (b"\x80\x04\x8c\x08builtins\x8c\x0edict.__class__\x93)R.", "builtins.dict.__class__"),
    "attributes of what may be called": (b"\x80\x02cnumpy\ndtype\n(N}U\x08__code__K\x01stb.", "for what is no array"),
    "items of what may be called": (b"\x80\x02ccollections\nOrderedDict\nU\x01aK\x01s.", "items for what is no dict"),
    "items of an array": (ARRAY + b"U\x01aK\x01s.", "items for what is no dict"),
    "a call of an array": (ARRAY + b")R.", "call of what is no function"),
    "a call of text": (b"\x80\x02U\x0bnumpy dtype)R.", "call of what is no function"),
    "an encoding that decodes": (b"\x80\x04c_codecs\nencode\n\x8c\x01a\x8c\x05rot13\x86R.", "code that bytes"),
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
    (("a",), "f4", b"0000", "no possible shape"), ((1.0,), "f4", b"0000", "no possible shape"),
    ((True,), "f4", b"0000", "no possible shape"),
    ((3,), "f4", b"0000", "of 4 bytes"), ((1,), "S4", b"0000", "which is no number"),
    ((1,), "f4,f4", b"0" * 8, "which is no number"),
    ((1,), "V4", b"0000", "which is no number"), ((1,), "f4", [1], "without its bytes"),
    ((0, 2**50), "f4", b"", "no possible shape"),
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
    path.write_bytes(data)
    assert list(files.read(path)) == ["w", "l/0"]
