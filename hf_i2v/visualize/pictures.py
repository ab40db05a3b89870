"""What all figures share: pictures with a layer of heat, and files of them.

matplotlib is imported where something is drawn: it is one of the libraries for training, and slow to import.
"""

import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Protocol

import av
import numpy as np
import torch
from PIL import Image

SUFFIXES = (".png", ".gif", ".mp4")
WIDTH, DPI = 8.0, 100  # inches, pixels an inch: 800 pixels, as wide as a README
HEAT, BALANCE = "inferno", "PuOr"  # from nothing to much; from less than half to more
IN_SQUARE = {"extent": (0, 1, 1, 0)}  # x and y from 0 to 1, y downwards


class Drawable(Protocol):
    """What `save` takes: a figure, and one for each picture of an animation."""

    num_steps: int

    def figure(self, step: int | None = None): ...


def save(seen: Drawable, path: str | os.PathLike, *, fps: float = 2.0) -> None:
    """Draw what was found: one still picture as .png, or one picture a frame (for InTI one a pair) as .gif or .mp4.

    Args:
        seen: of `attention_over_time`, `inti_weights` or `evidence`.
        fps: frames a second of .gif and .mp4.

    Raises:
        ValueError: a file of another kind, or an `fps` that is not above 0.
        ImportError: no matplotlib, which `pip install "hf_i2v[train]"` brings.
    """
    suffix = checked_suffix(path)
    if not 0 < fps <= 50:
        raise ValueError(f"fps ({fps}) must be above 0 and at most 50")
    if suffix == ".png":
        _few_colours(as_picture(seen.figure())).save(path, optimize=True)
        return
    pictures = (as_picture(seen.figure(step)) for step in range(seen.num_steps))
    if suffix == ".gif":
        first, *others = map(_few_colours, pictures)
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


def as_picture(figure) -> Image.Image:
    """A matplotlib figure as RGB pixels, with even sides."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    rgb_hwC = np.asarray(canvas.buffer_rgba())[..., :3]
    height, width = (side // 2 * 2 for side in rgb_hwC.shape[:2])
    return Image.fromarray(np.ascontiguousarray(rgb_hwC[:height, :width]))


def _few_colours(picture: Image.Image) -> Image.Image:
    """A third of the bytes, without a difference that is seen."""
    return picture.quantize(255, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)


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


def sheet(num_panels: int, title: str, columns: int | None = None):
    """A figure with square panels, row by row."""
    from matplotlib.figure import Figure

    columns = columns or min(num_panels, 3)
    rows = -(-num_panels // columns)
    figure = Figure(figsize=(WIDTH, 1.1 + rows * (WIDTH - 1) / columns), dpi=DPI, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for panel in axes:
        panel.set_axis_off()
    figure.suptitle(title, fontsize=14)
    return figure, list(axes[:num_panels])


def show(axes, picture_Chw: torch.Tensor) -> None:
    """A picture in grey, so that the colours on it are read."""
    grey_hw = picture_Chw.float().mean(0).numpy()
    axes.imshow(grey_hw, cmap="gray", vmin=0, vmax=255, **IN_SQUARE)


def heat(axes, weight_rc: torch.Tensor, colours: str, largest: float, smallest: float = 0.0):
    """A layer of weights on a picture, one square a patch: the farther from nothing, or from half, the denser."""
    middle = smallest if colours == HEAT else (smallest + largest) / 2
    density_rc = (weight_rc - middle).abs() / (largest - middle)
    alpha_rc = (0.1 + 0.7 * density_rc).clamp(0, 1).numpy()
    return axes.imshow(weight_rc.numpy(), cmap=colours, alpha=alpha_rc, vmin=smallest, vmax=largest, **IN_SQUARE)


def mark(axes, position_X: torch.Tensor, side: int, *, here: bool) -> None:
    """A frame around the patch that looks; dashed in the other frames, where it only says where that was."""
    from matplotlib.patches import Rectangle

    corner = (position_X - 0.5 / side).tolist()
    style = {"linestyle": "-", "linewidth": 2.5} if here else {"linestyle": ":", "linewidth": 1.5}
    axes.add_patch(Rectangle(corner, 1 / side, 1 / side, fill=False, edgecolor="#00e5ff", **style))


def colour_bar(figure, drawn, label: str) -> None:
    """What the colours of all panels mean, in per cent."""
    from matplotlib.ticker import PercentFormatter

    bar = figure.colorbar(drawn, ax=figure.axes, shrink=0.8, pad=0.02, format=PercentFormatter(1.0, decimals=None))
    bar.set_label(label)
    bar.solids.set_alpha(1)
