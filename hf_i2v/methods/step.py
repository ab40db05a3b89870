"""STEP: a probe that knows the order of the frames, with one attention and nothing after it.

Paper: STEP (arXiv 2503.24298). Public are its three parts: a learned position embedding per frame, one CLS token for
the whole clip, and an attention block without most of its parameters. The inside of that block is ours: no MLP, and
queries from the CLS token alone, because nothing else is read:

    z = (LN c, LN x_{t,i} + p_t);    y = c + W_o attention(LN c, z)      x: patch tokens after the final norm

p starts normal with 1/2; LN x has 1. A start of 0.02 on tokens as they are, usual in transformers, is not seen
beside them: on 96 videos of two actions that differ in their order only, such a STEP stayed near chance.

In a causal STEP (ours) the frames are the last T, and the newest has the last position.

y is the clip feature, with 4 D² parameters where a transformer block has 12 D².
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from ..backbones import Backbone
from .attentive_probe import INIT_STD, POSITION_STD, LastTokensBranch, ProbeConfig, attend_once
from .branch import Branch


class STEPBranch(LastTokensBranch):
    """Patch tokens of a clip → its feature (B, D)."""

    def __init__(self, config: "STEPConfig", backbone: Backbone):
        super().__init__(len(backbone.blocks), backbone.num_prefix_tokens, config.last_frames())
        width = backbone.hidden_size
        self.num_heads = config.num_heads
        self.cls = nn.Parameter(torch.empty(width))
        self.position = nn.Parameter(torch.randn(config.num_frames, width) * POSITION_STD)
        self.norm = nn.LayerNorm(width)
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        for weight in (self.cls, *(linear.weight for linear in (self.q, self.k, self.v, self.out))):
            nn.init.trunc_normal_(weight, std=INIT_STD)
        for linear in (self.q, self.k, self.v, self.out):
            nn.init.zeros_(linear.bias)

    def of_tokens(self, x_BTPD: torch.Tensor, there_BT: torch.Tensor | None = None) -> torch.Tensor:
        x_BND = self.with_positions(self.norm(x_BTPD.to(self.cls.dtype)), self.position).flatten(1, 2)
        z_BND = torch.cat((self.norm(self.cls).expand(x_BND.shape[0], 1, -1), x_BND), dim=1)
        there_BN = None
        if there_BT is not None:  # and the CLS token is always there
            there_BN = F.pad(there_BT.repeat_interleave(x_BTPD.shape[2], dim=1), (1, 0), value=True)
        y_BD = attend_once(self.q(z_BND[:, 0]), z_BND, self.k, self.v, self.num_heads, there_BN)
        return self.cls + self.out(y_BD)


@dataclass
class STEPConfig(ProbeConfig):
    """Configuration of STEP (arXiv 2503.24298; the attention block's inside is ours, see the module's text): that of
    `ProbeConfig`.
    """

    method_name = "step"
    title = "STEP"
    paper = "arXiv 2503.24298"
    learning_rate = 3e-3

    def branch_module(self, backbone: Backbone) -> Branch:
        return STEPBranch(self, backbone)
