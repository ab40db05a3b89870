"""The confusion matrix: counted, and drawn so that 2 classes and 400 can be read.

Shape suffix: K class.
"""

import os
from collections.abc import Sequence

import numpy as np

from .evaluation import Predictions

NAME_LENGTH = 40  # characters of a name beside the matrix
CELL = (0.6, 0.16)  # inches; the smaller one from 60 classes on
DPI = 100


def confusion_matrix(predictions: Predictions, num_classes: int) -> np.ndarray:
    """Counts (K, K): row the label, column the prediction."""
    counts_KK = np.zeros((num_classes, num_classes), np.int64)
    np.add.at(counts_KK, (predictions.labels_N, predictions.scores_NK.argmax(1)), 1)
    return counts_KK


def draw_confusion_matrix(counts_KK: np.ndarray, names: Sequence[str], path: str | os.PathLike) -> None:
    """A picture: the number of videos in each cell, shaded by its share of the label's videos, the diagonal blue.

    Args:
        counts_KK: as of `confusion_matrix`.
        names: of the classes. A name in a script for which this machine has no font is written as its number.
        path: where to save it, as png.

    Raises:
        ImportError: no matplotlib, which `pip install "hf_i2v[train]"` brings.
    """
    from matplotlib.collections import PolyCollection  # of the libraries for training, and slow to import
    from matplotlib.figure import Figure

    num_classes = len(names)
    share_KK = counts_KK / counts_KK.sum(1, keepdims=True).clip(1)
    cell = min(max(CELL[1], 24 / num_classes), CELL[0])
    side, size = cell * num_classes, min(40 * cell, 10)  # inches, points
    families = fonts_for(names)
    shown = [name if families[name] else f"class {k}" for k, name in enumerate(names)]
    shown = [name if len(name) <= NAME_LENGTH else f"{name[: NAME_LENGTH - 1]}…" for name in shown]

    figure = Figure(figsize=(side + 1, side + 1), dpi=DPI)
    axes = figure.add_axes((0, 0, side / (side + 1), side / (side + 1)))
    rows, columns = counts_KK.nonzero()  # few of the K² cells: one polygon each is far quicker than an image
    color = np.where((rows == columns)[:, None], (0.1, 0.35, 0.75), (0.85, 0.35, 0.05))
    shade = np.sqrt(share_KK[rows, columns])[:, None]  # the root, so that a few mistakes show
    corners = np.stack([columns, rows], 1)[:, None] + np.array([(-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5)])
    axes.add_collection(PolyCollection(corners, facecolors=1 - shade * (1 - color)))
    axes.set(xlim=(-0.5, num_classes - 0.5), ylim=(num_classes - 0.5, -0.5))
    axes.set_xticks(range(num_classes), shown, rotation=90)
    axes.set_yticks(range(num_classes), shown)
    for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
        for label, name in zip(labels, names, strict=True):
            label.set(fontsize=size, fontfamily=families[name] or ["DejaVu Sans"], parse_math=False)
    for count in np.unique(counts_KK[counts_KK > 0]):
        for is_dark, ink in ((True, "white"), (False, "black")):
            rows, columns = ((counts_KK == count) & ((share_KK > 0.3) == is_dark)).nonzero()
            _write_number(axes, columns, rows, str(count), 0.8 * size, ink)
    axes.set_title(f"{counts_KK.trace()} of {counts_KK.sum()} videos right", fontsize=12)
    axes.set_xlabel("predicted class", fontsize=12)
    axes.set_ylabel("labelled class", fontsize=12)
    lines = np.arange(1, num_classes) - 0.5
    axes.hlines(lines, -0.5, num_classes - 0.5, color="0.85", linewidth=0.4)
    axes.vlines(lines, -0.5, num_classes - 0.5, color="0.85", linewidth=0.4)
    axes.tick_params(length=0)
    figure.savefig(path, bbox_inches="tight", pil_kwargs={"compress_level": 1})  # the slower levels save little


def _write_number(axes, x: np.ndarray, y: np.ndarray, number: str, size: float, ink: str) -> None:
    """Centred at many places at once, which is far quicker than a text at each."""
    from matplotlib.path import Path as Outline
    from matplotlib.textpath import TextPath

    outline = TextPath((0, 0), number, size=size * min(1, 3 / len(number)))
    vertices = outline.vertices - (outline.vertices.min(0) + outline.vertices.max(0)) / 2
    marker = Outline(vertices, outline.codes)  # matplotlib scales it so that the farthest point is at half a marker
    axes.plot(
        x, y, linestyle="none", marker=marker, markersize=2 * np.abs(vertices).max(), color=ink, markeredgewidth=0
    )


def fonts_for(names: Sequence[str]) -> dict[str, list[str] | None]:
    """For each name the families that have its letters, matplotlib's own first; None where no font here has them."""
    from matplotlib import font_manager

    default = font_manager.findfont("DejaVu Sans")
    letters: dict[str, set[int]] = {"DejaVu Sans": _letters(default)}
    fonts = font_manager.fontManager.ttflist
    files = {font.name: font.fname for font in fonts if "Last Resort" not in font.name}  # it draws boxes
    families: dict[str, list[str] | None] = {}
    for name in names:
        needed = {ord(letter) for letter in name if not letter.isspace()}
        own = ["DejaVu Sans"] if needed <= letters["DejaVu Sans"] else None
        for family, file in files.items() if own is None else ():
            if needed <= letters.setdefault(family, _letters(file)) | letters["DejaVu Sans"]:
                own = ["DejaVu Sans", family]
                break
        families[name] = own
    return families


def _letters(file: str) -> set[int]:
    from matplotlib.ft2font import FT2Font

    return set(FT2Font(file).get_charmap())
