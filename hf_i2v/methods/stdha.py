"""STDHA: Spatio-Temporal Dual-Headed Attention, heads that read another frame's keys and values.

Paper: ZeroI2V (arXiv 2310.01324), section 3.2. For a head with time offset o, frame t attends with

    q_t · k_{t+o},  v_{t+o}        and with its own k_t, v_t where t + o lies outside the clip.

No parameters and no FLOPs: only which rows of k and v a head reads.
"""

import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import nn
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ..backbones import Backbone
from .config import I2VTunerConfig


def shift_heads(x_MHNK: torch.Tensor, num_frames: int, time_offsets: tuple[int, ...]) -> torch.Tensor:
    """The first heads' rows from other frames: out[b, t, h] = x[b, t + o_h, h], or x[b, t, h] outside the clip.

    Args:
        x_MHNK: keys or values, frames of one clip contiguous. Overwritten where no gradient is recorded.
        num_frames: T.
        time_offsets: one offset (frames) per head from head 0 on; heads beyond them stay.
    """
    longest = max(map(abs, time_offsets))
    if longest >= num_frames:
        raise ValueError(
            f"A time offset of {longest} frames needs clips of more than {longest} frames, but num_frames is "
            f"{num_frames}. Use longer clips, or smaller time_offsets."
        )
    x_BTHNK = x_MHNK.unflatten(0, (-1, num_frames))
    if torch.is_grad_enabled() and x_MHNK.requires_grad:
        shifted = [_shift(x_BTHNK[:, :, h], offset).flatten(0, 1) for h, offset in enumerate(time_offsets)]
        return torch.cat((torch.stack(shifted, dim=1), x_MHNK[:, len(time_offsets) :]), dim=1)
    for h, offset in enumerate(time_offsets):  # the projection's fresh output: only the moved heads are written
        x_BTHNK[:, :, h] = _shift(x_BTHNK[:, :, h], offset)
    return x_MHNK


def _shift(x_BTNK: torch.Tensor, offset: int) -> torch.Tensor:
    T = x_BTNK.shape[1]
    if offset > 0:  # 0 1 2 3 → 1 2 3 3
        return torch.cat((x_BTNK[:, offset:], x_BTNK[:, T - offset :]), dim=1)
    if offset < 0:  # 0 1 2 3 → 0 0 1 2
        return torch.cat((x_BTNK[:, :-offset], x_BTNK[:, : T + offset]), dim=1)
    return x_BTNK


class TimeShift(NamedTuple):
    """Passed instead of the attention mask, the only argument that every model hands on to its kernel."""

    attention_mask: torch.Tensor | None
    num_frames: int
    time_offsets: tuple[int, ...]


class TimeShiftConfig:
    """An attention layer's config with another kernel name, STDHA's. All other attributes are the real config's.

    Each call reads the user's kernel (eager, sdpa, flash, flex) from the real config. So `set_attn_implementation`
    keeps working and does not switch STDHA off.
    """

    _attn_implementation = f"stdha ({__name__})"  # a copy of this module beside a model has a kernel of its own

    def __init__(self, attention: nn.Module):
        self.wrapped = attention.config
        # "eager" is no entry of transformers' registry but a function of each model's module
        self.eager = sys.modules[type(attention).__module__].eager_attention_forward

    def __getattr__(self, name):
        if name == "wrapped":  # not set yet while copying or unpickling
            raise AttributeError(name)
        return getattr(self.wrapped, name)


class _WithRealConfig:
    """An attention layer as a kernel expects it: some kernels read their own name from `module.config`."""

    def __init__(self, module: nn.Module):
        self.module, self.config = module, module.config.wrapped

    def __getattr__(self, name):
        return getattr(self.module, name)


def stdha_attention(module, query, key, value, attention_mask, **kwargs):
    """Attention function: shift the heads of k and v in time, then call the kernel that the user chose."""
    if isinstance(attention_mask, TimeShift):
        attention_mask, num_frames, time_offsets = attention_mask
        key = shift_heads(key, num_frames, time_offsets)
        value = shift_heads(value, num_frames, time_offsets)
    name = module.config.wrapped._attn_implementation
    kernel = ALL_ATTENTION_FUNCTIONS.get_interface(name, module.config.eager)
    if name not in ("eager", "sdpa"):
        module = _WithRealConfig(module)
    return kernel(module, query, key, value, attention_mask, **kwargs)


AttentionInterface.register(TimeShiftConfig._attn_implementation, stdha_attention)


def default_time_offsets(num_heads: int, num_frames: int) -> list[int]:
    """The paper's allocation of heads to offsets for a backbone of `num_heads` heads and clips of `num_frames`.

    Published: 12 heads (B/16), 8 frames: −1 +1; 16 and 32 frames: −1 +1 −2 +2. 16 heads (L/14), 8 frames: −1 +1, two
    heads each; 32 frames: ±1 two heads each, ±2 one each, −3 one. Other sizes follow the same shares of the heads.
    """
    near = max(1, num_heads // 8)
    offsets = [-1] * near + [1] * near
    if num_frames >= 16 and len(offsets) + 2 <= num_heads:
        offsets += [-2, 2]
        if num_heads >= 16 and num_frames >= 32:
            offsets += [-3]
    return offsets[:num_heads]


@dataclass
class STDHAConfig(I2VTunerConfig):
    """Configuration of STDHA (arXiv 2310.01324).

    Args:
        time_offsets: offsets in frames, one per head from head 0 on (missing heads: 0), or `{offset: number of
            heads}`. Default: the paper's for the backbone and the number of frames.
    """

    method_name = "stdha"
    title = "ZeroI2V's STDHA"
    paper = "arXiv 2310.01324"
    merges = True

    time_offsets: list[int] | dict[int, int] | None = field(
        default=None,
        metadata={
            "help": "Frame offsets of the heads, in order from head 0, as a list or as {offset: number of heads}. "
            "None: the paper's allocation for the backbone and the number of frames."
        },
    )

    def __post_init__(self):
        super().__post_init__()
        if isinstance(self.time_offsets, dict):
            self.time_offsets = [int(offset) for offset, heads in self.time_offsets.items() for _ in range(heads)]

    def resolve(self, backbone: Backbone) -> None:
        super().resolve(backbone)
        if self.time_offsets is None:
            self.time_offsets = default_time_offsets(backbone.num_heads, self.num_frames)
        check_time_offsets(self.time_offsets, backbone.num_heads, self.num_frames)

    def head_time_offsets(self, layer: int) -> tuple[int, ...]:
        return trim(self.time_offsets) if self.adapts(layer) else ()


def trim(time_offsets: Iterable[int] | None) -> tuple[int, ...]:
    """Without the zeros at the end: heads that are not named stay anyway."""
    offsets = list(time_offsets or ())
    while offsets and offsets[-1] == 0:
        offsets.pop()
    return tuple(offsets)


def check_time_offsets(time_offsets: list[int], num_heads: int, num_frames: int) -> None:
    """Raise ValueError for more offsets than heads, or an offset that no frame of the clip can reach."""
    if len(time_offsets) > num_heads:
        raise ValueError(
            f"time_offsets {time_offsets} names {len(time_offsets)} heads, but the model has {num_heads} heads."
        )
    too_long = [offset for offset in time_offsets if abs(offset) >= num_frames]
    if too_long:
        raise ValueError(
            f"time_offsets has {too_long}, but in a clip of num_frames={num_frames} an offset must lie between "
            f"{1 - num_frames} and {num_frames - 1}."
        )
