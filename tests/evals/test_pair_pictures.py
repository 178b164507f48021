"""Pictures of pairs show what they should, whatever the images' sizes and the captions' scripts."""
import pathlib
import sys

import numpy as np
import pytest

from simclr_jax.errors import UsageError
from simclr_jax.evals import pair_pictures

R = np.random.default_rng(0)
CAPTIONS = ["a dog", "two children playing in the snow near a wooden house with a red roof", "from $5_{ to $6",
            "一只猫坐在沙发上", "кошка на диване", "party 😀 \U0001f389", "new\nline and\ttab", "", "बिल्ली", "%s \\frac{1}{2"]
SIZES = [(8, 8), (200, 300), (300, 200)]


@pytest.fixture
def drawn(monkeypatch):
    """The figures saved, in order."""
    from matplotlib.figure import Figure
    figures, save = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (figures.append(self), save(self, *a, **k))[1])
    return figures


def images(n):
    return [R.integers(0, 256, (*SIZES[i % 3], 3), np.uint8) for i in range(n)]


def rows_and_columns(ax):
    """The numbers written in the cells of a heat map, as an array."""
    cells = {t.get_position()[::-1]: float(t.get_text()) for t in ax.texts}
    n = round(len(cells) ** 0.5)
    return np.array([[cells[i, j] for j in range(n)] for i in range(n)])


@pytest.mark.parametrize("n", [1, 2, 10, 20])
def test_similarities_stand_by_their_pair_and_the_pairs_are_framed(tmp_path, drawn, n):
    matrix, shown = np.round(R.uniform(-1, 1, (n, n)), 2), min(n, 16)
    shots = images(n)
    path = pair_pictures.similarity(shots, (CAPTIONS * 2)[:n], matrix, path=tmp_path / "made" / "s.png")
    assert pathlib.Path(path).read_bytes()[:4] == b"\x89PNG"
    *tops, grid = drawn[0].axes
    assert len(tops) == shown
    for ax, image in zip(tops, shots):
        np.testing.assert_allclose(ax.images[0].get_array(), image / 255, atol=1e-6)
    np.testing.assert_allclose(rows_and_columns(grid), matrix[:shown, :shown].T)
    np.testing.assert_allclose(grid.images[0].get_array(), matrix[:shown, :shown].T, atol=1e-6)
    assert [(p.get_x() + p.get_width() / 2, p.get_y() + p.get_height() / 2) for p in grid.patches] == [
        (pytest.approx(i), pytest.approx(i)) for i in range(shown)]
    labels = [t.get_text() for t in grid.get_yticklabels()]
    assert len(labels) == shown and labels[0] == "a dog"


def test_cells_are_readable_on_their_colour(tmp_path, drawn):
    from matplotlib.colors import to_rgb
    pair_pictures.similarity(images(8), CAPTIONS[:8], np.linspace(0, 1, 64).reshape(8, 8), path=tmp_path / "s.png")
    grid = drawn[0].axes[-1]
    picture = grid.images[0]

    def light(rgb):
        rgb = np.array(rgb)
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        return np.dot(linear, (0.2126, 0.7152, 0.0722))

    back = {}
    for t in grid.texts:
        column, row = t.get_position()
        value = picture.get_array()[row, column]
        back[value] = light(picture.cmap(picture.norm(value))[:3])
        low, high = sorted([back[value], light(to_rgb(t.get_color()))])
        assert (high + 0.05) / (low + 0.05) > 3, value  # WCAG's contrast ratio for graphics
    assert (np.diff([back[v] for v in sorted(back)]) < 0).all()  # darker is nearer, for every eye


@pytest.mark.parametrize("matrix", [np.zeros((3, 3)), np.full((3, 3), 0.25, np.float32)])
def test_equal_similarities_are_drawn(tmp_path, drawn, matrix):
    pair_pictures.similarity(images(3), CAPTIONS[:3], matrix, path=tmp_path / "s.png")
    np.testing.assert_allclose(rows_and_columns(drawn[0].axes[-1]), matrix)


@pytest.mark.parametrize("captions", [None, CAPTIONS])
def test_the_contact_sheet_shows_all_in_order(tmp_path, drawn, captions):
    found, near = images(7), np.linspace(0.4, 0.1, 7)
    pair_pictures.contact_sheet(found, near, query="a $red_{ boat$ 猫 " * 20, captions=captions and captions[:7],
                                path=tmp_path / "c.png")
    shown = [ax for ax in drawn[0].axes if ax.get_visible()]
    assert len(shown) == 7 and len(drawn[0].axes) == 10
    for i, (ax, image) in enumerate(zip(shown, found)):
        np.testing.assert_allclose(ax.images[0].get_array(), image / 255, atol=1e-6)
        assert ax.get_title(loc="left") == f"{i + 1}.  {near[i]:.3f}"
        text = ax.get_xlabel()
        assert text == "" if captions is None else len(text.split("\n")) <= 2 and max(map(len, text.split("\n"))) <= 23
    title = drawn[0].get_suptitle()
    assert title.startswith("Nearest to: a $red_{ boat$ " + pair_pictures.MISSING) and len(title) < 110
    if captions:
        assert shown[0].get_xlabel() == "a dog" and shown[6].get_xlabel() == "new line and tab"


def test_nothing_written_leaves_the_picture(tmp_path, drawn):
    long = "a photo of two dogs in the snow " * 9
    pair_pictures.contact_sheet(images(1), [0.3], query=long, captions=[long], path=tmp_path / "c.png")
    pair_pictures.similarity(images(1), [long], np.ones((1, 1)), path=tmp_path / "s.png")
    for figure in drawn:
        texts = [t for ax in figure.axes for t in (ax.xaxis.label, *ax.get_yticklabels())]
        boxes = [t.get_window_extent() for t in [*texts, figure._suptitle]]
        assert len(boxes) >= 2 and all(0 <= box.x0 <= box.x1 <= figure.bbox.width for box in boxes)


@pytest.mark.parametrize("text, most, expected", [
    ("short", 45, "short"), ("a  b\n c", 45, "a b c"), ("abcdefghij", 10, "abcdefghij"),
    ("abcdefghijk", 10, "abcdefg..."),
    ("猫 on", 9, "□ on"), ("кот", 9, "кот"), ("", 9, ""), ("\ud800", 9, "□"), ("a\x00b", 9, "a□b"),
])
def test_readable_text(text, most, expected):
    assert pair_pictures.readable(text, most) == expected


@pytest.mark.parametrize("draw, message", [
    (lambda p: pair_pictures.similarity(images(2), ["a"], np.ones((2, 2)), path=p), r"2 images, 1 captions"),
    (lambda p: pair_pictures.similarity(images(2), ["a", "b"], np.ones((2, 3)), path=p), r"shape \(2, 3\)"),
    (lambda p: pair_pictures.similarity([], [], np.ones((0, 0)), path=p), "0 images"),
    (lambda p: pair_pictures.similarity(images(1), ["a"], [[np.nan]], path=p), "1 of 1 similarities are not finite"),
    (lambda p: pair_pictures.contact_sheet([], [], query="a", path=p), "0 images"),
    (lambda p: pair_pictures.contact_sheet(images(2), [1], query="a", path=p), "2 images, 1 similarities"),
    (lambda p: pair_pictures.contact_sheet(images(1), [1], query="a", captions=[], path=p), "0 captions"),
])
def test_sizes_that_differ_are_refused_in_one_line(tmp_path, draw, message):
    with pytest.raises(UsageError, match=message) as e:
        draw(tmp_path / "p.png")
    assert "\n" not in str(e.value) and not (tmp_path / "p.png").exists()


def test_without_matplotlib_there_is_one_warning_and_no_picture(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.warns(UserWarning, match="matplotlib is not installed"):
        assert pair_pictures.contact_sheet(images(1), [1], query="a", path=tmp_path / "c.png") is None
    assert not (tmp_path / "c.png").exists()
