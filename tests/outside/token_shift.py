"""Somebody's own method without parameters: part of each token's channels comes from the frame before and the frame
after (the idea of TSM, arXiv 1811.08383, on the input of the attention)."""

from dataclasses import dataclass, field

import torch

from hf_i2v import I2VTunerConfig, SiteModule, register_method


def _shift(x_BTNR: torch.Tensor, offset: int) -> torch.Tensor:  # another `_shift` than hf_i2v's
    return torch.roll(x_BTNR, -offset, dims=1)


class TokenShift(SiteModule):
    """x[t, :R] ← x[t − 1, :R], x[t, R:2R] ← x[t + 1, R:2R]; frames wrap around. Causal: x[t, :2R] ← x[t − 1, :2R]."""

    def __init__(self, share: float, causal: bool = False):
        super().__init__()
        self.share, self.causal = share, causal

    def forward(self, x_MND: torch.Tensor, *, num_frames: int, **_) -> torch.Tensor:
        width = int(x_MND.shape[-1] * self.share)
        x_BTND = x_MND.unflatten(0, (-1, num_frames))
        if self.causal:
            past = torch.cat((x_BTND[:, :1], x_BTND[:, :-1]), dim=1)[..., : 2 * width]
            return torch.cat((past, x_BTND[..., 2 * width :]), dim=-1).flatten(0, 1)
        past, future, rest = x_BTND.split([width, width, x_MND.shape[-1] - 2 * width], dim=-1)
        return torch.cat((_shift(past, -1), _shift(future, 1), rest), dim=-1).flatten(0, 1)

    @property
    def why_not_streaming(self):
        return None if self.causal else "shifts later frames in; causal=True shifts past ones only"

    def new_state(self, x_SND):
        return {"last": torch.zeros_like(x_SND[..., : 2 * int(x_SND.shape[-1] * self.share)])}

    def step(self, x_SND, kept, *, age_S, **_):
        own = x_SND[..., : kept["last"].shape[-1]]
        past = torch.where((age_S > 0)[:, None, None], kept["last"], own)
        return torch.cat((past, x_SND[..., own.shape[-1] :]), dim=-1), {"last": own.clone()}


@register_method
@dataclass
class TokenShiftConfig(I2VTunerConfig):
    """
    Args:
        share: of the channels that come from the frame before, and as many from the frame after.
    """

    method_name, title, paper = "token_shift", "Token shift", "arXiv 1811.08383"
    why_not_causal = None

    share: float = field(default=0.25, metadata={"help": "Share of the channels that move, each way."})

    def site_modules(self, backbone, layer):
        return {"attention_in": TokenShift(self.share, self.causal)}
