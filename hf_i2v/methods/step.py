"""STEP: a probe that knows the order of the frames, with one attention and nothing after it.

Paper: STEP (arXiv 2503.24298). Public are its three parts: a learned position embedding per frame, one CLS token for
the whole clip, and an attention block without most of its parameters. The inside of that block is ours: no MLP, and
queries from the CLS token alone, because nothing else is read:

    z = (c, x_{t,i} + p_t);    y = c + W_o attention(LN c, LN z)         x: patch tokens after the final norm

y is the clip feature, with 4 D² parameters where a transformer block has 12 D².
"""

from dataclasses import dataclass, field

import torch
from torch import nn

from ..backbones import Backbone
from ..frames import over_frames
from .attentive_probe import INIT_STD, LastTokensBranch, attend_once, resolved_num_heads
from .branch import Branch
from .config import I2VTunerConfig


class STEPBranch(LastTokensBranch):
    """Patch tokens of a clip → its feature (B, D)."""

    def __init__(self, config: "STEPConfig", backbone: Backbone):
        super().__init__(len(backbone.blocks), backbone.num_prefix_tokens)
        width = backbone.hidden_size
        self.num_heads = config.num_heads
        self.cls = nn.Parameter(torch.empty(width))
        self.position = nn.Parameter(torch.empty(config.num_frames, width))
        self.norm = nn.LayerNorm(width)
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        for weight in (self.cls, self.position, *(linear.weight for linear in (self.q, self.k, self.v, self.out))):
            nn.init.trunc_normal_(weight, std=INIT_STD)
        for linear in (self.q, self.k, self.v, self.out):
            nn.init.zeros_(linear.bias)

    def forward(self, levels_LBTPD: torch.Tensor, feature_BD: torch.Tensor) -> torch.Tensor:
        x_BTPD = levels_LBTPD[0].to(self.cls.dtype)
        position_TD = over_frames(self.position, x_BTPD.shape[1])
        x_BND = (x_BTPD + position_TD[:, None]).flatten(1, 2)
        z_BND = self.norm(torch.cat((self.cls.expand(x_BND.shape[0], 1, -1), x_BND), dim=1))
        y_BD = attend_once(self.q(z_BND[:, 0]), z_BND, self.k, self.v, self.num_heads)
        return (self.cls + self.out(y_BD)).to(feature_BD.dtype)


@dataclass
class STEPConfig(I2VTunerConfig):
    """Configuration of STEP (arXiv 2503.24298; the attention block's inside is ours, see the module's text).

    Args:
        num_heads: of the attention. Default: 16, or what divides the model's width and is nearest to it.
    """

    method_name = "step"
    title = "STEP"
    paper = "arXiv 2503.24298"
    why_alone = "reads an unchanged frozen model, which the others change"
    has_branch = True

    num_heads: int | None = field(
        default=None, metadata={"help": "Attention heads. None: 16, or the nearest that divides the width."}
    )

    def __post_init__(self):
        super().__post_init__()
        if self.layers_to_transform is not None:
            raise ValueError("STEP reads the last block, and adapts none: leave out layers_to_transform.")

    def resolve(self, backbone: Backbone) -> None:
        super().resolve(backbone)
        self.num_heads = resolved_num_heads(self.num_heads, backbone)

    def adapts(self, layer: int) -> bool:
        return False

    def branch_module(self, backbone: Backbone) -> Branch:
        return STEPBranch(self, backbone)
