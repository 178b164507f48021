"""Four pictures of a run, for people: views, loss curve, embedding, nearest neighbours. Each returns the path written.

matplotlib is imported when a picture is asked for; without it there is one warning line, and None instead of a path.
"""
import functools
import importlib.util
import json
import os
import warnings
from typing import Sequence

import numpy as np
from etils import epath

from simclr_jax.errors import UsageError

# Okabe & Ito's palette, which colour-blind readers can tell apart, with olive for its yellow (too pale for points on
# white) and, for classes nine and ten, grey and brown.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#A3A300", "#000000", "#8C8C8C", "#7F5539")
NO_SHARES = ("spread", "effective_rank", "uniformity")  # numbers of health.report: no accuracies
RIGHT, WRONG, QUIET, INK = "#0072B2", "#D55E00", "#B8B8B8", "#333333"


def _picture(draw):
    """Gives `draw` a figure in our style as its first argument, and saves it to the caller's `path`."""
    @functools.wraps(draw)
    def wrapper(*args, path: str | os.PathLike, **options):
        try:
            import matplotlib
        except ImportError:
            warnings.warn(f"no {os.fspath(path)}: matplotlib is not installed (pip install matplotlib)", stacklevel=2)
            return None
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        with matplotlib.rc_context({"font.family": "DejaVu Sans", "font.size": 11, "text.color": INK,
                                    "axes.labelcolor": INK, "axes.edgecolor": INK, "xtick.color": INK,
                                    "ytick.color": INK, "axes.spines.top": False, "axes.titlesize": 13,
                                    "axes.titlelocation": "left", "axes.titlepad": 10, "legend.frameon": False}):
            figure = Figure(dpi=144, layout="constrained", facecolor="white")
            FigureCanvasAgg(figure)
            draw(figure, *args, **options)
            os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
            figure.savefig(path)
        return os.fspath(path)
    return wrapper


@_picture
def views(figure, pairs: np.ndarray, *, originals: Sequence[np.ndarray] | None = None, rows: int = 8):
    """Views as the method sees them, a column an example: the original if given, then each view below it.

    views(pairs, path=..., originals=None, rows=8). pairs: f32[n,V,H,W,3]; originals: n images of any size, u8 or f32.
    Values outside [0,1] (normalised images) are stretched to it. The first `rows` examples are shown.
    """
    pairs = _unit(np.asarray(pairs)[:rows])
    n, v = pairs.shape[:2]
    lines = ([("original", [_unit(np.asarray(i)) for i in originals[:n]])] if originals is not None else [])
    lines += [(f"view {j + 1}", pairs[:, j]) for j in range(v)]
    figure.set_size_inches(1.05 * n + 0.6, 1.08 * len(lines) + 0.5)
    figure.suptitle("Two views of one example belong together" if v == 2 else "Views of one example belong together",
                    x=0.01, ha="left", fontsize=13)
    axes = figure.subplots(len(lines), n, squeeze=False)
    for line, (name, images) in zip(axes, lines):
        for ax, image in zip(line, images):
            _image(ax, image)
        line[0].set_ylabel(name, fontsize=11)


@_picture
def loss_curve(figure, metrics: str | os.PathLike):
    """The training loss against the step, and every accuracy under eval/ as points on a second axis.

    loss_curve(metrics, path=...). metrics: a metrics.jsonl whose lines have "step" and any of "train/loss" and
    "eval/..."; a last line cut short by a killed run is left out, and of a step written twice (a resumed run) the
    later line counts.

    Raises:
      UsageError: no train/loss in the file.
    """
    series = _series(metrics)
    if "train/loss" not in series:
        raise UsageError(f"{os.fspath(metrics)}: no train/loss in it to draw, but "
                         f"{', '.join(sorted(series)) or 'nothing'}; give the metrics.jsonl of a training run")
    figure.set_size_inches(7.2, 4)
    ax = figure.subplots()
    steps, loss = series.pop("train/loss")
    at, smooth = _smooth(loss)
    ax.plot(steps, loss, color=RIGHT, alpha=0.3, lw=1)
    ax.plot(np.asarray(steps)[at], smooth, color=RIGHT, lw=2)
    ax.set(xlabel="step", ylabel="training loss", title="Training loss", xlim=(0, max(steps) * 1.02 or 1))
    ax.yaxis.label.set_color(RIGHT)
    ax.spines["right"].set_visible(False)
    ax.grid(axis="y", color="#E6E6E6", lw=0.8)
    evals = {k: s for k, s in series.items() if k.startswith("eval/") and k.split("/")[1] not in NO_SHARES}
    if evals:
        ax.set_title("Training loss and evals")
        other = ax.twinx()
        for i, (name, (at, value)) in enumerate(sorted(evals.items())):
            other.plot(at, 100 * np.asarray(value), "os^Dv"[i % 5], ls=":", lw=1, ms=6, color=PALETTE[1:][i % 9],
                       label=name.removeprefix("eval/").replace("_", " "))
        other.set(ylabel="eval, %", ylim=(0, 104))
        if len(evals) <= 3:
            other.legend(loc="center right")
        else:  # they would cover the curves
            figure.set_size_inches(9.2, 4)
            figure.legend(loc="outside right center", fontsize=10)


@_picture
def embedding(figure, features: np.ndarray, labels: np.ndarray, *, classes: Sequence[str] | None = None,
              method: str = "pca", points: int = 2000, title: str = "Embedding"):
    """Features in the plane, coloured by label.

    embedding(features, labels, path=..., classes=None, method="pca", points=2000, title="Embedding").
    features: f32[n,D], made unit length; labels: i[n], -1 for none; method: "pca" (by SVD), or "tsne" (scikit-learn,
    cosine distances). At most `points` rows, taken evenly. Names stand at the median of their class.
    """
    pick = np.linspace(0, len(features) - 1, min(points, len(features))).astype(int)
    x, y = np.asarray(features, np.float64)[pick], np.asarray(labels)[pick]
    x /= np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-6)
    if method == "tsne" and importlib.util.find_spec("sklearn") is None:
        warnings.warn("embedding: scikit-learn is not installed, so PCA instead of t-SNE", stacklevel=3)
        method = "pca"
    if method == "tsne":
        from sklearn.manifold import TSNE
        at = TSNE(metric="cosine", init="random", perplexity=min(30, (len(x) - 1) / 3), random_state=0).fit_transform(x)
        how = "t-SNE"
    elif method == "pca":
        u, s, _ = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)
        at = (u * s)[:, :2]
        how = f"PCA, {100 * np.sum(s[:2] ** 2) / max(np.sum(s ** 2), 1e-12):.0f}% of the variance"
    else:
        raise UsageError(f"embedding: method={method!r} given, wanted \"pca\" or \"tsne\"")
    figure.set_size_inches(6, 5.6)
    ax = figure.subplots()
    known = [c for c in np.unique(y) if c >= 0]
    for i, c in enumerate([-1] + known):
        color = QUIET if c < 0 else PALETTE[(i - 1) % len(PALETTE)]
        ax.scatter(*at[y == c].T, s=9, color=color, alpha=0.75, lw=0, marker="os^D"[max(i - 1, 0) // 10 % 4])
    if len(known) <= 20:
        import matplotlib.patheffects
        for i, c in enumerate(known):
            ax.text(*np.median(at[y == c], axis=0), classes[c] if classes else str(c), fontsize=14, weight="bold",
                    ha="center", va="center", color=PALETTE[i % len(PALETTE)],
                    path_effects=[matplotlib.patheffects.withStroke(linewidth=4, foreground="white")])
    ax.set(title=f"{title} ({how})", xticks=[], yticks=[])
    ax.spines[["right", "top", "left", "bottom"]].set_visible(False)


@_picture
def neighbours(figure, images: Sequence[np.ndarray], index: np.ndarray, queries: Sequence[np.ndarray], *,
               labels: np.ndarray | None = None, query_labels: np.ndarray | None = None,
               similarity: np.ndarray | None = None):
    """Each query beside its nearest neighbours, framed by whether they have its label.

    neighbours(images, index, queries, path=..., labels=None, query_labels=None, similarity=None).
    images: the examples searched; index: i[q,k] into them, nearest first (see knn.neighbours); queries: q images;
    labels i[n] and query_labels i[q]: -1 for none; similarity: f32[q,k], printed below each neighbour.
    """
    q, k = index.shape
    framed = labels is not None and query_labels is not None
    figure.set_size_inches(1.0 * (k + 1) + 0.45, (1.0 if similarity is None else 1.16) * q + 0.75)
    figure.suptitle("Nearest neighbours in feature space", x=0.01, ha="left", fontsize=13)
    axes = figure.subplots(q, k + 2, squeeze=False, width_ratios=[1, 0.15] + [1] * k)
    for row in range(q):
        axes[row, 1].set_visible(False)
        _image(axes[row, 0], _unit(np.asarray(queries[row])), frame=INK)
        for column in range(k):
            ax, at = axes[row, column + 2], index[row, column]
            frame = None
            if framed and labels[at] >= 0 and query_labels[row] >= 0:
                frame = RIGHT if labels[at] == query_labels[row] else WRONG
            _image(ax, _unit(np.asarray(images[at])), frame=frame, dashed=frame == WRONG)
            if similarity is not None:
                ax.set_xlabel(f"{similarity[row, column]:.2f}", fontsize=8, labelpad=2)
    axes[0, 0].set_title("query", fontsize=11, loc="center", pad=4)
    axes[0, 2].set_title("nearest first", fontsize=11, loc="left", pad=4)
    if framed:
        from matplotlib.lines import Line2D
        figure.legend(handles=[Line2D([], [], color=RIGHT, lw=3, label="same label"),
                               Line2D([], [], color=WRONG, lw=3, ls=(0, (2, 1)), label="another label")],
                      loc="upper right", ncols=2, fontsize=10, bbox_to_anchor=(1, 1))


def _image(ax, image, *, frame=None, dashed=False):
    ax.imshow(image, interpolation="nearest" if max(image.shape[:2]) < 64 else "antialiased")
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(frame is not None)
    if frame is not None:
        h, w = image.shape[:2]
        ax.set(xlim=(-0.5 - 0.07 * w, 1.07 * w - 0.5), ylim=(1.07 * h - 0.5, -0.5 - 0.07 * h))
        for spine in ax.spines.values():  # dashes as well as colour, and square ends would close their gaps
            spine.set(color=frame, linewidth=2.5, capstyle="butt", linestyle=(0, (2, 1.2)) if dashed else "-")


def _unit(image):
    """f32 in [0,1]: u8 divided by 255; floats outside [0,1] stretched over their range."""
    if image.dtype == np.uint8:
        return image.astype(np.float32) / 255
    low, high = float(image.min()), float(image.max())
    if -1e-3 <= low and high <= 1 + 1e-3:
        return np.clip(image, 0, 1)
    return (image - low) / max(high - low, 1e-6)


def _series(metrics) -> dict[str, tuple[list, list]]:
    """{name: (steps, values)} in order of step, finite numbers only."""
    found: dict[str, dict] = {}
    for line in epath.Path(metrics).read_text().splitlines():
        try:
            record = json.loads(line)
            step = record.pop("step")
        except (ValueError, KeyError, AttributeError):
            continue
        for name, value in record.items():
            if isinstance(value, (int, float)) and np.isfinite(value):
                found.setdefault(name, {})[step] = value
    return {name: (sorted(s), [s[k] for k in sorted(s)]) for name, s in found.items()}


def _smooth(values):
    """Centred means over about a fortieth of the values: (i[m] positions, f[m])."""
    width = max(1, len(values) // 40)
    means = np.convolve(values, np.ones(width) / width, mode="valid")
    return np.arange(len(means)) + width // 2, means
