"""Two pictures of an image-text model: similarities of a few pairs, and what a text query finds.

Each returns the path written, or None with a warning where matplotlib is missing, as in `pictures`.
"""
import textwrap
from typing import Sequence

import numpy as np

from simclr_jax.errors import UsageError
from simclr_jax.evals.pictures import INK, WRONG, _image, _picture, _unit

MOST = 16  # pairs drawn: more are too small to read
MISSING = "\u25a1"  # drawn for what the font has no sign for


@_picture
def similarity(figure, images: Sequence[np.ndarray], captions: Sequence[str], matrix: np.ndarray):
    """Cosine similarities of images (columns) and captions (rows), those that belong together framed.

    similarity(images, captions, matrix, path=...). images: n of any size, u8 or f32; captions: n strings, of which
    about 45 characters are shown; matrix: f32[n,n], image i with caption j at [i,j]. The first 16 pairs are drawn.

    Raises:
      UsageError: sizes that differ, no pair, or similarities that are not finite.
    """
    n, matrix = len(images), np.asarray(matrix, np.float32)
    if not n or len(captions) != n or matrix.shape != (n, n):
        raise UsageError(f"similarity: {n} images, {len(captions)} captions and a matrix of shape {matrix.shape}; "
                         "wanted n of each and (n, n), with n at least 1")
    if not np.isfinite(matrix).all():
        raise UsageError(f"similarity: {int(np.sum(~np.isfinite(matrix)))} of {matrix.size} similarities are not "
                         "finite; has training diverged?")
    n = min(n, MOST)
    shown = matrix[:n, :n].T
    figure.set_size_inches(3.6 + 0.62 * n, 1.2 + 0.62 + 0.46 * n)
    figure.suptitle("Cosine similarities, pairs framed", x=0.01, ha="left", fontsize=13)
    axes = figure.subplots(2, n, squeeze=False, height_ratios=[0.62, 0.46 * n])
    for ax, image in zip(axes[0], images):
        _image(ax, _unit(np.asarray(image)))
    grid = axes[1, 0].get_gridspec()
    for ax in axes[1]:
        ax.remove()
    ax = figure.add_subplot(grid[1, :])
    low, high = float(shown.min()), float(shown.max())
    # One hue from pale to dark: the order of the values survives every kind of colour blindness and grey printing.
    ax.imshow(shown, cmap="Blues", vmin=low, vmax=high if high > low else low + 1, aspect="auto")
    for (row, column), value in np.ndenumerate(shown):
        dark = value > low + 0.6 * (high - low)
        ax.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=8, color="white" if dark else INK)
    import matplotlib.patches
    for i in range(n):
        ax.add_patch(matplotlib.patches.Rectangle((i - 0.47, i - 0.47), 0.94, 0.94, fill=False, ec=WRONG, lw=2.2))
    ax.set(xticks=[])
    ax.set_yticks(range(n), [readable(c, 45) for c in captions[:n]], fontsize=9, parse_math=False)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)


@_picture
def contact_sheet(figure, images: Sequence[np.ndarray], similarity: np.ndarray, *, query: str,
                  captions: Sequence[str] | None = None, columns: int = 5):
    """The images nearest to a text, in the order given, each with its similarity and its caption if known.

    contact_sheet(images, similarity, path=..., query="a red boat", captions=None, columns=5). images: n of any size,
    u8 or f32, nearest first (see `retrieval.search`); similarity: f32[n]; captions: n strings, of which two lines are
    shown.

    Raises:
      UsageError: sizes that differ, or no image.
    """
    n, similarity = len(images), np.ravel(similarity)
    if not n or len(similarity) != n or (captions is not None and len(captions) != n):
        raise UsageError(f"contact_sheet: {n} images, {len(similarity)} similarities, "
                         f"{'no' if captions is None else len(captions)} captions; wanted as many of each, at least 1")
    columns = min(columns, n)
    lines = -(-n // columns)
    figure.set_size_inches(max(1.75 * columns, 4.2) + 0.2, (1.9 if captions is None else 2.3) * lines + 0.6)
    figure.suptitle("Nearest to: " + readable(query, max(34, 17 * columns)), x=0.01, ha="left", fontsize=13,
                    parse_math=False)
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    for i, ax in enumerate(axes):
        if i >= n:
            ax.set_visible(False)
            continue
        _image(ax, _unit(np.asarray(images[i])))
        ax.set_title(f"{i + 1}.  {similarity[i]:.3f}", fontsize=9, loc="left", pad=3)
        if captions is not None:
            ax.set_xlabel(_wrapped(readable(captions[i], 200)), fontsize=8, labelpad=3, parse_math=False)


def readable(text: str, most: int) -> str:
    """`text` on one line, cut to `most` characters, with a box for every character that the font lacks.

    Without that matplotlib warns of each such character, and draws boxes all the same.
    """
    text = " ".join(text.split())
    text = text if len(text) <= most else text[:most - 3].rstrip() + "..."
    known = _signs()
    return "".join(c if ord(c) in known else MISSING for c in text)


def _signs():
    """Code points of the font of `pictures`; it comes with matplotlib."""
    from matplotlib import font_manager
    return font_manager.get_font(font_manager.findfont("DejaVu Sans")).get_charmap()


def _wrapped(text, width=23, lines=2):
    return "\n".join(textwrap.wrap(text, width, max_lines=lines, placeholder="..."))
