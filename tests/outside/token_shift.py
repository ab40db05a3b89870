"""Somebody's own method without parameters: part of each token's channels comes from the frame before and the frame
after (the idea of TSM, arXiv 1811.08383, on the input of the attention)."""

from dataclasses import dataclass, field

import torch

from hf_i2v import I2VTunerConfig, SiteModule, register_method


def _shift(x_BTNR: torch.Tensor, offset: int) -> torch.Tensor:  # another `_shift` than hf_i2v's
    return torch.roll(x_BTNR, -offset, dims=1)


class TokenShift(SiteModule):
    """x[t, :R] ← x[t − 1, :R], x[t, R:2R] ← x[t + 1, R:2R]; frames wrap around."""

    def __init__(self, share: float):
        super().__init__()
        self.share = share

    def forward(self, x_MND: torch.Tensor, *, num_frames: int, **_) -> torch.Tensor:
        width = int(x_MND.shape[-1] * self.share)
        past, future, rest = x_MND.unflatten(0, (-1, num_frames)).split(
            [width, width, x_MND.shape[-1] - 2 * width], dim=-1
        )
        return torch.cat((_shift(past, -1), _shift(future, 1), rest), dim=-1).flatten(0, 1)


@register_method
@dataclass
class TokenShiftConfig(I2VTunerConfig):
    """
    Args:
        share: of the channels that come from the frame before, and as many from the frame after.
    """

    method_name = "token_shift"
    title = "Token shift"
    paper = "arXiv 1811.08383"

    share: float = field(default=0.25, metadata={"help": "Share of the channels that move, each way."})

    def site_modules(self, backbone, layer):
        return {"attention_in": TokenShift(self.share)}
