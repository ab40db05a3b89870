"""Methods without one of their parts, to see what the part does. They are outside methods, as anybody's would be."""

from dataclasses import dataclass

import torch
from torch import nn

from hf_i2v import InTIConfig, MAdapterConfig, SiteModule, register_method


class PlainAverage(SiteModule):
    """x' = (x_{2i} + x_{2i+1}) / 2, (B·T, N, D) → (B·T/2, N, D): InTI with the weights that it starts with."""

    frames_merged = 2

    def forward(self, x_MND: torch.Tensor, **_: object) -> torch.Tensor:
        return x_MND.unflatten(0, (-1, 2)).mean(1)

    @property
    def why_not_streaming(self) -> str:
        return InTIConfig.why_not_causal


@register_method
@dataclass
class PlainAverageConfig(InTIConfig):
    """InTI (arXiv 2408.06840) without its predictor of weights."""

    method_name = "plain_average"
    title = "plain averaging"

    def site_modules(self, backbone, layer):
        return {"before": PlainAverage()}


class NoTime(nn.Module):
    def forward(self, x_BTPd: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(x_BTPd)


@register_method
@dataclass
class MAdapterWithoutTimeConfig(MAdapterConfig):
    """M-adapter (CVIU 249:104150) without its temporal module: h_l = f_l + MLP(LN f_l)."""

    method_name = "m_adapter_without_time"
    title = "M-adapter without its temporal module"

    def branch_module(self, backbone):
        branch = super().branch_module(backbone)
        for adapter in branch.adapters:
            adapter.norm_time, adapter.time = nn.Identity(), NoTime()
        return branch
