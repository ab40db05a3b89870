"""Frame2Freq, multi-scale form: an adapter that convolves along frequency as well as along time.

Paper: Frame2Freq (arXiv 2602.18977). ST-Adapter's skeleton after each block, x ← x + W₂ [u; v] with (a; b) = W₁ x
split in half by channels:

    u = DWConv_T(a)                                            along time, as in ST-Adapter
    v = mean over windows w of  IFFT(DWConv_f(FFT_w(b)))       clips cut into windows of T, T/2 and T/4 frames

The convolution along frequency is depth-wise and the same for all windows. Ours: real and imaginary parts are channels
with weights of their own; convolutions are zero at the start, so that the adapter begins as the identity; patch tokens
only, CLS and register tokens pass by. The transform is computed in float32 as a product with a small matrix: windows
have a few frames, and such a product exports everywhere. (The authors' code reshapes the spectrum without moving its
axes, so that its convolution is not along frequency; this is the equation of the text.)
"""

import math
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ..backbones import Backbone
from ..frames import convolve_over_time
from ..remade import remade, taken_by
from .config import I2VTunerConfig
from .site import SiteModule

F2F_SITES = ("before", "between", "after")
TRANSFORMS_WINDOWS = "transforms whole windows of frames, so that a frame's result depends on later ones"


def real_fourier_matrices(length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The transform of real signals of `length` frames with F = length // 2 + 1 frequencies, and its inverse.

    Returns:
        (2·F, length), real parts above imaginary parts; and (length, 2·F), float32. As `torch.fft.rfft` and `irfft`.
    """
    frames, frequencies = torch.arange(length), torch.arange(length // 2 + 1)
    angle_FT = 2 * math.pi / length * (frequencies[:, None] * frames % length).double()
    forward = torch.cat((angle_FT.cos(), -angle_FT.sin()))
    twice = torch.where((frequencies == 0) | (2 * frequencies == length), 1.0, 2.0)  # the others stand for two each
    inverse = forward.T * twice.repeat(2) / length
    return forward.float(), inverse.float()


class FrequencyConv(nn.Module):
    """Windows of frames → frequencies → a depth-wise convolution along them → frames, (B, T, N, R) → (B, T, N, R).

    Args:
        channels: R.
        kernel_size: taps along frequency, odd; zero padding.
        divisors: windows have T / divisor frames each.
    """

    def __init__(self, channels: int, kernel_size: int, divisors: list[int]):
        super().__init__()
        self.divisors = divisors
        self.weight = nn.Parameter(torch.zeros(2, channels, kernel_size))  # real and imaginary parts
        self.bias = nn.Parameter(torch.zeros(2, channels))

    def forward(self, x_BTNR: torch.Tensor) -> torch.Tensor:
        T = x_BTNR.shape[1]
        if broken := [divisor for divisor in self.divisors if T % divisor]:
            raise ValueError(
                f"Frame2Freq cuts clips into {broken[0]} windows, but the clip has {T} frames at its place. Use a "
                f"multiple of {math.lcm(*self.divisors)} frames."
            )
        # the meta device, on which costs are counted, has no autocast
        with nullcontext() if x_BTNR.is_meta else torch.autocast(x_BTNR.device.type, enabled=False):
            x = x_BTNR.float()
            return sum(self.convolved(x, T // divisor) for divisor in self.divisors).div(len(self.divisors))

    def convolved(self, x_BTNR: torch.Tensor, window: int) -> torch.Tensor:
        """One window length: (B, T, N, R) float32."""
        forward, inverse = (matrix.to(x_BTNR.device) for matrix in real_fourier_matrices(window))
        frames = x_BTNR.unflatten(1, (-1, window)).flatten(0, 1)  # (B·T/w, w, N, R)
        spectrum = remade(torch.matmul, forward, frames.flatten(2))
        parts = [
            convolve_over_time(part.unflatten(2, frames.shape[2:]), weight.float(), bias.float())
            for part, weight, bias in zip(spectrum.chunk(2, dim=1), self.weight, self.bias, strict=True)
        ]
        return (inverse @ torch.cat(parts, dim=1).flatten(2)).view(x_BTNR.shape)


class Frame2FreqAdapter(SiteModule):
    """x_patches ← x_patches + W₂ [u; v] on (M, N, D); the identity at the start."""

    def __init__(self, config: "Frame2FreqConfig", backbone: Backbone):
        super().__init__()
        width, bottleneck = backbone.hidden_size, config.adapter_width
        self.num_prefix_tokens = backbone.num_prefix_tokens
        self.down = nn.Linear(width, bottleneck)
        self.time_weight = nn.Parameter(torch.zeros(bottleneck // 2, config.kernel_size))
        self.time_bias = nn.Parameter(torch.zeros(bottleneck // 2))
        self.frequency = FrequencyConv(bottleneck // 2, config.kernel_size, config.window_divisors)
        self.up = nn.Linear(bottleneck, width)
        nn.init.zeros_(self.down.bias)
        nn.init.zeros_(self.up.bias)

    def forward(self, x_MND: torch.Tensor, *, num_frames: int, **_: Any) -> torch.Tensor:
        if x_MND.shape[1] == self.num_prefix_tokens:  # the last block of a model that goes on without the patches
            return x_MND
        z_MNR = self.down(taken_by(self.down, x_MND))
        z_BTNR = z_MNR.unflatten(0, (-1, num_frames))
        return remade(self._added, x_MND, remade(self._convolved, z_BTNR).flatten(0, 1))

    def _convolved(self, z_BTNR: torch.Tensor) -> torch.Tensor:
        a_BTNR, b_BTNR = z_BTNR.chunk(2, dim=-1)
        u_BTNR = convolve_over_time(a_BTNR, self.time_weight, self.time_bias)
        return torch.cat((u_BTNR, self.frequency(b_BTNR).to(u_BTNR.dtype)), dim=-1)

    def _added(self, x_MND: torch.Tensor, z_MNR: torch.Tensor) -> torch.Tensor:
        delta_MND = self.up(z_MNR).to(x_MND.dtype)
        delta_MND[:, : self.num_prefix_tokens] = 0
        return delta_MND.add_(x_MND)

    @property
    def why_not_streaming(self) -> str:
        return TRANSFORMS_WINDOWS


@dataclass
class Frame2FreqConfig(I2VTunerConfig):
    """Configuration of Frame2Freq, multi-scale form (arXiv 2602.18977).

    Args:
        adapter_width: width R of the bottleneck, even. 384, as ST-Adapter's, has its parameters: 0.1 % more.
        adapter_sites: "after" each block as in the paper; "before" and "between" as in ST-Adapter's places.
        kernel_size: taps of the convolution along time and of that along frequency, odd.
        window_divisors: windows of T / divisor frames each; all must divide the number of frames.
    """

    method_name = "frame2freq"
    title = "Frame2Freq"
    paper = "arXiv 2602.18977"
    learning_rate = 5e-4
    why_not_causal = TRANSFORMS_WINDOWS
    unused_parameters = True  # the last block's adapter, which a feature of the CLS token does not read
    default_pooling = "before_norm"

    adapter_width: int = field(default=384, metadata={"help": "Width of the bottleneck."})
    adapter_sites: list[str] = field(
        default_factory=lambda: ["after"], metadata={"help": "Where adapters stand: before, between and/or after."}
    )
    kernel_size: int = field(default=3, metadata={"help": "Taps along time and along frequency."})
    window_divisors: list[int] = field(
        default_factory=lambda: [1, 2, 4], metadata={"help": "Windows have T / divisor frames each."}
    )

    def __post_init__(self):
        super().__post_init__()
        if self.adapter_width < 2 or self.adapter_width % 2:
            raise ValueError(f"adapter_width ({self.adapter_width}) must be an even number: half of it is for time")
        if set(self.adapter_sites) - set(F2F_SITES) or not self.adapter_sites:
            raise ValueError(f"adapter_sites {self.adapter_sites} must be some of {list(F2F_SITES)}")
        if self.kernel_size < 1 or self.kernel_size % 2 == 0:
            raise ValueError(f"kernel_size ({self.kernel_size}) must be an odd number")
        if not self.window_divisors or min(self.window_divisors) < 1:
            raise ValueError(f"window_divisors {self.window_divisors} must be one or more numbers from 1 on")

    def resolve(self, backbone: Backbone) -> None:
        super().resolve(backbone)
        if broken := [divisor for divisor in self.window_divisors if self.num_frames % divisor]:
            raise ValueError(
                f"num_frames ({self.num_frames}) cannot be cut into {broken[0]} windows. Use a multiple of "
                f"{math.lcm(*self.window_divisors)}, or other window_divisors."
            )

    def site_modules(self, backbone: Backbone, layer: int) -> dict[str, SiteModule]:
        return {site: Frame2FreqAdapter(self, backbone) for site in self.adapter_sites}
