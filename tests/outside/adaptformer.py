"""Somebody's own method: AdaptFormer (arXiv 2205.13535), a ReLU bottleneck beside the MLP of every block."""

from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn import functional as F

import hf_i2v


class AdaptMLP(hf_i2v.SiteModule):
    """s · W₂ relu(W₁ LN(x)): equation 2; x is norm2's output here. Zero at the start."""

    frame_wise = True

    def __init__(self, width: int, bottleneck: int, scale: float):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.down = nn.Linear(width, bottleneck)
        self.up = nn.Linear(bottleneck, width)
        self.scale = scale
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)

    def forward(self, x_MND: torch.Tensor, **_) -> torch.Tensor:
        return self.scale * self.up(F.relu(self.down(self.norm(x_MND))))


@hf_i2v.register_method
@dataclass
class AdaptFormerConfig(hf_i2v.I2VTunerConfig):
    """
    Args:
        bottleneck: width of the bottleneck.
        adapter_scale: s.
    """

    method_name = "adaptformer"
    title = "AdaptFormer"
    paper = "arXiv 2205.13535"
    frame_wise = True
    why_not_causal = None

    bottleneck: int = field(default=64, metadata={"help": "Width of the bottleneck."})
    adapter_scale: float = field(default=0.1, metadata={"help": "Scale s of the branch."})

    def site_modules(self, backbone, layer):
        return {"parallel": AdaptMLP(backbone.hidden_size, self.bottleneck, self.adapter_scale)}
