"""Pictures are written, show what they should, and are not worth a crash."""
import json
import pathlib
import sys

import numpy as np
import pytest

from simclr_jax.errors import UsageError
from simclr_jax.evals import pictures

R = np.random.default_rng(0)


@pytest.fixture
def drawn(monkeypatch):
    """The figures saved, in order."""
    from matplotlib.figure import Figure
    figures, save = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (figures.append(self), save(self, *a, **k))[1])
    return figures


def test_views_stand_below_their_original(tmp_path, drawn):
    pairs = R.random((12, 2, 8, 8, 3), np.float32)
    originals = [R.integers(0, 256, (9 + i, 10, 3), np.uint8) for i in range(12)]
    path = pictures.views(pairs, originals=originals, path=tmp_path / "made" / "views.png")
    assert pathlib.Path(path).read_bytes()[:4] == b"\x89PNG"
    shown = [ax.images[0].get_array() for ax in drawn[0].axes]
    assert len(shown) == 3 * 8
    np.testing.assert_allclose(shown[3], originals[3] / 255, atol=1e-6)
    np.testing.assert_allclose(shown[8 + 3], pairs[3, 0], atol=1e-6)
    np.testing.assert_allclose(shown[16 + 3], pairs[3, 1], atol=1e-6)


def test_normalised_images_are_stretched_into_range(tmp_path, drawn):
    pictures.views(R.normal(size=(2, 2, 8, 8, 3)), path=tmp_path / "views.png")
    values = np.concatenate([np.ravel(ax.images[0].get_array()) for ax in drawn[0].axes])
    assert values.min() == 0 and values.max() == pytest.approx(1)


def test_loss_curve_reads_a_cut_off_and_resumed_file(tmp_path, drawn):
    rows = [{"step": s, "train/loss": 5.0 - s / 100, "lr": 0.1} for s in range(0, 100, 10)]
    rows += [{"step": 50, "train/loss": 1.0}, {"step": 50, "eval/knn": 0.8, "eval/effective_rank": 1.0},
             {"step": 60, "train/loss": float("nan")}]
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text("".join(json.dumps(r) + "\n" for r in rows) + '{"step": 70, "train/lo')
    pictures.loss_curve(metrics, path=tmp_path / "loss.png")
    left, right = drawn[0].axes
    expected = [[0, 5], [10, 4.9], [20, 4.8], [30, 4.7], [40, 4.6], [50, 1]]
    np.testing.assert_allclose(left.lines[0].get_xydata()[:6], expected)
    assert len(right.lines) == 1  # a rank of one is no accuracy of 100%
    np.testing.assert_allclose(right.lines[0].get_xydata(), [[50, 80]])


def test_loss_curve_without_a_loss_says_what_is_there(tmp_path):
    (tmp_path / "m.jsonl").write_text('{"step": 1, "other": 2}\n')
    with pytest.raises(UsageError, match="no train/loss in it to draw, but other"):
        pictures.loss_curve(tmp_path / "m.jsonl", path=tmp_path / "loss.png")


@pytest.mark.parametrize("method", ["pca", "tsne"])
def test_embedding_shows_every_row_under_its_class(tmp_path, drawn, method):
    labels = np.repeat([-1, 0, 1], 20)
    features = R.normal(size=(60, 5)) + 9 * np.eye(3, 5)[labels + 1]
    pictures.embedding(features, labels, classes=("cat", "dog"), method=method, path=tmp_path / "e.png")
    [ax] = drawn[0].axes
    assert sum(len(c.get_offsets()) for c in ax.collections) == 60
    assert [t.get_text() for t in ax.texts] == ["cat", "dog"]
    with pytest.raises(UsageError, match="umap"):
        pictures.embedding(features, labels, method="umap", path=tmp_path / "e.png")


def test_neighbours_are_framed_by_their_labels(tmp_path, drawn):
    images = R.random((10, 8, 8, 3), np.float32)
    index = np.array([[1, 2, 3], [4, 5, 6]])
    pictures.neighbours(images, index, images[:2], labels=np.array([0, 0, 1, -1, 1, 1, 0, 0, 0, 0]),
                        query_labels=np.array([0, 1]), path=tmp_path / "n.png")
    axes = [ax for ax in drawn[0].axes if ax.images]
    np.testing.assert_allclose([np.mean(ax.images[0].get_array()) for ax in axes],
                               [images[i].mean() for i in (0, 1, 2, 3, 1, 4, 5, 6)], rtol=1e-5)
    from matplotlib.colors import to_hex
    tops = [ax.spines["top"] for ax in axes]
    frames = [to_hex(t.get_edgecolor()).upper() if t.get_visible() else None for t in tops]
    right, wrong, query = (c.upper() for c in (pictures.RIGHT, pictures.WRONG, pictures.INK))
    assert frames == [query, right, wrong, None, query, right, right, wrong]


def test_without_matplotlib_there_is_one_warning_and_no_picture(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.warns(UserWarning, match="matplotlib is not installed") as caught:
        assert pictures.views(R.random((2, 2, 8, 8, 3)), path=tmp_path / "v.png") is None
    assert len(caught) == 1 and "\n" not in str(caught[0].message) and not (tmp_path / "v.png").exists()
