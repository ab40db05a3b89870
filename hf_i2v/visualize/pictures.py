"""What all figures share: pictures with a layer of heat, and files of them.

matplotlib is imported where something is drawn: it is one of the libraries for training, and slow to import.
"""

import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import av
import numpy as np
import torch
from PIL import Image

if TYPE_CHECKING:  # loaded when something is drawn
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

SUFFIXES = (".png", ".gif", ".mp4")
STILL_COLOURS, MOVING_COLOURS = 255, 64  # of .png and .gif, which are three times as large with all of them
WIDTH, DPI = 8.0, 100  # inches, pixels an inch: 800 pixels, as wide as a README
IN_SQUARE = {"extent": (0, 1, 1, 0)}  # x and y from 0 to 1, y downwards


class Drawable(Protocol):
    """What `save` takes: a figure, and one for each picture of an animation."""

    num_steps: int

    def figure(self, step: int | None = None) -> "Figure": ...


def save(seen: Drawable, path: str | os.PathLike, *, fps: float = 2.0) -> None:
    """Draw what was found: one still picture as .png, or one picture a frame (for InTI one a pair) as .gif or .mp4.

    Args:
        seen: of `attention_over_time`, `inti_weights` or `evidence`.
        path: of the file; its suffix says the kind.
        fps: frames a second of .gif and .mp4.

    Raises:
        ValueError: a file of another kind, or an `fps` that is not above 0.
        ImportError: no matplotlib, which `pip install "hf_i2v[train]"` brings.
    """
    suffix = checked_suffix(path)
    if not 0 < fps <= 50:
        raise ValueError(f"fps ({fps}) must be above 0 and at most 50")
    if suffix == ".png":
        _few_colours(as_picture(seen.figure()), STILL_COLOURS).save(path, optimize=True)
        return
    pictures = (as_picture(seen.figure(step)) for step in range(seen.num_steps))
    if suffix == ".gif":
        first, *others = (_few_colours(picture, MOVING_COLOURS) for picture in pictures)
        first.save(path, save_all=True, append_images=others, duration=round(1000 / fps), loop=0)
    else:
        _write_mp4(pictures, path, fps)


def checked_suffix(path: str | os.PathLike) -> str:
    """Its suffix.

    Raises:
        ValueError: one that `save` does not know.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(f"{os.fspath(path)} must end in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}")
    return suffix


def as_picture(figure: "Figure") -> Image.Image:
    """A matplotlib figure as RGB pixels, with even sides."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    rgb_hwC = np.asarray(canvas.buffer_rgba())[..., :3]
    height, width = (side // 2 * 2 for side in rgb_hwC.shape[:2])
    return Image.fromarray(np.ascontiguousarray(rgb_hwC[:height, :width]))


def _few_colours(picture: Image.Image, number: int) -> Image.Image:
    return picture.quantize(number, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)


def _write_mp4(pictures: Iterator[Image.Image], path: str | os.PathLike, fps: float) -> None:
    with av.open(os.fspath(path), "w") as container:
        codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
        stream = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1000))
        stream.pix_fmt = "yuv420p"
        for number, picture in enumerate(pictures):
            if not number:
                stream.width, stream.height = picture.size
            container.mux(stream.encode(av.VideoFrame.from_image(picture)))
        container.mux(stream.encode())


def sheet(
    num_panels: int, title: str, *, columns: int | None = None, title_lines: int = 1
) -> tuple["Figure", list["Axes"]]:
    """A figure with square panels, row by row, each with a title of so many lines."""
    from matplotlib.figure import Figure

    columns = columns or min(num_panels, 3)
    rows = -(-num_panels // columns)
    height = 0.4 + rows * (0.25 * title_lines + (WIDTH - 1.1) / columns)  # square panels beside a bar
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for panel in axes:
        panel.set_axis_off()
    figure.suptitle(title, fontsize=14)
    return figure, list(axes[:num_panels])


def show(axes: "Axes", picture_Chw: torch.Tensor) -> None:
    """A picture in dark grey, on which colours shine."""
    grey_hw = picture_Chw.float().mean(0).numpy()
    axes.imshow(grey_hw, cmap="gray", vmin=0, vmax=255 / 0.75, **IN_SQUARE)


def heat(axes: "Axes", share_rc: torch.Tensor, largest: float) -> "AxesImage":
    """A layer of shares from 0 on, one square a patch. The root is shown, so that small ones are seen."""
    from matplotlib.colors import PowerNorm

    share_rc, norm = share_rc.numpy(), PowerNorm(0.5, 0, largest, clip=True)
    return axes.imshow(share_rc, cmap="inferno", norm=norm, alpha=0.85 * norm(share_rc).data, **IN_SQUARE)


def balance(axes: "Axes", share_rc: torch.Tensor, reach: float) -> "AxesImage":
    """A layer of shares around a half, up to `reach` from it, one square a patch."""
    share_rc = share_rc.numpy()
    density_rc = 0.1 + 0.7 * np.abs(share_rc - 0.5) / reach
    return axes.imshow(share_rc, cmap="coolwarm", vmin=0.5 - reach, vmax=0.5 + reach, alpha=density_rc, **IN_SQUARE)


def mark(axes: "Axes", position_X: torch.Tensor, side: int, *, here: bool) -> None:
    """A frame around the patch that looks; dashed in the other frames, where it only says where that was."""
    from matplotlib.patches import Rectangle

    corner = (position_X - 0.5 / side).tolist()
    style = {"linestyle": "-", "linewidth": 2.5} if here else {"linestyle": ":", "linewidth": 1.5}
    axes.add_patch(Rectangle(corner, 1 / side, 1 / side, fill=False, edgecolor="#00e5ff", **style))


def colour_bar(figure: "Figure", drawn: "AxesImage", label: str) -> None:
    """What the colours of all panels mean, in per cent."""
    from matplotlib.ticker import MaxNLocator

    bar = figure.colorbar(drawn, ax=figure.axes, shrink=0.8, pad=0.02, ticks=MaxNLocator(4))
    bar.formatter = lambda share, _: f"{100 * share:.3g} %"
    bar.set_label(label)
    bar.solids.set_alpha(1)
