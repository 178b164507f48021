"""Every format gives the arrays that went in, by their names and types, one at a time."""
import collections
import json
import pickle
import sys
import types
import zipfile

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from simclr_jax.errors import UsageError
from simclr_jax.export import _pickled, files, write
from simclr_jax.export.tensors import of

r = np.random.default_rng(0)
ARRAYS = {
    "net/conv/w": r.standard_normal((3, 2, 5)).astype(np.float32), "net/conv/b": np.arange(4, dtype=np.float16),
    "net/half": np.arange(6, dtype=ml_dtypes.bfloat16).reshape(2, 3), "net/scale": np.asarray(2.5, np.float32),
    "large": r.standard_normal(700), "ids": np.arange(3), "mask": np.array([True, False]),
    "none": np.zeros((0, 3), np.float32), "columns": np.asfortranarray(r.standard_normal((3, 4)).astype(np.float32)),
}


def nested(arrays):
    tree = {}
    for name, x in arrays.items():
        *path, last = name.split("/")
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node[last] = x
    return tree


def same(tensors, arrays):
    assert list(tensors) == list(arrays)
    for name, x in arrays.items():
        tensor = tensors[name]
        read = tensor.read()
        assert (tensor.shape, tensor.dtype) == (read.shape, read.dtype) == (x.shape, x.dtype.newbyteorder("=")), name
        assert read.tobytes() == x.astype(x.dtype.newbyteorder("="), copy=False).tobytes(), name
        assert read.flags.c_contiguous, name


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz(tmp_path, save):
    arrays = ARRAYS | {"big": np.arange(3, dtype=">i4")}
    save(tmp_path / "w.npz", **arrays)
    same(files.read(tmp_path / "w.npz"), arrays)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickle_of_nested_containers(tmp_path, protocol):
    arrays = ARRAYS | {"big": np.arange(3, dtype=">i4")}
    tree = nested(arrays) | {
        "step": 7, "name": "resnet", "lr": 0.1, "nothing": None, "list": [{"x": ARRAYS["ids"]}, "y"], "long": 2**70,
        "tuple": (1, (ARRAYS["mask"],)), "ordered": collections.OrderedDict(x=np.float64(3))}
    (tmp_path / "w.pkl").write_bytes(pickle.dumps(tree, protocol=protocol))
    same(files.read(tmp_path / "w.pkl"), arrays | {"list/0/x": ARRAYS["ids"], "tuple/1/0": ARRAYS["mask"],
                                                   "ordered/x": np.asarray(3.0)})


def test_pickle_of_jax_arrays(tmp_path):
    (tmp_path / "w.pkl").write_bytes(pickle.dumps({"a": jnp.ones((2, 3)), "b": jnp.ones(2, jnp.bfloat16)}))
    same(files.read(tmp_path / "w.pkl"), {"a": np.ones((2, 3), np.float32), "b": np.ones(2, ml_dtypes.bfloat16)})


class Put:
    """Pickles as a call of a function of a library that need not be there, `dill` and Haiku here."""

    def __init__(self, module, name, *args):
        self.function, self.args = types.FunctionType((lambda *_: None).__code__, {}, name), args
        self.function.__module__, self.function.__qualname__ = module, name

    def __reduce__(self):
        return self.function, self.args


class New:
    """Pickles as the creation of an object of a class that a `Put` made."""

    def __init__(self, kind, *args):
        self.kind, self.args = kind, args


class Pickler(pickle._Pickler):
    def save_global(self, obj, name=None):
        self.write(b"c" + f"{obj.__module__}\n{obj.__qualname__}\n".encode())
        self.memoize(obj)

    def save_new(self, obj):
        self.save(obj.kind)
        self.save(obj.args)
        self.write(pickle.NEWOBJ)
    dispatch = pickle._Pickler.dispatch | {New: save_new, types.FunctionType: save_global}


def test_pickle_as_byol_has_it(tmp_path):
    """A dict with a named tuple of Haiku's mappings, by dill in protocol 2, as byol/utils/checkpointing.py saves it."""
    fields = "online_params", "online_state", "opt_state"
    state = Put("dill._dill", "_create_namedtuple", "_ByolExperimentState", fields, "byol.byol_experiment")
    trace = Put("dill._dill", "_create_namedtuple", "TraceState", ("trace",), "optax._src.transform")
    mapping = lambda tree: Put("haiku._src.data_structures", "FlatMapping", tree)
    w, mean = ARRAYS["net/conv/w"], ARRAYS["large"]
    online = mapping({"res_net50/~/initial_conv": {"w": w}}), mapping({"res_net50/~/bn/~/mean_ema": {"average": mean}})
    tree = {"experiment_state": New(state, *online, (New(trace, {"w": w}), ())),
            "step": 300_000, "rng": np.array([1, 2], np.uint32)}
    with open(tmp_path / "byol.pkl", "wb") as f:
        Pickler(f, protocol=2).dump(tree)
    part = "experiment_state/online_params"
    same(files.read(f"{tmp_path}/byol.pkl:{part}"), {"res_net50/~/initial_conv/w": w})
    assert list(files.read(tmp_path / "byol.pkl")) == [
        f"{part}/res_net50/~/initial_conv/w", "experiment_state/online_state/res_net50/~/bn/~/mean_ema/average",
        "experiment_state/opt_state/0/trace/w", "rng"]


def test_pickle_of_an_older_numpy_and_of_python_2(tmp_path):
    data = pickle.dumps({"a": ARRAYS["net/conv/w"]}, protocol=2).replace(b"cnumpy._core.", b"cnumpy.core.")
    (tmp_path / "w.pkl").write_bytes(data)
    same(files.read(tmp_path / "w.pkl"), {"a": ARRAYS["net/conv/w"]})
    # {"a": array([1., 2.])} of Python 2, whose str is bytes.
    raw = np.array([1, 2], "<f8").tobytes()
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    kind = b"cnumpy\ndtype\nU\x02f8K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    state = b"(K\x01K\x02\x85" + kind + b"\x89U\x10" + raw + b"tb"
    (tmp_path / "2.pkl").write_bytes(b"\x80\x02}U\x01a" + array + state + b"s.")
    same(files.read(tmp_path / "2.pkl"), {"a": np.array([1.0, 2.0])})


def test_safetensors_of_the_library(tmp_path):
    arrays = {name: x for name, x in ARRAYS.items() if name not in ("columns", "net/half")}  # which it saves otherwise
    safetensors.numpy.save_file(arrays, tmp_path / "w.safetensors", {"format": "np"})
    found = files.read(tmp_path / "w.safetensors")
    same({name: found[name] for name in arrays}, arrays)
    assert files.metadata(tmp_path / "w.safetensors") == {"format": "np"} and len(found) == len(arrays)


def test_safetensors_in_a_directory_and_in_shards(tmp_path):
    write.safetensors(tmp_path / "model.safetensors", {"a": of(np.ones(2))})
    same(files.read(tmp_path), {"a": np.ones(2)})
    for n, name in enumerate("ab"):
        write.safetensors(tmp_path / f"{n}.safetensors", {name: of(np.full(2, n))})
    index = {"metadata": {}, "weight_map": {"b": "1.safetensors", "a": "0.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    same(files.read(tmp_path), {"b": np.ones(2, int), "a": np.zeros(2, int)})
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "1.safetensors").rename(tmp_path / "elsewhere" / "x")
    (tmp_path / "1.safetensors").symlink_to("elsewhere/x")  # as caches of model hubs have them
    same(files.read(tmp_path), {"b": np.ones(2, int), "a": np.zeros(2, int)})


def test_tensorflow_checkpoints(tmp_path):
    import tensorflow as tf
    wanted = {"base_model/conv2d/kernel": ARRAYS["net/conv/w"], "half": ARRAYS["net/half"], "step": ARRAYS["ids"]}
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        for name, x in wanted.items():
            tf.compat.v1.get_variable(name, initializer=x)
        session.run(tf.compat.v1.global_variables_initializer())
        tf.compat.v1.train.Saver().save(session, str(tmp_path / "model.ckpt-10"))
    # Directories get moved: `checkpoint` names a place that is not there.
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "/gone/model.ckpt-10"\n')
    for path in (tmp_path, tmp_path / "model.ckpt-10", tmp_path / "model.ckpt-10.index"):
        same(files.read(path), wanted)
    same(files.read(f"{tmp_path}/model.ckpt-10:base_model"), {"conv2d/kernel": ARRAYS["net/conv/w"]})
    (tmp_path / "model.ckpt-10.data-00000-of-00001").write_bytes(b"\0" * 10)
    with pytest.raises(UsageError, match="data files have 10 bytes; it is damaged"):
        files.read(tmp_path)


@pytest.mark.parametrize("old", [False, True])
def test_torch(tmp_path, old):
    torch = pytest.importorskip("torch")
    arrays = {"conv.weight": ARRAYS["net/conv/w"], "half": ARRAYS["net/half"], "step": np.asarray(3),
              "turned": ARRAYS["columns"], "parameter": np.ones(2, np.float32)}
    state = {"conv.weight": torch.from_numpy(ARRAYS["net/conv/w"]), "half": torch.arange(6).bfloat16().reshape(2, 3),
             "step": torch.tensor(3), "turned": torch.from_numpy(np.ascontiguousarray(ARRAYS["columns"].T)).t(),
             "parameter": torch.nn.Parameter(torch.ones(2))}
    torch.save({"teacher": state, "epoch": 3}, tmp_path / "w.pth.tar", _use_new_zipfile_serialization=not old)
    same(files.read(f"{tmp_path}/w.pth.tar:teacher"), arrays)
    same(files.read(tmp_path / "w.pth.tar"), {f"teacher.{name}": x for name, x in arrays.items()})


@pytest.mark.parametrize("version", [None, "1.13.1", "2.5.1", "2.6.0+cu124", "2.9.1"])
def test_torch_that_is_not_there_or_has_holes_is_refused(tmp_path, monkeypatch, version):
    monkeypatch.setitem(sys.modules, "torch", version and types.SimpleNamespace(__version__=version))
    (tmp_path / "w.pt").write_bytes(b"PK")
    with pytest.raises(UsageError, match=r"pip install 'torch>=2.10'") as refused:
        files.read(tmp_path / "w.pt")
    assert "\n" not in str(refused.value) and (version is None or version in str(refused.value))


def test_a_part_that_is_not_there_is_refused_with_what_is(tmp_path):
    np.savez(tmp_path / "w.npz", **{"teacher/w": np.ones(1), "student/w": np.ones(1)})
    same(files.read(f"{tmp_path}/w.npz:teacher"), {"w": np.ones(1)})
    write.safetensors(tmp_path / "w.safetensors", {"vision.w": of(np.ones(1)), "text.w": of(np.ones(2))})
    same(files.read(f"{tmp_path}/w.safetensors:vision"), {"w": np.ones(1)})
    with pytest.raises(UsageError, match="no arrays below 'teach'; it has teacher, student$"):
        files.read(f"{tmp_path}/w.npz:teach")


def test_only_what_is_asked_for_is_read(tmp_path):
    """The other tensors' bytes are overwritten after opening: those that were asked for first are the old ones."""
    arrays = {"a": np.zeros(1000), "b": np.zeros(1000)}
    np.savez(tmp_path / "w.npz", **arrays)
    write.safetensors(tmp_path / "w.safetensors", {name: of(x) for name, x in arrays.items()})
    for name in ("w.npz", "w.safetensors"):
        tensors = files.read(tmp_path / name)
        assert not tensors["a"].read().any()
        data = bytearray((tmp_path / name).read_bytes())
        at = data.rindex(bytes(8000))
        data[at:at + 8000] = np.ones(1000).tobytes()
        (tmp_path / name).write_bytes(data)
        if name == "w.safetensors":
            assert tensors["b"].read().all()
        else:
            with pytest.raises(UsageError, match="w.npz: Bad CRC-32"):
                tensors["b"].read()
        assert not tensors["a"].read().any()


def test_members_of_an_archive_may_be_longer_than_a_piece(tmp_path):
    x = r.standard_normal(300_000)
    with zipfile.ZipFile(tmp_path / "w.npz", "w", zipfile.ZIP_DEFLATED) as z, z.open("x.npy", "w") as f:
        np.save(f, x)
    same(files.read(tmp_path / "w.npz"), {"x": x})


def test_weights_that_are_not_finite_are_refused_when_read():
    bad = np.ones((2, 3), ml_dtypes.bfloat16)
    bad[0, 1], bad[1, 2] = np.nan, np.inf
    tensors = files.check_finite({"good": of(np.ones(3)), "ids": of(np.arange(3)), "bad": of(bad)}, "w.npz")
    assert tensors["good"].read().all() and tensors["ids"].read().any()
    with pytest.raises(UsageError, match="^w.npz: bad holds 2 of 6 numbers that are NaN or infinite"):
        tensors["bad"].read()


def test_the_unpickler_knows_nothing_that_runs():
    modules = {name.split()[0].split(".")[0] for name in _pickled.CALLS}
    assert modules == {"numpy", "_codecs", "__builtin__", "builtins", "collections", "jax", "dill", "haiku", "flax"}
    assert all(rule.__module__ == "simclr_jax.export._pickled" for rule in _pickled.CALLS.values())
