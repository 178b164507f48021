"""Embeddings of a folder: those of the evaluations, each image once, through kills, and of nothing else."""
import os

import ml_collections
import numpy as np
import pytest
from PIL import Image

from simclr_jax import embed
from simclr_jax.data.sources import folder
from simclr_jax.errors import UsageError
from simclr_jax.export import features

VIEW = (("resize", {"size": 12, "method": "bicubic"}), ("center_crop", {"size": 8}))
OF = {"model": "m", "files": "f"}


def pixels(x):
    """A stand-in for a net: what it says depends on every pixel."""
    x = np.asarray(x)
    return np.concatenate([x[:, ::3, ::3].reshape(len(x), -1), x.mean(axis=(1, 2))], axis=1)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder of nine pictures of many sizes and kinds, two broken ones, and what is no picture."""
    root, r = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    names = "b/1.jpg", "b/2.png", "a/x/3.jpeg", "a/4.bmp", "0.png", "z é.webp", "c/5.jpg", "c/6.png", "d/7.gif"
    for i, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(r.integers(0, 256, (12 + 3 * i, 30 - 2 * i, 3), np.uint8)).save(root / name)
    (root / "b" / "cut.jpg").write_bytes((root / "b" / "1.jpg").read_bytes()[:200])
    (root / "no.png").write_bytes(b"no picture")
    (root / "notes.txt").write_text("x")
    return root


def embedded(root):
    return lambda names: embed.of_files(root, names, VIEW, pixels, 1)


def write(out, root, **options):
    said = []
    files, _ = folder.images(root)
    features.write(out, files, options.pop("embed", embedded(root)), options.pop("of", OF), say=said.append, **options)
    with np.load(out) as z:
        return {name: z[name] for name in z.files}, said


def test_embeddings_are_those_of_the_evaluations(tmp_path, images):
    """The same pixels, to the bit, as a folder that `simclr_jax.evals` reads."""
    found, said = write(tmp_path / "f.npz", images, part=4)
    names, _ = folder.images(images)
    data = {"name": "folder", "root": str(images), "split": "train", "max_bad": 0.5}
    config = ml_collections.ConfigDict({"data": data, "augment": {"eval": VIEW}})
    x, _, which = embed.features(config, pixels, 1, split="train")
    np.testing.assert_array_equal(found["embeddings"], x)
    assert found["paths"].tolist() == [names[i] for i in which] == sorted(set(names) - {"b/cut.jpg", "no.png"})
    assert found["unreadable"].tolist() == ["b/cut.jpg", "no.png"] and found["embeddings"].dtype == np.float32
    assert said[-1] == (f"{tmp_path}/f.npz: embeddings of 9 images; 2 cannot be read and are listed in it under "
                        "'unreadable'")
    assert [p.name for p in tmp_path.iterdir()] == ["f.npz"]


@pytest.mark.parametrize("part", [1, 3, 100])
def test_whatever_the_parts(tmp_path, images, part):
    """With parts of one file those that cannot be read are parts without any."""
    found, _ = write(tmp_path / "f.npz", images, part=part)
    whole, _ = embedded(images)(folder.images(images)[0])
    np.testing.assert_array_equal(found["embeddings"], whole)


class Killed(BaseException):
    pass


def test_a_kill_costs_a_part(tmp_path, images):
    calls, real = [], embedded(images)

    def dies(names):
        calls.append(names)
        if len(calls) == 3:
            raise Killed
        return real(names)
    out = tmp_path / "f.npz"
    with pytest.raises(Killed):
        write(out, images, embed=dies, part=3)
    parts = tmp_path / "f.npz.parts"
    assert not out.exists() and sorted(p.name for p in parts.iterdir()) == ["00000.npz", "00001.npz", "run.json"]
    (parts / ".00002.npz.abc").write_bytes(b"half")  # what a kill leaves of a file that is being written
    (parts / "00001.npz").write_bytes((parts / "00001.npz").read_bytes()[:-40])  # and a disk that was not synchronised
    del calls[:]
    found, _ = write(out, images, embed=lambda names: calls.append(names) or real(names), part=3)
    names, _ = folder.images(images)
    assert calls == [names[3:6], names[6:9], names[9:]]
    np.testing.assert_array_equal(found["embeddings"], real(names)[0])
    assert [p.name for p in tmp_path.iterdir()] == ["f.npz"]


def test_a_kill_after_the_last_part(tmp_path, images, monkeypatch):
    out = tmp_path / "f.npz"
    with monkeypatch.context() as m:
        m.setattr(features.shutil, "rmtree", lambda _: exec("raise Killed", globals()))
        with pytest.raises(Killed):
            write(out, images)
    before = out.read_bytes()
    assert (tmp_path / "f.npz.parts").exists()
    write(out, images, embed=None)
    assert out.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["f.npz"]


@pytest.mark.parametrize("other, match", [
    ({"model": "another"}, "parts of another model"), ({"files": "another"}, "another folder, or files"),
    ({"part": 2}, "parts of another run")])
def test_parts_of_another_run_are_refused(tmp_path, images, other, match):
    def dies(names):
        raise Killed
    with pytest.raises(Killed):
        write(tmp_path / "f.npz", images, embed=dies)
    part = other.pop("part", features.PART)
    with pytest.raises(UsageError, match=match) as refused:
        write(tmp_path / "f.npz", images, of=OF | other, part=part)
    assert "\n" not in str(refused.value) and not (tmp_path / "f.npz").exists()


def test_identity_is_of_the_model_and_of_the_files(tmp_path, images):
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(b"weights")
    files, _ = folder.images(images)
    first = features.identity(model, images, files)
    assert first == features.identity(model, images, files)
    (model / "model.safetensors").write_bytes(b"weightz")
    assert features.identity(model, images, files)["model"] != first["model"]
    assert features.identity(model, images, files[1:])["files"] != first["files"]
    stat = (images / files[0]).stat()
    os.utime(images / files[0], ns=(stat.st_atime_ns, stat.st_mtime_ns + 10**9))
    assert features.identity(model, images, files)["files"] != first["files"]
    assert features.identity(model, images, [*files, "gone.png"])["files"] != first["files"]


def test_refusals(tmp_path, images):
    files, _ = folder.images(images)
    (tmp_path / "there.npz").write_text("mine")
    (tmp_path / "way.npz.parts").mkdir()
    (tmp_path / "way.npz.parts" / "mine").write_text("mine")
    (tmp_path / "file").write_text("")
    nan = lambda names: (np.full((len(names), 2), np.nan, np.float32), np.arange(len(names)))
    for out, names, function, match in [
            ("f.txt", files, embedded(images), "wanted a name that ends in .npz"),
            ("f.npz", [], embedded(images), "no images"), ("there.npz", files, embedded(images), "is there already"),
            ("way.npz", files, embedded(images), "in the way"),
            ("file/f.npz", files, embedded(images), "cannot be made"),
            ("nan.npz", files, nan, "embedding of 0.png .and 10 more."),
            ("bad.npz", ["no.png"], embedded(images), "none of the 1 images can be read, the first being no.png")]:
        with pytest.raises(UsageError, match=match) as refused:
            features.write(tmp_path / out, names, function, OF, say=print)
        assert "\n" not in str(refused.value) and not (tmp_path / out).exists() or out == "there.npz"
    assert (tmp_path / "there.npz").read_text() == (tmp_path / "way.npz.parts" / "mine").read_text() == "mine"


def test_names_that_are_no_text_come_back(tmp_path):
    name = os.fsdecode(b"caf\xe9.png")
    ones = lambda names: (np.ones((1, 2), np.float32), np.arange(1))
    features.write(tmp_path / "f.npz", [name], ones, OF, say=lambda _: None)
    with np.load(tmp_path / "f.npz") as z:
        assert z["paths"].tolist() == [name] and z["unreadable"].shape == (0,)
