"""What a vision transformer looks at: the shares against their formula, the picture, the command."""
import jax
import numpy as np
import pytest

from evals.test_from_dir import COMMAND, write
from nets import weights
from runs import ROOT
from simclr_jax.errors import UsageError
from simclr_jax.evals import attention
from simclr_jax.evals.__main__ import main as evaluate
from simclr_jax.nets import vit
from simclr_jax.train.__main__ import main as train

TINY = dict(patch=4, image=16, width=8, depth=2, heads=2)
IMAGES = np.random.default_rng(0).random((3, 16, 8, 3), np.float32)  # a grid of 4 x 2, not that of the positions
PREFIX = {"cls": 3, "mean": 3, "map": 2}  # class token, if any, and two registers


def net(pool, **more):
    return vit.make(**TINY, registers=2, pool=pool, class_token=pool != "map", **more)


def by_hand(net, params, pool):
    """f64[n,heads,N], head by head and row by row, from what goes into the last attention."""
    name = "norm" if pool == "map" else "stack/block2/norm1"
    x = np.asarray(jax.jit(lambda p: net.layers(p, {}, IMAGES, [name])[name])(params), np.float64)
    part = params["pool" if pool == "map" else "stack"]
    part = part if pool == "map" else part["block2"]["attention"]
    dense = lambda x, at: x @ np.asarray(part[at]["kernel"], np.float64) + np.asarray(part[at]["bias"], np.float64)
    out = np.zeros((len(x), 2, x.shape[1]))
    for i, tokens in enumerate(x):
        if pool == "map":
            q, k = dense(np.asarray(part["probe"]["embedding"]), "q"), dense(tokens, "kv")[:, :8]
        else:
            qkv = dense(tokens, "qkv")
            q, k = qkv[3:, :8] if pool == "mean" else qkv[:1, :8], qkv[:, 8:16]
        for h in (0, 1):
            for row in q[:, 4 * h:4 * h + 4]:
                e = np.exp([row @ key / 4 ** 0.5 for key in k[:, 4 * h:4 * h + 4]])
                out[i, h] += e / e.sum() / len(q)
    return out


@pytest.fixture
def drawn(monkeypatch):
    from matplotlib.figure import Figure
    figures, save = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (figures.append(self), save(self, *a, **k))[1])
    return figures


@pytest.mark.parametrize("pool, query", [("cls", "class token"), ("map", "probe"), ("mean", "mean of the patches")])
def test_what_is_drawn_is_the_softmax_of_queries_and_keys(pool, query, tmp_path, drawn):
    one, prefix = net(pool), PREFIX[pool]
    params = jax.tree.map(lambda p: 3 * p, weights.init(one, IMAGES))  # so that shares are far from even
    want = by_hand(one, params, pool)
    seen = attention.look(one, params, {}, IMAGES, heads=2, pool=pool, patch=4, prefix=prefix)
    assert want.std() > 0.01 and seen.query == query
    np.testing.assert_allclose(seen.patches.reshape(3, 2, 8), want[..., prefix:], atol=1e-5)
    np.testing.assert_allclose(seen.others, want[..., :prefix].sum(-1), atol=1e-5)
    np.testing.assert_allclose(seen.patches.sum((2, 3)) + seen.others, 1, atol=1e-6)
    attention.maps(IMAGES, seen, path=tmp_path / "attention.png")
    assert (tmp_path / "attention.png").stat().st_size > 5000
    shown = [np.asarray(ax.images[0].get_array()) for ax in drawn[0].axes]
    assert len(shown) == 3 * 4
    of = lambda i: want[i, :, prefix:].reshape(2, 4, 2).repeat(4, axis=1).repeat(4, axis=2)
    for i in range(3):
        np.testing.assert_allclose(shown[4 * i], IMAGES[i], atol=1e-6)
        np.testing.assert_allclose(shown[4 * i + 1], of(i).mean(0), atol=1e-5)
        np.testing.assert_allclose(shown[4 * i + 2:4 * i + 4], of(i), atol=1e-5)


def test_blocks_stacked_for_a_scan_are_looked_into():
    params = weights.init(net("cls"), IMAGES)
    seen = [attention.look(n, p, {}, IMAGES, heads=2, pool="cls", patch=4, prefix=3)
            for n, p in ((net("cls"), params), (net("cls", scan=True), weights.stacked(params)))]
    np.testing.assert_allclose(seen[0].patches, seen[1].patches, atol=1e-6)


def test_an_export_directory_is_drawn_and_one_without_a_vit_refused(tmp_path, drawn):
    vit_of = {"name": "vit", "size": "Ti", "depth": 1, "patch": 4, "image": 8, "pool": "map", "class_token": False}
    write(tmp_path / "vit", {"image": vit_of}, seed=3)
    command = [*COMMAND, f"--workdir={tmp_path / 'out'}", "--evals=attention"]
    evaluate([*command, f"--from-dir={tmp_path / 'vit'}"])
    assert (tmp_path / "out/images/attention.png").stat().st_size > 5000
    assert len(drawn[0].axes) == 6 * (2 + 3)  # six images; a Ti has three heads
    write(tmp_path / "conv", {"backbone": {"name": "convnet", "channels": [8]}})
    with pytest.raises(UsageError, match="config.nets has backbone: convnet; give .*dino_digits.py:net=vit") as e:
        evaluate([*command, f"--from-dir={tmp_path / 'conv'}"])
    assert "\n" not in str(e.value)


@pytest.mark.slow
def test_a_run_of_dino_is_drawn_by_its_teacher(tmp_path, monkeypatch):
    train(["train", f"--config={ROOT}/configs/dino_digits.py:net=vit,crops=0", f"--workdir={tmp_path}",
           "--config.steps=2", "--config.batch=16", "--config.nets.backbone.depth=1",
           "--config.nets.backbone.scan=true", "--config.nets.projector.layers=1", "--config.method.prototypes=16",
           "--config.method.momentum=1.0", "--config.evals.every=0",
           "--config.optim.warmup_epochs=0.0", "--config.pictures=false", "--config.devices=1"])
    given, look = [], attention.look
    monkeypatch.setattr(attention, "look", lambda *a, **k: (given.append((a, look(*a, **k))), given[-1][1])[1])
    evaluate(["evals", f"--workdir={tmp_path}", "--evals=attention"])
    assert (tmp_path / "images/attention.png").stat().st_size > 5000
    (net, params, stats, images), seen = given[0]
    assert images.shape == (6, 8, 8, 3) and seen.patches.shape == (6, 4, 4, 4)
    # With a momentum of 1 the teacher stays as the net was initialised, which the student does not.
    assert not np.asarray(params["stack"]["blocks"]["attention"]["qkv"]["bias"]).any()
