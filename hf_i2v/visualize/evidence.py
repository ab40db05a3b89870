"""What each frame says by itself, over time: the head's answer from the feature of one frame, and from all so far.

Where a clip's feature is the mean of f_t over its frames, the head also takes f_t alone, and mean(f_0 … f_t). The last
of these means is the model's own answer. Through the blocks f_t still knows of other frames.

Shape suffixes as everywhere, and K class. After InTI, T counts merged frames.
"""

import math
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from ..training.confusion import fonts_for
from .clip import read_clip, video_backbone
from .pictures import DPI, WIDTH

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Evidence:
    """What `evidence` finds.

    Attributes:
        pictures_TChw: what the model sees, uint8; T is the number of frames before any merge.
        labels: of the K classes.
        alone_TK: the head's logits from each frame's feature alone.
        so_far_TK: its logits from the mean over the frames up to this one. The last row is the model's answer.
    """

    pictures_TChw: torch.Tensor
    labels: tuple[str, ...]
    alone_TK: torch.Tensor
    so_far_TK: torch.Tensor

    @property
    def num_steps(self) -> int:
        """Pictures of an animation."""
        return len(self.pictures_TChw)

    def figure(self, step: int | None = None) -> "Figure":
        """A matplotlib figure of the probability of the model's answer: from each frame alone, and so far.

        Above it all frames; with `step`, the curves end at frame `step`, and its picture stands beside them.
        """
        from matplotlib.figure import Figure

        best = int(self.so_far_TK[-1].argmax())
        merged = self.num_steps // len(self.alone_TK)
        alone_T, so_far_T = (
            logits_TK.softmax(-1)[:, best].repeat_interleave(merged).numpy()
            for logits_TK in (self.alone_TK, self.so_far_TK)
        )
        figure = Figure(figsize=(WIDTH, 4 if step is None else 3.2), dpi=DPI)
        fonts = fonts_for([self.labels[best]])[self.labels[best]]
        name = self.labels[best] if fonts else f"class {best}"
        answer = f"The answer: {name}, {100 * so_far_T[-1]:.0f} %"
        figure.suptitle(answer, fontsize=14, fontfamily=fonts or ["DejaVu Sans"], parse_math=False)
        if step is None:
            _film(figure.add_axes((0.09, 0.67, 0.89, 0.22)), self.pictures_TChw)
            _curves(figure.add_axes((0.09, 0.19, 0.89, 0.46)), alone_T, so_far_T, len(self.labels), self.num_steps)
        else:
            picture = figure.add_axes((0.01, 0.04, 0.32, 0.8))
            picture.imshow(self.pictures_TChw[step].permute(1, 2, 0).numpy())
            picture.set_axis_off()
            _curves(figure.add_axes((0.43, 0.25, 0.55, 0.6)), alone_T, so_far_T, len(self.labels), step + 1)
        return figure


def _film(axes, pictures_TChw: torch.Tensor) -> None:
    """The frames in a row, squares above their bars; where they have no room, the middle one of every few."""
    T = len(pictures_TChw)
    box = axes.get_window_extent()
    width = 0.95 * T * box.height / box.width  # in frames
    every = math.ceil(width)
    for t in range(0, T - every + 1, every):
        middle, picture_Chw = t + (every - 1) / 2, pictures_TChw[t + (every - 1) // 2]
        extent = (middle - width / 2, middle + width / 2, 0, 0.95)
        axes.imshow(picture_Chw.permute(1, 2, 0).numpy(), extent=extent, aspect="auto")
    axes.set(xlim=(-0.5, T - 0.5), ylim=(0, 1))
    axes.set_axis_off()


def _curves(axes, alone_T: np.ndarray, so_far_T: np.ndarray, num_classes: int, until: int) -> None:
    """Bars for the frames alone and a line for the frames so far, of the frames before number `until`."""
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    T, frames = len(alone_T), range(until)
    axes.bar(frames, alone_T[:until], width=0.7, color="#9ecae1", label="this frame alone")
    axes.plot(frames, so_far_T[:until], color="#d94801", marker="o", linewidth=2.5, label="mean of the frames so far")
    axes.axhline(1 / num_classes, color="0.4", linestyle="--", linewidth=1)
    axes.text(T - 0.52, 1 / num_classes, "chance", color="0.4", fontsize=9, va="bottom", ha="right")
    axes.set(xlim=(-0.5, T - 0.5), ylim=(0, 1.05), xlabel="frame", ylabel="its probability")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=16))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2, frameon=False)


@torch.no_grad()
def evidence(model: nn.Module, video: str | os.PathLike) -> Evidence:
    """What the head makes of each frame's feature alone, and of the mean over the frames so far.

    Args:
        model, video: as of `attention_over_time`.

    Raises:
        ValueError: a model whose clip feature is no mean over the frames.
        VideoDecodeError: the video cannot be read.
    """
    backbone = video_backbone(model)
    if (branch := backbone.model.working_branch()) is not None:
        raise ValueError(
            f"The clip feature of this model is no mean over the frames: its {type(branch).__name__} reads all frames "
            "together, so that no frame has a feature of its own."
        )
    clip = read_clip(model, video)
    left = backbone.model.frozen_features(clip.pixels_BTChw, first_block=len(backbone.blocks))
    x_BTND = left.entering

    def logits(x_BTND: torch.Tensor) -> torch.Tensor:
        """What the final norm, the pooling and the head make of the last block's tokens."""
        return model(frozen_features=left._replace(entering=x_BTND)).logits.float().cpu()

    so_far = [logits(x_BTND[:, : t + 1]) for t in range(x_BTND.shape[1])]
    labels = tuple(model.config.id2label[k] for k in range(model.config.num_labels))
    return Evidence(clip.pictures_TChw, labels, logits(x_BTND.transpose(0, 1)), torch.cat(so_far))
