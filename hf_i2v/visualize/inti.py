"""Which of two neighbouring frames InTI takes, patch by patch: its weights w₀ + w₁ = 1 (`methods/inti`).

Shape suffixes as everywhere, and P pair of frames, r row and c column of patches.
"""

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from ..backbones import grid_side
from ..methods.inti import InTI
from .clip import read_clip, video_backbone
from .pictures import balance, colour_bar, sheet, show

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class InTIWeights:
    """What `inti_weights` finds.

    Attributes:
        pictures_TChw: what the model sees, uint8.
        block: number of the block before which the frames are merged.
        weights_Trc: how much of each patch of a frame enters the merged frame; those of frames 2i and 2i + 1 sum to 1.
    """

    pictures_TChw: torch.Tensor
    block: int
    weights_Trc: torch.Tensor

    @property
    def num_steps(self) -> int:
        """Pictures of an animation: one a pair."""
        return len(self.pictures_TChw) // 2

    def figure(self, step: int | None = None) -> "Figure":
        """A matplotlib figure of pair `step`, one frame beside the other; None: of all pairs, one frame above the
        other."""
        # not less than 5 %, so that noise around plain averaging does not look like a choice
        reach = max((self.weights_Trc - 0.5).abs().max().item(), 0.05)
        title = f"How much of each frame InTI merges into its pair (before block {self.block})"
        if step is None:
            first = range(0, 2 * self.num_steps, 2)
            figure, axes = sheet(2 * self.num_steps, title, columns=self.num_steps)
            frames = [*first, *(t + 1 for t in first)]
        else:
            figure, axes = sheet(2, title)
            frames = [2 * step, 2 * step + 1]
        for t, panel in zip(frames, axes, strict=True):
            show(panel, self.pictures_TChw[t])
            drawn = balance(panel, self.weights_Trc[t], reach)
            panel.set_title(f"frame {t}")
        colour_bar(figure, drawn, "weight of the frame (50 %: both alike)")
        return figure


@torch.no_grad()
def inti_weights(model: nn.Module, video: str | os.PathLike) -> InTIWeights:
    """How InTI weighs both frames of each pair, where it merges the frames of the clip for the first time.

    Args:
        model, video: as of `attention_over_time`.

    Raises:
        ValueError: a model without InTI.
        VideoDecodeError: the video cannot be read.
    """
    backbone = video_backbone(model)
    found = (
        (number, module)
        for number, block in enumerate(backbone.blocks.values())
        for module in block.modules_at("before")
        if isinstance(module, InTI)
    )
    block, module = next(found, (None, None))
    if module is None:
        raise ValueError("The model has no InTI, which merges neighbouring frames (--tuner inti, InTIConfig).")
    clip, seen = read_clip(model, video), []
    handle = module.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    try:
        model(clip.pixels_BTChw)
    finally:
        handle.remove()
    weights_PN2 = module.weights(seen[0].unflatten(0, (-1, 2))).float().cpu()
    weights_TN = weights_PN2.transpose(1, 2).flatten(0, 1)[:, backbone.num_prefix_tokens :]
    side = grid_side(weights_TN.shape[1])
    return InTIWeights(clip.pictures_TChw, block, weights_TN.unflatten(1, (side, side)))
