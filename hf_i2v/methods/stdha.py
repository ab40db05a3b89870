"""STDHA: Spatio-Temporal Dual-Headed Attention, heads that read another frame's keys and values.

Paper: ZeroI2V (arXiv 2310.01324), section 3.2. For a head with time offset o, frame t attends with

    q_t · k_{t+o},  v_{t+o}        and with its own k_t, v_t where t + o lies outside the clip.

No parameters and no FLOPs: only which rows of k and v a head reads.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from ..backbones import Backbone
from ..stream_state import Kept, Step
from .config import I2VTunerConfig


def shift_heads(x_MHNK: torch.Tensor, num_frames: int, time_offsets: tuple[int, ...]) -> torch.Tensor:
    """The first heads' rows from other frames: out[b, t, h] = x[b, t + o_h, h], or x[b, t, h] outside the clip.

    Args:
        x_MHNK: keys or values, frames of one clip contiguous. Overwritten where no gradient is recorded.
        num_frames: T.
        time_offsets: one offset (frames) per head from head 0 on; heads beyond them stay.
    """
    longest = max(map(abs, time_offsets))
    if longest >= num_frames and max(time_offsets) > 0:  # a stream, which looks back only, may be younger than that
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
        return torch.cat((x_BTNK[:, :-offset], x_BTNK[:, : max(0, T + offset)]), dim=1)
    return x_BTNK


class TimeShift(NamedTuple):
    """Shifts the heads of keys and values in time, before the kernel (see `kernel.py`)."""

    attention_mask: torch.Tensor | None
    num_frames: int
    time_offsets: tuple[int, ...]

    def __call__(self, key_MHNK: torch.Tensor, value_MHNK: torch.Tensor) -> tuple:
        shifted = (shift_heads(x_MHNK, self.num_frames, self.time_offsets) for x_MHNK in (key_MHNK, value_MHNK))
        return *shifted, self.attention_mask


class StreamShift(NamedTuple):
    """A `TimeShift` for one frame of each stream: past frames' keys and values are those that the step recalls."""

    attention_mask: torch.Tensor | None
    step: Step
    place: str
    time_offsets: tuple[int, ...]

    def __call__(self, key_SHNK: torch.Tensor, value_SHNK: torch.Tensor) -> tuple:
        past = self.step.recall(self.place, lambda: self.new_state(key_SHNK))
        keys, values = (
            read_past(x_SHNK, past[name], self.time_offsets, self.step.age_S)
            for name, x_SHNK in (("keys", key_SHNK), ("values", value_SHNK))
        )
        self.step.keep(self.place, {"keys": keys, "values": values})
        return key_SHNK, value_SHNK, self.attention_mask

    def new_state(self, key_SHNK: torch.Tensor) -> Kept:
        """For each head with offset −o the last o frames, the oldest first: (S, Σ o, N, K)."""
        S, _, N, K = key_SHNK.shape
        return {name: key_SHNK.new_zeros(S, -sum(self.time_offsets), N, K) for name in ("keys", "values")}


def read_past(
    x_SHNK: torch.Tensor, past_SRNK: torch.Tensor, time_offsets: tuple[int, ...], age_S: torch.Tensor
) -> torch.Tensor:
    """Give the shifted heads their rows of past frames, in place. A stream that is too young keeps its own.

    Returns:
        What to keep: with offsets −2 and −1 of heads a and b, `a₋₂ a₋₁ b₋₁` becomes `a₋₁ a₀ b₀`.
    """
    kept, first = [], 0
    for head, offset in enumerate(time_offsets):
        if offset:
            rows_SONK, own_SNK = past_SRNK[:, first : first - offset], x_SHNK[:, head].clone()
            there_S11 = (age_S >= -offset)[:, None, None]
            x_SHNK[:, head] = torch.where(there_S11, rows_SONK[:, 0], own_SNK)
            kept += [rows_SONK[:, 1:], own_SNK[:, None]]
            first -= offset
    return torch.cat(kept, dim=1)


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
        causal: the same share of the heads, but all look back (ours, not the paper's).
    """

    method_name = "stdha"
    title = "ZeroI2V's STDHA"
    paper = "arXiv 2310.01324"
    learning_rate = 1e-3
    merges = True
    why_not_causal = None

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
            offsets = default_time_offsets(backbone.num_heads, self.num_frames)
            self.time_offsets = [-abs(offset) for offset in offsets] if self.causal else offsets
        if self.causal and max(self.time_offsets, default=0) > 0:
            raise ValueError(
                f"time_offsets {self.time_offsets} look ahead, and a causal model looks back only. Use offsets <= 0, "
                "or leave them out for the paper's share of the heads."
            )
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
