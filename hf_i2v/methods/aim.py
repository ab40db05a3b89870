"""AIM: the frozen attention, reused along time, and GELU adapters in three places.

Paper: AIM (arXiv 2302.03024), equations 2 to 4, in this order:

    x ← x + Ad_T(attn(Ad_Tin?(norm1(x over time))))     the same frozen attention, for every token position
    x ← x + Ad_S(attn(norm1 x))                         Ad_S and Ad_Tin have a skip inside, Ad_T and Ad_M have none
    x ← x + mlp(norm2 x) + s·Ad_M(norm2 x)

In a causal model (ours) a frame attends to itself and the T − 1 frames before it, for T the frames of a clip.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn import functional as F

from ..backbones import Backbone
from ..remade import remade, taken_by
from ..stream_state import Kept
from .config import I2VTunerConfig
from .site import SiteModule


class GELUAdapter(SiteModule):
    """W₂ gelu(W₁ x + b₁) + b₂ on (…, D), plus x where it has a skip; at the start 0, or x."""

    frame_wise = True

    def __init__(self, width: int, bottleneck: int, *, skip: bool):
        super().__init__()
        self.down = nn.Linear(width, bottleneck)
        self.up = nn.Linear(bottleneck, width)
        self.skip = skip
        nn.init.trunc_normal_(self.down.weight, std=0.02)
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)

    def forward(self, x: torch.Tensor, **_: object) -> torch.Tensor:
        z_R = remade(self.down, taken_by(self.down, x))
        return remade(self._raised, z_R, x.dtype, *([x] if self.skip else []))

    def _raised(self, z_R: torch.Tensor, dtype: torch.dtype, x: torch.Tensor | None = None) -> torch.Tensor:
        delta = self.up(remade(F.gelu, z_R)).to(dtype)
        return delta if x is None else x + delta


class TemporalAttention(SiteModule):
    """x ← x + drop_path(Ad_T(attn(Ad_Tin?(norm1(x over time))))), with the block's own frozen norm and attention.

    Args:
        last_frames: how many frames up to itself a frame attends to; None: all of the clip.
        num_heads: of the block's attention.
    """

    def __init__(
        self,
        width: int,
        bottleneck: int,
        *,
        adapter_in: bool,
        drop_path: float,
        last_frames: int | None,
        num_heads: int,
    ):
        super().__init__()
        self.last_frames = last_frames
        self.num_heads = num_heads
        self.adapter_in = GELUAdapter(width, bottleneck, skip=True) if adapter_in else None
        self.adapter = GELUAdapter(width, bottleneck, skip=False)
        self.drop_path = drop_path

    def forward(
        self, x_MND: torch.Tensor, *, num_frames: int, norm1: Callable, attend: Callable, **_: object
    ) -> torch.Tensor:
        h_BNTD = norm1(x_MND).unflatten(0, (-1, num_frames)).transpose(1, 2)
        h_CTD = h_BNTD.flatten(0, 1).contiguous()  # C = B·N token positions; linear layers are slow on strided rows
        if self.adapter_in is not None:
            h_CTD = self.adapter_in(h_CTD)
        mask = None if self.last_frames is None else band_mask(num_frames, self.last_frames, h_CTD)
        h_CTD = self.adapter(attend(h_CTD, mask))
        return remade(self._added, x_MND, h_CTD, branch_scale(x_MND, 1.0, self.drop_path, self.training))

    def _added(self, x_MND: torch.Tensor, h_CTD: torch.Tensor, scale_M11: torch.Tensor) -> torch.Tensor:
        h_MND = h_CTD.unflatten(0, (-1, x_MND.shape[1])).transpose(1, 2).flatten(0, 1)
        return torch.addcmul(x_MND, h_MND, scale_M11)

    @property
    def why_not_streaming(self) -> str | None:
        ahead = self.last_frames is None
        return "attends to later frames too; causal=True leaves the last frames only" if ahead else None

    def new_state(self, x_SND: torch.Tensor) -> Kept:
        S, N, D = x_SND.shape
        past_SNHTK = x_SND.new_zeros(S, N, self.num_heads, self.last_frames - 1, D // self.num_heads)
        return {"keys": past_SNHTK, "values": past_SNHTK.clone()}

    def step(
        self, x_SND: torch.Tensor, kept: Kept, *, age_S: torch.Tensor, norm1: Callable, attend: Callable, **_: object
    ) -> tuple[torch.Tensor, Kept]:
        h_C1D = norm1(x_SND).flatten(0, 1)[:, None]  # C = S·N token positions
        if self.adapter_in is not None:
            h_C1D = self.adapter_in(h_C1D)
        recent = RecentFrames(kept, age_S)
        h_C1D = self.adapter(attend(h_C1D, recent))
        return x_SND + h_C1D[:, 0].unflatten(0, x_SND.shape[:2]), recent.kept


def band_mask(num_frames: int, last_frames: int, like: torch.Tensor) -> torch.Tensor:
    """0 where a frame may look, to itself and the frames just before it, and −∞ elsewhere, (1, 1, T, T)."""
    frame = torch.arange(num_frames, device=like.device)
    back_TT = frame[:, None] - frame
    return like.new_zeros(num_frames, num_frames).masked_fill(
        (back_TT < 0) | (back_TT >= last_frames), torch.finfo(like.dtype).min
    )[None, None]


class RecentFrames:
    """Puts the keys and values of the frames before in front of this frame's, before the kernel (see `kernel.py`)."""

    def __init__(self, kept: Kept, age_S: torch.Tensor):
        self.past, self.age_S = kept, age_S
        self.kept: Kept = {}

    def __call__(self, key_CH1K: torch.Tensor, value_CH1K: torch.Tensor) -> tuple:
        *found, mask = self._longer("keys", key_CH1K), self._longer("values", value_CH1K), self._mask(key_CH1K)
        return *found, mask

    def _longer(self, name: str, x_CH1K: torch.Tensor) -> torch.Tensor:
        past_SNHTK = self.past[name]
        x_CHTK = torch.cat((past_SNHTK.flatten(0, 1), x_CH1K), dim=2)
        self.kept[name] = x_CHTK[:, :, 1:].clone().unflatten(0, past_SNHTK.shape[:2])
        return x_CHTK

    def _mask(self, key_CH1K: torch.Tensor) -> torch.Tensor:
        """−∞ where a stream has no frame yet, (C, 1, 1, T)."""
        _, num_tokens, _, past, _ = self.past["keys"].shape
        missing_ST = torch.arange(past + 1, device=self.age_S.device) < past - self.age_S[:, None]
        mask_ST = key_CH1K.new_zeros(missing_ST.shape).masked_fill(missing_ST, torch.finfo(key_CH1K.dtype).min)
        return mask_ST[:, None].expand(-1, num_tokens, -1).flatten(0, 1)[:, None, None]


class JointAdapter(SiteModule):
    """drop_path(s·Ad_M(norm2 x)), beside the MLP."""

    frame_wise = True

    def __init__(self, width: int, bottleneck: int, *, scale: float, drop_path: float):
        super().__init__()
        self.adapter = GELUAdapter(width, bottleneck, skip=False)
        self.scale = scale
        self.drop_path = drop_path

    def forward(self, x_MND: torch.Tensor, **_: object) -> torch.Tensor:
        h_MND = self.adapter(x_MND)
        return branch_scale(h_MND, self.scale, self.drop_path, self.training) * h_MND


def branch_scale(h_MND: torch.Tensor, scale: float, drop_path: float, training: bool) -> torch.Tensor:
    """`scale` for each frame's branch, (M, 1, 1), with stochastic depth (arXiv 1603.09382): a dropped one's is 0, and
    those that stay are scaled up."""
    scale_M11 = h_MND.new_full((h_MND.shape[0], 1, 1), scale)
    if drop_path and training:
        scale_M11 *= torch.empty_like(scale_M11).bernoulli_(1 - drop_path) / (1 - drop_path)
    return scale_M11


@dataclass
class AIMConfig(I2VTunerConfig):
    """Configuration of AIM (arXiv 2302.03024).

    Args:
        adapter_ratio: bottleneck width as a share of the model's width D.
        adapter_scale: s; the paper uses 0.5, and 1.0 on Something-Something-v2.
        temporal_adapter_in: a further adapter before the temporal attention (Something-Something-v2).
        drop_path: probability of dropping the temporal and the joint branch in the last block; it grows linearly from
            0 in the first.
        causal: the temporal attention looks at the last `num_frames` frames only (ours, not the paper's).
    """

    method_name = "aim"
    title = "AIM"
    paper = "arXiv 2302.03024"
    # ours: the paper's 3e-4 is for 64 clips a step and 100 000 steps. With 8 clips of DINOv2 it soon made all answers
    # alike, and an embedding that starts at zero has to come to the size of tokens (0.1) within some 100 steps
    learning_rate = 1e-4
    temporal_embedding_learning_rate = 3e-3
    uses_temporal_embedding = True
    trains_final_norm = True
    default_pooling = "after_norm"
    reuses_attention = True
    why_not_causal = None

    adapter_ratio: float = field(default=0.25, metadata={"help": "Bottleneck width relative to the model's width."})
    adapter_scale: float = field(default=0.5, metadata={"help": "Scale s of the joint adapter; 1.0 for SSv2."})
    temporal_adapter_in: bool = field(
        default=False, metadata={"help": "An adapter before the temporal attention too, as for SSv2."}
    )
    drop_path: float = field(default=0.2, metadata={"help": "Stochastic depth in the last block, growing from 0."})

    def __post_init__(self):
        super().__post_init__()
        if not self.adapter_ratio > 0:
            raise ValueError(f"adapter_ratio ({self.adapter_ratio}) must be > 0")
        if not 0 <= self.drop_path < 1:
            raise ValueError(f"drop_path ({self.drop_path}) must lie in [0, 1)")

    def site_modules(self, backbone: Backbone, layer: int) -> dict[str, SiteModule]:
        width = backbone.hidden_size
        bottleneck = max(1, int(width * self.adapter_ratio))
        probability = self.drop_path * layer / max(1, len(backbone.blocks) - 1)
        return {
            "before": TemporalAttention(
                width,
                bottleneck,
                adapter_in=self.temporal_adapter_in,
                drop_path=probability,
                last_frames=self.num_frames if self.causal else None,
                num_heads=backbone.num_heads,
            ),
            "attention_out": GELUAdapter(width, bottleneck, skip=True),
            "parallel": JointAdapter(width, bottleneck, scale=self.adapter_scale, drop_path=probability),
        }
