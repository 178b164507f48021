"""Augmentation on the host or on the device, in pieces or not, on any number of devices: the same views, the same run."""
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from configs.common import recipes
from runs import ROOT, SMALL, numbers, train
from simclr_jax import augment, build, config as configs, dist, names
from simclr_jax.train.state import init_state
from simclr_jax.train.step import make_step
from simclr_jax.types import Net

SMALL_CROP = ("random_resized_crop", dict(size=6, area=(0.05, 0.3)))


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("host")
    train(workdir, "--config.augment.where=host")
    return workdir


def close(got, want, rtol):
    for a, b in zip(numbers(got), numbers(want), strict=True):
        np.testing.assert_allclose(a["train/loss"], b["train/loss"], rtol=rtol)


def test_a_run_is_the_same_with_views_made_on_the_host_or_on_the_device(host, tmp_path):
    train(tmp_path, "--config.augment.where=device")
    close(tmp_path, host, rtol=1e-3)
    assert len({round(row["train/loss"], 5) for row in numbers(tmp_path)}) == 6


@pytest.mark.slow
@pytest.mark.parametrize("more", [["--config.devices=1"], ["--config.devices=8"]], ids=str)
def test_any_number_of_devices_trains_the_same_with_views_made_there(host, tmp_path, more):
    train(tmp_path, "--config.augment.where=device", *more)
    close(tmp_path, host, rtol=1e-3)


@pytest.mark.slow
def test_pictures_of_a_folder_train_the_same_with_pixel_ops_on_either_side(tmp_path):
    """Crops are bytes on their way to the device: views are half a level off at most, times the gain of `intensity`, and
    the loss of the first step is near. Threads change nothing, either way."""
    from PIL import Image
    rng = np.random.default_rng(0)
    (tmp_path / "pictures").mkdir()
    for i in range(24):
        Image.fromarray(rng.integers(0, 256, (12 + i % 5, 14, 3), np.uint8)).save(tmp_path / "pictures" / f"{i:02}.png")
    more = ["--config.data.name=folder", f"--config.data.root={tmp_path / 'pictures'}", "--config.batch=16"]
    config, _ = configs.parse(["train", f"--config={ROOT}/configs/simclr_digits.py", *SMALL, *more])
    source, recipe = build.source(config), build.recipe(config)
    host, device = (build.feed(config, source, recipe, where=where) for where in ("host", "device"))
    finish = jax.jit(augment.make(recipe, config.seed))
    for _ in range(4):
        a, raw = next(host), next(device)
        assert raw["views"].dtype == np.uint8 and np.array_equal(a["id"], raw["id"])
        off = np.abs(a["views"] - finish(raw)["views"])
        assert 0 < off.max() < 1.4 * 0.5 / 255 + 5e-5
    for where in ("host", "device"):
        train(tmp_path / where, f"--config.augment.where={where}", *more)
        train(tmp_path / "again" / where, f"--config.augment.where={where}", "--config.augment.workers=1", *more)
        assert numbers(tmp_path / where) == numbers(tmp_path / "again" / where)
    first = [numbers(tmp_path / where)[0]["train/loss"] for where in ("host", "device")]
    np.testing.assert_allclose(*first, rtol=1e-3)


def test_threads_may_change_in_a_run_and_places_only_if_allowed():
    def parsed(*more):
        return configs.plain(configs.parse(["train", f"--config={ROOT}/configs/simclr_digits.py", *more])[0])
    assert configs.changes(parsed(), parsed("--config.augment.workers=3")) == []
    assert configs.changes(*(parsed(f"--config.augment.where={where}") for where in ("host", "device"))) == [
        'augment.where: "host" -> "device"']


# The step, on images that the recipe has yet to crop.

def dense(width):
    """A net without batch statistics, so that pieces of a batch know nothing of each other."""
    def init(key, x):
        return {"kernel": 0.1 * jax.random.normal(key, (int(np.prod(x.shape[1:])), width))}, {}

    def apply(params, stats, x, *, train, key=None, mask=None):
        return {"pooled": jnp.tanh(x.reshape(len(x), -1) @ params["kernel"])}, stats
    return Net(init, apply)


def images(n):
    ids = np.stack([np.arange(n) + 100, np.full(n, 2)], axis=1).astype(np.uint32)
    return {"image": np.random.default_rng(0).integers(0, 256, (n, 14, 12, 3), np.uint8), "id": ids,
            "label": np.zeros(n, np.int32)}


def stepped(mesh, microbatches=1, on_device=True, steps=3):
    recipe = augment.build(recipes.simclr_linear(8) * 2)
    method = names.make("methods", dict(name="simclr", temperature=0.3), {"backbone": dense(12), "projector": dense(6)})
    make, batch, tx = augment.make(recipe, 5), images(16), optax.sgd(0.5)
    views = jax.jit(make)(batch)
    state = init_state(method, tx, mesh, views, seed=0)
    step = make_step(method, tx, mesh, seed=0, microbatches=microbatches, **(dict(augment=make) if on_device else {}))
    losses = []
    for _ in range(steps):
        state, metrics = step(state, dist.place_batch(batch if on_device else jax.tree.map(np.asarray, views), mesh))
        losses.append(float(metrics["loss"]))
    return losses, jax.tree.map(np.asarray, (state.params, state.opt_state))


@pytest.fixture(scope="module")
def of_the_host():
    return stepped(dist.make_mesh({"data": 1}, jax.devices()[:1]), on_device=False)


@pytest.mark.parametrize("devices,microbatches", [
    (8, 2), *(pytest.param(*how, marks=pytest.mark.slow) for how in ((1, 1), (1, 4), (2, 2), (8, 1)))])
def test_steps_that_augment_are_those_on_finished_views(of_the_host, mesh, devices, microbatches):
    """whole or in micro-batches, of which each is augmented when it is forwarded, and again when it is pulled back."""
    losses, params = stepped(mesh(devices), microbatches)
    np.testing.assert_allclose(losses, of_the_host[0], rtol=1e-5)
    assert losses[0] > losses[2]
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(of_the_host[1]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


VIEWS = {"crop": recipes.simclr_linear(8), "digits": recipes.digits(8), "siglip": recipes.siglip(16),
         "simclr": recipes.simclr(16), "byol": recipes.byol(16),
         "multi-crop": recipes.simclr_linear(12) * 2 + ((SMALL_CROP, ("flip", {})),) * 2}


@pytest.mark.parametrize("name", [n if n in ("crop", "siglip") else pytest.param(n, marks=pytest.mark.slow)
                                  for n in VIEWS])
def test_views_do_not_depend_on_the_number_of_devices(name, mesh):
    """bit for bit, also where a device has one row alone."""
    make, batch = augment.make(augment.build(VIEWS[name]), 5), images(8)

    def on(n):
        spread = jax.jit(jax.shard_map(make, mesh=mesh(n), in_specs=P("data"), out_specs=P("data")))
        return jax.tree.map(np.asarray, spread(dist.place_batch(batch, mesh(n))))
    made = {n: on(n) for n in (1, 2, 8)}
    for n in (2, 8):
        for key in made[1]:
            np.testing.assert_array_equal(made[n][key], made[1][key], err_msg=f"{key} on {n} devices")


@pytest.mark.parametrize("process", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_processes_feed_their_rows_of_the_same_batch(process):
    """from build.feed, on the host and for the device."""
    config, _ = configs.parse(["train", f"--config={ROOT}/configs/simclr_digits.py", *SMALL])
    source, recipe, rows = build.source(config), build.recipe(config), slice(32 * process, 32 * process + 32)
    f = jax.jit(augment.make(recipe, config.seed))
    feeds = {w: build.feed(config, source, recipe, process=(process, 2), where=w) for w in ("host", "device")}
    whole = build.feed(config, source, recipe, where="host")
    for _ in range(2):
        got, raw, want = next(feeds["host"]), next(feeds["device"]), next(whole)
        assert raw["image"].dtype == np.uint8 and raw["image"].shape == (32, 8, 8, 3)
        assert want["views"].shape == (64, 2, 8, 8, 3) and got.keys() == want.keys() == f(raw).keys()
        for key in got:
            np.testing.assert_array_equal(got[key], want[key][rows])
            np.testing.assert_array_equal(f(raw)[key], want[key][rows])
    for feed in (whole, *feeds.values()):
        feed.close()


WITHOUT = """
import sys
sys.modules["tensorflow"] = None  # importing it fails
from simclr_jax.train.__main__ import main
main(sys.argv)
loaded = {m.split(".")[0] for m, there in sys.modules.items() if there}
assert not {"tensorflow", "tensorflow_datasets", "torch"} & loaded, loaded
try:
    import tensorflow
except ImportError:
    print("trained without")
"""


@pytest.mark.slow
@pytest.mark.parametrize("where", ["host", "device"])
def test_images_of_one_size_train_without_tensorflow(where, tmp_path):
    """and are evaluated, and drawn."""
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    more = [f"--config.augment.where={where}", "--config.evals.every=3", "--config.pictures=true"]
    done = subprocess.run([sys.executable, "-c", WITHOUT, f"--config={ROOT}/configs/simclr_digits.py",
                           f"--workdir={tmp_path / 'run'}", *SMALL, *more], cwd=ROOT, env=environment, timeout=300,
                          capture_output=True, text=True)
    assert done.returncode == 0 and "trained without" in done.stdout, done.stderr
    assert [row["step"] for row in numbers(tmp_path / "run") if "eval/knn" in row] == [3, 6]
    assert {p.name for p in (tmp_path / "run" / "images").iterdir()} >= {"views.png", "loss.png"}
