"""ST-Adapter: a bottleneck with a depth-wise 3-D convolution, on the residual stream.

Paper: ST-Adapter (arXiv 2206.13559), equation 3:  x ← x + W₂ · DWConv3D(W₁ x), no non-linearity, on patch tokens only;
CLS and register tokens pass by. The convolution is a cross-correlation (tap 0 is the previous frame), zero-padded in
the bottleneck, so W₁'s bias does not enter the padding.
"""

from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn import functional as F

from ..backbones import Backbone, grid_side
from ..frames import convolve_over_time
from ..remade import remade, taken_by
from ..stream_state import Kept
from .config import I2VTunerConfig
from .site import SiteModule

ST_SITES = ("before", "between")


class TokenConv3d(nn.Conv3d):
    """The depth-wise convolution over frames, rows and columns of patch tokens, (B, T, N, R) → (B, T, N, R).

    Its results for the prefix tokens are not used. They are computed where that is cheaper than copying the patches.
    """

    def __init__(self, channels: int, kernel_size: tuple[int, int, int], num_prefix_tokens: int, *, causal: bool):
        padding = (0 if causal else kernel_size[0] // 2, kernel_size[1] // 2, kernel_size[2] // 2)
        super().__init__(channels, channels, kernel_size, padding=padding, groups=channels)
        self.num_prefix_tokens = num_prefix_tokens
        self.causal = causal

    def forward(self, z_BTNR: torch.Tensor) -> torch.Tensor:
        if self.kernel_size[1:] == (1, 1):
            return convolve_over_time(z_BTNR, self.weight.flatten(1), self.bias, causal=self.causal)
        if self.causal:
            z_BTNR = F.pad(z_BTNR, (0, 0, 0, 0, self.kernel_size[0] - 1, 0))
        return self._over_grid(z_BTNR)

    def last(self, z_SKNR: torch.Tensor) -> torch.Tensor:
        """The last frame's result, from as many frames as there are taps: (S, N, R)."""
        if self.kernel_size[1:] == (1, 1):
            return torch.einsum("sknr,rk->snr", z_SKNR, self.weight.flatten(1)) + self.bias
        return self._over_grid(z_SKNR)[:, 0]

    def _over_grid(self, z_BTNR: torch.Tensor) -> torch.Tensor:
        patches = z_BTNR[:, :, self.num_prefix_tokens :]
        side = grid_side(patches.shape[2])
        z_BRThw = patches.unflatten(2, (side, side)).permute(0, 4, 1, 2, 3)
        z_BTPR = super().forward(z_BRThw).permute(0, 2, 3, 4, 1).flatten(2, 3)
        return F.pad(z_BTPR, (0, 0, self.num_prefix_tokens, 0))


class STAdapter(SiteModule):
    """x_patches ← x_patches + W₂ · DWConv3D(W₁ x_patches) on (M, N, D); the identity at the start.

    With `causal` the last tap reads the frame itself. A stream keeps the bottlenecks of the frames under other taps.
    """

    def __init__(
        self,
        width: int,
        bottleneck: int,
        kernel_size: tuple[int, int, int],
        num_prefix_tokens: int,
        *,
        causal: bool = False,
    ):
        super().__init__()
        self.down = nn.Linear(width, bottleneck)
        self.conv = TokenConv3d(bottleneck, kernel_size, num_prefix_tokens, causal=causal)
        self.up = nn.Linear(bottleneck, width)
        self.num_prefix_tokens = num_prefix_tokens
        for zero in (self.down.bias, self.conv.weight, self.conv.bias, self.up.bias):
            nn.init.zeros_(zero)

    def forward(self, x_MND: torch.Tensor, *, num_frames: int, **_: object) -> torch.Tensor:
        z_MNR = self.down(taken_by(self.down, x_MND))
        z_BTNR = z_MNR.unflatten(0, (-1, num_frames))
        return remade(self._added, x_MND, remade(self.conv, z_BTNR).flatten(0, 1))

    def _added(self, x_MND: torch.Tensor, z_MNR: torch.Tensor) -> torch.Tensor:
        delta_MND = self.up(z_MNR).to(x_MND.dtype)
        delta_MND[:, : self.num_prefix_tokens] = 0
        return delta_MND.add_(x_MND)

    @property
    def why_not_streaming(self) -> str | None:
        ahead = not self.conv.causal and self.conv.kernel_size[0] > 1
        return "convolves over later frames too; causal=True ends its taps at the current one" if ahead else None

    def new_state(self, x_SND: torch.Tensor) -> Kept:
        past, weight = self.conv.kernel_size[0] - 1, self.down.weight
        rows = x_SND.new_zeros(x_SND.shape[0], past, x_SND.shape[1], weight.shape[0], dtype=weight.dtype)
        return {"rows": rows}

    def step(self, x_SND: torch.Tensor, kept: Kept, **_: object) -> tuple[torch.Tensor, Kept]:
        z_SNR = self.down(taken_by(self.down, x_SND))
        z_SKNR = torch.cat((kept["rows"], z_SNR[:, None]), dim=1)  # zeros before the first frame: the padding
        return self._added(x_SND, self.conv.last(z_SKNR)), {"rows": z_SKNR[:, 1:].clone()}


@dataclass
class STAdapterConfig(I2VTunerConfig):
    """Configuration of ST-Adapter (arXiv 2206.13559).

    Args:
        adapter_width: width R of the bottleneck; the paper uses 384 for ViT-B and ViT-L alike.
        adapter_sites: "between" (before the MLP; Kinetics, "12×384") or "before" and "between" (before the attention
            too; Something-Something-v2, "24×384").
        kernel_size: of the depth-wise convolution, (frames, height, width), odd numbers.
        layers_to_transform: the blocks with adapters; the released code adapts the last ones.
        causal: the convolution's taps end at the current frame (ours, not the paper's).
    """

    method_name = "st_adapter"
    title = "ST-Adapter"
    paper = "arXiv 2206.13559"
    learning_rate = 1e-3
    unused_parameters = True  # the last block's adapter at "between", if the feature is the CLS token
    default_pooling = "before_norm"
    why_not_causal = None

    adapter_width: int = field(default=384, metadata={"help": "Width of the bottleneck."})
    adapter_sites: list[str] = field(
        default_factory=lambda: ["between"],
        metadata={"help": "Where adapters stand: before (the attention) and/or between (attention and MLP)."},
    )
    kernel_size: tuple[int, int, int] = field(
        default=(3, 1, 1), metadata={"help": "Kernel of the depth-wise convolution: frames, height, width."}
    )

    def __post_init__(self):
        super().__post_init__()
        self.kernel_size = tuple(self.kernel_size)
        if len(self.kernel_size) != 3 or any(k < 1 or k % 2 == 0 for k in self.kernel_size):
            raise ValueError(f"kernel_size {self.kernel_size} must be three odd numbers (frames, height, width)")
        if set(self.adapter_sites) - set(ST_SITES) or not self.adapter_sites:
            raise ValueError(f"adapter_sites {self.adapter_sites} must be some of {list(ST_SITES)}")
        if self.adapter_width < 1:
            raise ValueError(f"adapter_width ({self.adapter_width}) must be >= 1")

    def site_modules(self, backbone: Backbone, layer: int) -> dict[str, SiteModule]:
        return {
            site: STAdapter(
                backbone.hidden_size,
                self.adapter_width,
                self.kernel_size,
                backbone.num_prefix_tokens,
                causal=self.causal,
            )
            for site in self.adapter_sites
        }
