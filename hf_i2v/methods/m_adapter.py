"""M-adapter: a side branch that reads the blocks of a frozen model, without a gradient into the model.

Paper: M-adapter (CVIU 249:104150). Only the outline is public: a parallel branch of hierarchically combined adapters
over the frozen model's multi-level block outputs, each with a fusion and a temporal module. The inside is ours:

    u_l = W_l LN(x_l)                                    x_l: output of block l, 2×2 patches averaged, no gradient
    f_l = h_{l-1} + σ(G_l [h_{l-1}; u_l]) ⊙ (u_l − h_{l-1})      fusion: a learned gate; h_0 = u_1
    h_l = f_l + dwconv_T(LN f_l);  h_l ← h_l + MLP(LN h_l)       temporal module: depth-wise over time, then the MLP

and W mean(LN h_L) is added to the clip feature, with W zero at the start. Because x_l never changes, the frozen part
can run once per clip and be read from a cache afterwards (`hf_i2v.feature_cache`).
"""

from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn import functional as F

from ..backbones import Backbone, grid_side
from ..frames import convolve_over_time
from .branch import Branch
from .config import I2VTunerConfig

CONVOLVES_OVER_THE_NEXT = "convolves over the next frame too, at every level"


class TimeConv(nn.Conv1d):
    """A depth-wise convolution along T, (B, T, P, d) → (B, T, P, d)."""

    def forward(self, x_BTPd: torch.Tensor) -> torch.Tensor:
        return convolve_over_time(x_BTPd, self.weight[:, 0], self.bias)


class FusionAdapter(nn.Module):
    """One level: (B, T, P, d) from the level below and (B, T, P, D) from the frozen block → (B, T, P, d)."""

    def __init__(self, width: int, branch_width: int, mlp_ratio: float, *, first: bool):
        super().__init__()
        hidden = int(branch_width * mlp_ratio)
        self.norm_in = nn.LayerNorm(width)
        self.project = nn.Linear(width, branch_width)
        self.gate = None if first else nn.Linear(2 * branch_width, branch_width)
        self.norm_time = nn.LayerNorm(branch_width)
        self.time = TimeConv(branch_width, branch_width, 3, groups=branch_width)
        self.norm_mlp = nn.LayerNorm(branch_width)
        self.mlp = nn.Sequential(nn.Linear(branch_width, hidden), nn.GELU(), nn.Linear(hidden, branch_width))

    def forward(self, h_BTPd: torch.Tensor | None, x_BTPD: torch.Tensor) -> torch.Tensor:
        u_BTPd = self.project(self.norm_in(x_BTPD))
        if self.gate is None:
            h_BTPd = u_BTPd
        else:
            gate = torch.sigmoid(self.gate(torch.cat((h_BTPd, u_BTPd), dim=-1)))
            h_BTPd = h_BTPd + gate * (u_BTPd - h_BTPd)
        h_BTPd = h_BTPd + self.time(self.norm_time(h_BTPd))
        return h_BTPd + self.mlp(self.norm_mlp(h_BTPd))


class MAdapterBranch(Branch):
    """Block outputs of a clip and its feature → the feature with the branch's part added, (B, D)."""

    def __init__(self, config: "MAdapterConfig", width: int, num_prefix_tokens: int):
        super().__init__()
        self.levels = list(config.levels)
        self.token_pooling = config.token_pooling
        self.num_prefix_tokens = num_prefix_tokens
        self.adapters = nn.ModuleList(
            FusionAdapter(width, config.branch_width, config.mlp_ratio, first=i == 0) for i in range(len(self.levels))
        )
        self.norm = nn.LayerNorm(config.branch_width)
        self.head = nn.Linear(config.branch_width, width)
        for zero in (self.head.weight, self.head.bias):
            nn.init.zeros_(zero)

    @property
    def why_not_streaming(self) -> str:
        return CONVOLVES_OVER_THE_NEXT

    def reading(self) -> dict:
        return super().reading() | {"token_pooling": self.token_pooling}

    def read(self, x_MND: torch.Tensor) -> torch.Tensor:
        """2×2 patches averaged."""
        if self.token_pooling == 1:
            return x_MND
        prefix, patches = x_MND[:, : self.num_prefix_tokens], x_MND[:, self.num_prefix_tokens :]
        side = grid_side(patches.shape[1])
        grid_MDhw = patches.transpose(1, 2).unflatten(2, (side, side))
        grid_MDhw = F.avg_pool2d(grid_MDhw, self.token_pooling, ceil_mode=True, count_include_pad=False)
        return torch.cat((prefix, grid_MDhw.flatten(2).transpose(1, 2)), dim=1)

    def forward(self, levels_LBTPD: torch.Tensor, feature_BD: torch.Tensor) -> torch.Tensor:
        h_BTPd = None
        for adapter, x_BTPD in zip(self.adapters, levels_LBTPD.to(self.head.weight.dtype), strict=True):
            h_BTPd = adapter(h_BTPd, x_BTPD)
        return feature_BD + self.head(self.norm(h_BTPd).mean((1, 2))).to(feature_BD)


@dataclass
class MAdapterConfig(I2VTunerConfig):
    """Configuration of M-adapter (CVIU 249:104150; the branch's inside is ours, see the module's text).

    Args:
        levels: indices of the blocks whose outputs are read. Default: half of the blocks, evenly spaced.
        branch_width: width d of the branch. Default: the paper's 320 for ViT-B and 512 for ViT-L.
        mlp_ratio: hidden width of a level's MLP over d.
        token_pooling: side of the square of patches that is averaged before the branch; 1 keeps all patches.
    """

    method_name = "m_adapter"
    title = "M-adapter"
    paper = "CVIU 249:104150"
    why_not_causal = CONVOLVES_OVER_THE_NEXT
    why_alone = "reads an unchanged frozen model, which the others change"
    has_branch = True

    levels: list[int] | None = field(
        default=None, metadata={"help": "Blocks whose outputs the branch reads. None: every second one."}
    )
    branch_width: int | None = field(
        default=None, metadata={"help": "Width of the branch. None: 320 for ViT-B, 512 for ViT-L."}
    )
    mlp_ratio: float = field(default=2.0, metadata={"help": "Hidden width of the branch's MLPs over its width."})
    token_pooling: int = field(default=2, metadata={"help": "Patches are averaged over squares of this side."})

    def __post_init__(self):
        super().__post_init__()
        if self.layers_to_transform is not None:
            raise ValueError("M-adapter takes levels, the blocks that it reads, not layers_to_transform.")
        if self.token_pooling < 1 or not self.mlp_ratio > 0:
            raise ValueError(f"token_pooling ({self.token_pooling}) and mlp_ratio ({self.mlp_ratio}) must be positive")

    def resolve(self, backbone: Backbone) -> None:
        super().resolve(backbone)
        num_blocks = len(backbone.blocks)
        if self.levels is None:
            num_levels = max(1, num_blocks // 2)
            self.levels = [(i + 1) * num_blocks // num_levels - 1 for i in range(num_levels)]
        ascending = sorted(set(self.levels)) == self.levels
        if not self.levels or not ascending or self.levels[0] < 0 or self.levels[-1] >= num_blocks:
            raise ValueError(f"levels {self.levels} must be ascending block indices between 0 and {num_blocks - 1}.")
        if self.branch_width is None:
            self.branch_width = {768: 320, 1024: 512}.get(backbone.hidden_size, max(8, backbone.hidden_size // 2))

    def adapts(self, layer: int) -> bool:
        return False  # it reads the blocks and changes none

    def branch_module(self, backbone: Backbone) -> Branch:
        return MAdapterBranch(self, backbone.hidden_size, backbone.num_prefix_tokens)
