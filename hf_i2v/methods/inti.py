"""InTI: neighbouring frames are merged, so that the rest of the network works on half of them.

Paper: InTI (arXiv 2408.06840). For frames 2i and 2i+1 and every token position:

    x' = w₀·x_{2i} + w₁·x_{2i+1},    (w₀, w₁) = softmax of two logits, predicted per token from a multi-scale context.

The inside of the predictor and its place are not public, so these are ours: a projection of both tokens to a small
width, plus a depth-wise 3×3 spatial context of it, plus its mean over the frame → GELU → two logits. The last layer
is zero at the start, so it begins as plain averaging. CLS and register tokens have no spatial context.
"""

from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn import functional as F

from ..backbones import Backbone, grid_side
from ..remade import remade, taken_by
from .config import I2VTunerConfig
from .site import SiteModule

MERGES_THE_NEXT = "merges each frame with the next one"


class InTI(SiteModule):
    """(B·T, N, D) → (B·T/2, N, D)."""

    frames_merged = 2

    def __init__(self, width: int, context_width: int, num_prefix_tokens: int):
        super().__init__()
        self.project = nn.Linear(2 * width, context_width)
        self.spatial = nn.Conv2d(context_width, context_width, 3, padding=1, groups=context_width)
        self.logits = nn.Linear(context_width, 2)
        self.num_prefix_tokens = num_prefix_tokens
        nn.init.trunc_normal_(self.project.weight, std=0.02)
        for zero in (self.project.bias, self.logits.weight, self.logits.bias):
            nn.init.zeros_(zero)

    def forward(self, x_MND: torch.Tensor, *, num_frames: int, **_: object) -> torch.Tensor:
        if num_frames % 2:
            raise ValueError(f"InTI merges pairs of frames, but the clip has {num_frames} frames at its place.")
        x_P2ND = x_MND.unflatten(0, (-1, 2))  # P pairs of neighbouring frames
        weights_PN2 = self.weights(x_P2ND).to(x_MND.dtype)
        return x_P2ND[:, 0] * weights_PN2[..., :1] + x_P2ND[:, 1] * weights_PN2[..., 1:]

    def weights(self, x_P2ND: torch.Tensor) -> torch.Tensor:
        """(w₀, w₁) of each token of a pair, (P, N, 2)."""
        pair_PNE = remade(lambda x_P2ND: torch.cat((x_P2ND[:, 0], x_P2ND[:, 1]), dim=-1), x_P2ND)  # E = 2·D
        z_PNR = self.project(taken_by(self.project, pair_PNE))
        context_PNR = z_PNR + self.spatial_context(z_PNR) + z_PNR.mean(1, keepdim=True)
        return self.logits(F.gelu(context_PNR)).softmax(-1)

    @property
    def why_not_streaming(self) -> str:
        return MERGES_THE_NEXT

    def spatial_context(self, z_PNR: torch.Tensor) -> torch.Tensor:
        """A 3×3 depth-wise convolution over the patch grid; zero for the prefix tokens."""
        patches = z_PNR[:, self.num_prefix_tokens :]
        side = grid_side(patches.shape[1])
        grid_PRhw = patches.unflatten(1, (side, side)).permute(0, 3, 1, 2)
        context = self.spatial(grid_PRhw).permute(0, 2, 3, 1).flatten(1, 2)
        return F.pad(context, (0, 0, self.num_prefix_tokens, 0))


@dataclass
class InTIConfig(I2VTunerConfig):
    """Configuration of InTI (arXiv 2408.06840; predictor and place are ours, see the module's text).

    Args:
        insert_before: indices of the blocks before which the number of frames is halved. Default: once, before block
            L/4 (3 of 12, 6 of 24), which leaves 5/8 of the cost.
        context_width: width of the predictor.
    """

    method_name = "inti"
    title = "InTI"
    paper = "arXiv 2408.06840"
    why_not_causal = MERGES_THE_NEXT
    merges_frames = True
    trains_final_norm = True

    insert_before: list[int] | None = field(
        default=None, metadata={"help": "Blocks before which the frames are halved; None: once, before block L/4."}
    )
    context_width: int = field(default=64, metadata={"help": "Width of the predictor of the merging weights."})

    def __post_init__(self):
        super().__post_init__()
        if self.context_width < 1:
            raise ValueError(f"context_width ({self.context_width}) must be >= 1")
        if self.layers_to_transform is not None:
            raise ValueError("InTI takes insert_before, the blocks before which it stands, not layers_to_transform.")
        if self.insert_before is not None and len(set(self.insert_before)) != len(self.insert_before):
            raise ValueError(f"insert_before {self.insert_before} names a block twice.")

    def resolve(self, backbone: Backbone) -> None:
        super().resolve(backbone)
        num_blocks = len(backbone.blocks)
        if self.insert_before is None:
            self.insert_before = [num_blocks // 4]
        outside = [layer for layer in self.insert_before if not 0 <= layer < num_blocks]
        if outside or not self.insert_before:
            raise ValueError(
                f"insert_before {self.insert_before} must name blocks of the model, which has 0 to {num_blocks - 1}."
            )
        if self.num_frames % self.frames_merged():
            raise ValueError(
                f"InTI halves the frames {len(self.insert_before)} times, so num_frames ({self.num_frames}) must be a "
                f"multiple of {self.frames_merged()}."
            )

    def frames_merged(self) -> int:
        return InTI.frames_merged ** len(self.insert_before)

    def adapts(self, layer: int) -> bool:
        return layer in self.insert_before

    def site_modules(self, backbone: Backbone, layer: int) -> dict[str, SiteModule]:
        return {"before": InTI(backbone.hidden_size, self.context_width, backbone.num_prefix_tokens)}
