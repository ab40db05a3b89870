"""Which pixels of other frames a token looks at, through the heads that STDHA shifts in time.

Token i of frame t attends through a head of offset o with p = softmax(q_{t,i} · k_{t+o} / √K) to the tokens of frame
t + o, or of t itself where t + o lies outside the clip (`methods/stdha`). These probabilities are the block's own: for
once it runs with the eager kernel of its model, the only one that returns them.

Shape suffixes as everywhere, and P patch, r row and c column of patches, X x and y.
"""

import copy
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional as F

from ..backbones import grid_side
from ..methods.stdha import TimeShift
from .clip import Clip, read_clip, video_backbone
from .pictures import colour_bar, heat, mark, sheet, show

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class AttentionOverTime:
    """What `attention_over_time` finds.

    Attributes:
        pictures_TChw: what the model sees, uint8.
        block: number of the block.
        frame: the frame that a still picture is about.
        positions_TX: middle of the patch that looks, in each frame, in shares of the picture.
        offsets_H: how many frames ahead each head reads; 0: its own frame.
        weights_THrc: for the patch that looks in frame t and head h its attention to the patches of frame
            t + offset, or of t where that lies outside the clip. What they lack to 1 is on CLS and register tokens.
    """

    pictures_TChw: torch.Tensor
    block: int
    frame: int
    positions_TX: torch.Tensor
    offsets_H: tuple[int, ...]
    weights_THrc: torch.Tensor

    @property
    def num_steps(self) -> int:
        """Pictures of an animation."""
        return len(self.pictures_TChw)

    def figure(self, step: int | None = None) -> "Figure":
        """A matplotlib figure about frame `step`; None: about `frame`. A panel for each offset, with the mean of the
        attention of its heads."""
        t = self.frame if step is None else step
        offsets = sorted(set(self.offsets_H))
        largest_T = self._mean_over_heads(offsets).amax((1, 2, 3))
        largest = float(largest_T[t] if step is None else largest_T.median())  # one scale for all steps
        title = f"Where the framed patch of frame {t} looks (block {self.block})"
        figure, axes = sheet(len(offsets), title, title_lines=2)
        for offset, panel in zip(offsets, axes, strict=True):
            source = t + offset if 0 <= t + offset < self.num_steps else t
            heads = self.offsets_H.count(offset)
            show(panel, self.pictures_TChw[source])
            drawn = heat(panel, self._mean_over_heads([offset])[t, 0], largest)
            mark(panel, self.positions_TX[t], len(self.weights_THrc[0, 0]), here=source == t)
            panel.set_title(f"{_frame_name(offset, source, t)}\n{heads} of {len(self.offsets_H)} heads")
        colour_bar(figure, drawn, "share of the attention on a patch")
        return figure

    def _mean_over_heads(self, offsets: Sequence[int]) -> torch.Tensor:
        """For each of the offsets the mean of its heads, (T, O, r, c)."""
        heads = [[h for h, offset in enumerate(self.offsets_H) if offset == wanted] for wanted in offsets]
        return torch.stack([self.weights_THrc[:, of_one].mean(1) for of_one in heads], dim=1)


def _frame_name(offset: int, source: int, t: int) -> str:
    if not offset:
        return f"in its own frame {t}"
    which = f"{abs(offset)} {'earlier' if offset < 0 else 'later'}"
    return f"in frame {source}, {which}" if source != t else f"own frame {t}: there is none {which}"


@torch.no_grad()
def attention_over_time(
    model: nn.Module,
    video: str | os.PathLike,
    *,
    frame: int | None = None,
    position: tuple[float, float] | None = None,
    block: int | None = None,
) -> AttentionOverTime:
    """Which pixels of other frames a token looks at, in a model with heads that are shifted in time.

    Args:
        model: of `hf_i2v.predict.load_model`, in eval mode.
        video: a file, or a folder of pictures. The clip is T frames spread over the whole of it.
        frame: from 0 to T − 1, for a still picture. None: in which most moves.
        position: (x, y) of the token in the square that the model sees: (0, 0) its upper left corner, (1, 1) its
            lower right one. None: where the frame differs most from those beside it, in each frame anew.
        block: number of the block. None: the middle one of those with shifted heads.

    Raises:
        ValueError: a model without shifted heads, or one that merged its frames before this block; a frame outside
            the clip, a position outside the picture, or a block without shifted heads.
        VideoDecodeError: the video cannot be read.
    """
    backbone = video_backbone(model)
    blocks = list(backbone.blocks.values())
    shifted = [number for number, one in enumerate(blocks) if one.working_time_offsets()]
    if not shifted:
        raise ValueError(
            "The model has no heads that look at other frames. STDHA and ZeroI2V have them (time_offsets), also "
            "merged into a finished model."
        )
    block = shifted[len(shifted) // 2] if block is None else block
    if block not in shifted:
        raise ValueError(f"block {block} has no heads that look at other frames; those with them are {shifted}")
    T = model.config.num_frames
    if frame is not None and not 0 <= frame < T:
        raise ValueError(f"frame ({frame}) lies outside the clip: its {T} frames are 0 to {T - 1}")
    if position is not None and not (len(position) == 2 and all(0 <= share <= 1 for share in position)):
        raise ValueError(
            f"position {tuple(position)} lies outside the picture: (x, y) go from (0, 0), the upper left corner of "
            "the square that the model sees, to (1, 1)"
        )
    clip = read_clip(model, video)
    shift, weights_MHNN = _attention_of(model, getattr(blocks[block], backbone.parts.attention), clip)
    if shift.num_frames != T:
        raise ValueError(
            f"Before block {block} the {T} frames were merged to {shift.num_frames}, so that its tokens belong to no "
            "single frame. Choose an earlier block."
        )
    weights_THNP = weights_MHNN.float().cpu()[..., backbone.num_prefix_tokens :]
    side = grid_side(weights_THNP.shape[-1])
    motion_TP = _motion(clip, side)
    most = 1 + int(motion_TP[1:-1].amax(1).argmax()) if T > 2 else 0  # of the frames that have two beside them
    if position is None:
        patch_T = motion_TP.argmax(1)
    else:
        column, row = (min(int(share * side), side - 1) for share in position)
        patch_T = torch.full((T,), row * side + column)
    weights_THP = weights_THNP[torch.arange(T), :, backbone.num_prefix_tokens + patch_T]
    offsets = (*shift.time_offsets, *[0] * (weights_THP.shape[1] - len(shift.time_offsets)))
    return AttentionOverTime(
        pictures_TChw=clip.pictures_TChw,
        block=block,
        frame=most if frame is None else frame,
        positions_TX=(torch.stack((patch_T % side, patch_T // side), dim=1) + 0.5) / side,
        offsets_H=offsets,
        weights_THrc=weights_THP.unflatten(2, (side, side)),
    )


def _attention_of(model: nn.Module, attention: nn.Module, clip: Clip) -> tuple[TimeShift, torch.Tensor]:
    """How one attention layer shifts its heads, and its probabilities (M, H, N, N)."""
    seen = []

    def keep(module, args, output):
        if isinstance(args[1], TimeShift):  # not where a method runs the same attention over time
            seen.append((args[1], output[1]))

    handle = attention.register_forward_hook(keep)
    try:
        with _eager(attention):
            model(clip.pixels_BTChw)
    finally:
        handle.remove()
    return seen[-1]


@contextmanager
def _eager(attention: nn.Module) -> Iterator[None]:
    """The one attention layer works with its model's eager kernel."""
    own = attention.config
    attention.config = copy.copy(own)
    attention.config.wrapped = copy.copy(own.wrapped)
    attention.config.wrapped._attn_implementation = "eager"
    try:
        yield
    finally:
        attention.config = own


def _motion(clip: Clip, side: int) -> torch.Tensor:
    """How much each patch differs from both frames beside it, (T, P): what moves, where it is now."""
    pixels_TChw = clip.pixels_BTChw[0].float().cpu()
    change_Thw = (pixels_TChw[1:] - pixels_TChw[:-1]).abs().mean(1)
    change_Thw = F.pad(change_Thw, (0, 0, 0, 0, 1, 1), value=math.inf)  # the ends have one frame beside them
    return F.adaptive_avg_pool2d(torch.minimum(change_Thw[1:], change_Thw[:-1]), side).flatten(1)
