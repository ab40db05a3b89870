"""Linear adapters: bottlenecks without a non-linearity, which fold into the frozen weights after training.

Paper: ZeroI2V (arXiv 2310.01324), section 3.3:  y = x + s·(W₂ (W₁ x + b₁) + b₂), so y = A x + a with
A = I + s·W₂W₁ and a = s·(W₂b₁ + b₂). At the input of a frozen layer W x + b it becomes W A, b + W a; at the output
A W, A b + a.
"""

from dataclasses import dataclass, field

import torch
from torch import nn

from ..backbones import Backbone
from ..remade import remade, taken_by
from .config import I2VTunerConfig
from .site import FOLDING_SITES, AffineMap, SiteModule


class LinearAdapter(SiteModule):
    """y = x + s·(W₂·drop(W₁x + b₁) + b₂) on (…, D); the identity at the start."""

    folds = True
    frame_wise = True

    def __init__(self, width: int, bottleneck: int, scale: float, dropout: float):
        super().__init__()
        self.down = nn.Linear(width, bottleneck)
        self.dropout = nn.Dropout(dropout)
        self.up = nn.Linear(bottleneck, width)
        self.scale = scale
        nn.init.trunc_normal_(self.down.weight, std=0.02)
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)

    def forward(self, x: torch.Tensor, **_: object) -> torch.Tensor:
        z_R = lean_dropout(self.down(taken_by(self.down, x)), self.dropout)
        return remade(self._added, x, z_R)

    def _added(self, x: torch.Tensor, z_R: torch.Tensor) -> torch.Tensor:
        return torch.add(x, self.up(z_R).to(x.dtype), alpha=self.scale)

    def affine(self) -> AffineMap:
        """y = (I + s·W₂·W₁) x + s·(W₂b₁ + b₂)."""
        dtype = torch.promote_types(self.down.weight.dtype, torch.float32)
        down, up = self.down.weight.to(dtype), self.scale * self.up.weight.to(dtype)
        return AffineMap(up, down, up @ self.down.bias.to(dtype) + self.scale * self.up.bias.to(dtype))


def lean_dropout(x: torch.Tensor, dropout: nn.Dropout) -> torch.Tensor:
    """The same values as `dropout(x)`. autograd keeps a byte for each, on the CPU too."""
    return torch.native_dropout(x, dropout.p, True)[0] if dropout.training and dropout.p else x


@dataclass
class LinearAdapterConfig(I2VTunerConfig):
    """Configuration of the linear adapters (arXiv 2310.01324).

    Args:
        adapter_ratio: bottleneck width as a share of the model's width D.
        adapter_scale: s; the paper uses 0.5, and 1.0 on Something-Something-v2.
        adapter_dropout: dropout in the bottleneck during training.
        adapter_sites: where adapters stand, of attention_in (shared by q, k, v), attention_out, mlp_in, mlp_out.
    """

    method_name = "linear_adapter"
    title = "ZeroI2V's linear adapters"
    paper = "arXiv 2310.01324"
    merges = True
    trains_final_norm = True
    frame_wise = True
    why_not_causal = None

    adapter_ratio: float = field(default=0.25, metadata={"help": "Bottleneck width relative to the model's width."})
    adapter_scale: float = field(default=0.5, metadata={"help": "Scale s of the adapter's branch; 1.0 for SSv2."})
    adapter_dropout: float = field(default=0.1, metadata={"help": "Dropout in the bottleneck while training."})
    adapter_sites: list[str] = field(
        default_factory=lambda: list(FOLDING_SITES),
        metadata={"help": f"Sites with an adapter, some of {FOLDING_SITES}."},
    )

    def __post_init__(self):
        super().__post_init__()
        unknown = set(self.adapter_sites) - set(FOLDING_SITES)
        if unknown or not self.adapter_sites:
            raise ValueError(f"adapter_sites {self.adapter_sites} must be some of {list(FOLDING_SITES)}")
        if not self.adapter_ratio > 0:
            raise ValueError(f"adapter_ratio ({self.adapter_ratio}) must be > 0")
        if not 0 <= self.adapter_dropout < 1:
            raise ValueError(f"adapter_dropout ({self.adapter_dropout}) must lie in [0, 1)")

    def folding_sites(self) -> tuple[str, ...]:
        return tuple(self.adapter_sites)

    def site_modules(self, backbone: Backbone, layer: int) -> dict[str, SiteModule]:
        bottleneck = max(1, int(backbone.hidden_size * self.adapter_ratio))
        return {
            site: LinearAdapter(backbone.hidden_size, bottleneck, self.adapter_scale, self.adapter_dropout)
            for site in self.adapter_sites
        }
