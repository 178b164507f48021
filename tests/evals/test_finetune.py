"""Fine-tuning: what is trained, on what, by which recipe; and that it is worth it."""
import jax
import numpy as np
import pytest

from runs import ROOT
from simclr_jax import augment, build, config as configs, data, tuning
from simclr_jax.data.source import of_arrays
from simclr_jax.errors import UsageError
from simclr_jax.evals import draws, finetune

NAMES = "stem/kernel", "stack/block1/mlp/fc1/kernel"


def test_the_recipe_follows_the_net_and_the_share():
    few, tenth, everything = (finetune.plan(NAMES[:1], n, share, multiple=1) for n, share in
                              ((12_812, 0.01), (128_117, 0.1), (1_281_167, 1.0)))
    assert [p.steps for p in (few, tenth, everything)] == [12_012, 60_055, 600_548]  # 60, 30 and 30 epochs of 64
    assert few.optim == dict(name="sgd", lr=0.05, nesterov=True, weight_decay=0.0, warmup_epochs=0.0, scaling="linear",
                             schedule="cosine")
    assert finetune.plan(NAMES, 1000, 1.0, multiple=1).optim["name"] == "adamw"
    assert finetune.plan(NAMES[:1], 10, 0.01, multiple=1).steps == finetune.LEAST
    assert finetune.plan(NAMES[:1], 10, 0.01, multiple=6).batch == 66  # every device gets as many rows
    asked = finetune.plan(NAMES[:1], 100, 1.0, multiple=1, lr=0.3, epochs=0.5, batch=8)
    assert (asked.batch, asked.steps, asked.optim["lr"]) == (8, 7, 0.3)


@pytest.mark.parametrize("recipe, want", [
    ("simclr_folder.py", [("random_resized_crop", 64), ("flip", None), ("clip", None)]),
    ("simclr_digits.py", [("resize", 8)]),
    ("dino_imagenet.py", [("random_resized_crop", 224), ("flip", None), ("normalize", None)]),
    ("lit.py", [("resize", 224), ("normalize", None)]),
])
def test_crops_and_flips_are_kept_of_a_recipe_and_nothing_else(recipe, want):
    config = configs.load(f"{ROOT}/configs/{recipe}")
    [view] = augment.light(config.augment.views, config.augment.eval)
    assert [(name, kwargs.get("size")) for name, kwargs in view] == want


def test_views_come_at_the_size_and_with_the_normalisation_of_evaluation():
    config = configs.load(f"{ROOT}/configs/simclr_folder.py")
    other = (("resize", dict(size=70, shorter=True)), ("center_crop", dict(size=56)),
             ("normalize", dict(mean=(0.5,) * 3, std=(0.2,) * 3)))
    [view] = augment.light(config.augment.views, other)
    assert view[0][0] == "random_resized_crop" and view[0][1]["size"] == 56 and view[-1] == other[-1]
    [view] = augment.light([[*other[:2]]], [("resize", dict(size=24))])
    assert view == (("resize", dict(size=24)),)  # a chain of sizes is not bent; the evaluation's is taken


def test_a_share_is_drawn_alike_from_every_class_and_at_least_one():
    y = np.repeat([0, 1, 2], [100, 60, 8])
    fit, val = draws.holdout(y)
    for wanted, counts in (("10%", [6, 6, 6]), ("0.1%", [1, 1, 1]), ("50%", [28, 28, 6])):
        sets = draws.rows(y, fit, wanted, draws=3)
        assert len(sets) == 3 and all(list(np.bincount(y[s])) == counts for s in sets)
        assert not any(np.isin(s, val).any() for s in sets)
    assert [len(s) for s in draws.rows(y, fit, "all", draws=3)] == [168]
    for wrong in ("0%", "81%", "-1%", "x%"):
        with pytest.raises(UsageError, match="wanted a share above 0 and up to 80%"):
            draws.rows(y, fit, wrong)


def pictures(split, flipped):
    """Dark and bright noise; with `flipped`, test images have the other's label."""
    r = np.random.default_rng(["train", "test"].index(split))
    y = np.arange(24) % 2
    x = r.integers(0, 100, (24, 8, 8, 3)) + 150 * y[:, None, None, None]
    return of_arrays(x.astype(np.uint8), 1 - y if flipped and split == "test" else y, classes=("dark", "bright"))


@pytest.fixture
def small(monkeypatch):
    """(config, weights of its untrained net, the states that were tested), on pictures of our own."""
    config = configs.fill(configs.load(f"{ROOT}/configs/simclr_digits.py")).copy_and_resolve_references().unlock()
    config.nets.backbone.channels = (4,)
    net = build.nets(config, axis=None)["backbone"]
    params, stats = net.init(jax.random.key(0), jax.ShapeDtypeStruct((1, 8, 8, 3), np.float32))
    monkeypatch.setattr(build, "source", lambda config, split: pictures(split, config.get("flipped", False)))
    states, embedder = [], build.embedder
    monkeypatch.setattr(build, "embedder", lambda method, *state: (states.append(jax.tree.map(np.asarray, state)),
                                                                  embedder(method, *state))[1])
    return config, tuning.Weights(*jax.tree.map(np.asarray, (params, stats))), states


def test_all_of_the_net_learns_and_from_the_training_split_alone(small, capsys):
    config, weights, states = small
    config.flipped = True
    [record] = tuning.run(config, {"tiny": weights}, ["all"], step=7, draws=3, seed=0, lr=0.5, epochs=10.0, batch=8)
    # The test split names each picture by the other's class: had any of it been trained on, some would be right.
    assert record["accuracy"] == 0.0 and record["chance"] == 0.5
    assert record | dict(eval="finetune", features="tiny", labels_per_class="all", share=1.0, n_train=24, n_test=24,
                         step=7, steps=30, batch=8, optimiser="sgd", draws=1, epochs=10.0) == record
    [(params, extra)] = states
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), (weights.params, weights.stats),
                         (params["backbone"], extra["stats"]["backbone"]))
    assert all(jax.tree.leaves(moved)) and len(jax.tree.leaves(moved)) > 3  # kernels, norms and running statistics


@pytest.mark.slow
def test_one_device_and_two_learn_the_same(small, monkeypatch):
    config, weights, states = small
    every = jax.local_devices
    for count in (1, 2):
        monkeypatch.setattr(jax, "local_devices", lambda n=count, **given: every(**given)[:n])
        [record] = tuning.run(config, {"tiny": weights}, [4], step=0, draws=1, seed=0, lr=0.5, epochs=40.0, batch=8)
        assert record["accuracy"] == 1.0 and record["n_train"] == 8 and record["labels_per_class"] == 4
    one, two = states
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), one, two)


def test_what_cannot_be_tuned_on_is_refused_in_one_line(small, monkeypatch):
    config, weights, _ = small
    for labels, says in ((np.full(24, -1), "24 of 24 examples without a label"), (np.zeros(24, int), "1 classes")):
        monkeypatch.setattr(data, "labels", lambda source: labels)
        with pytest.raises(UsageError, match=says) as e:
            tuning.run(config, {"tiny": weights}, ["all"], step=0, draws=1, seed=0)
        assert "\n" not in str(e.value)
