"""What a model costs: parameters and multiply-accumulates (MACs, which papers print as "GFLOPs") of a forward pass.

Counted operation by operation, attention included, on the meta device: no weights are copied and nothing is computed.
"""

import copy
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True)
class Cost:
    """Parameters in all, those that are trained, and MACs of one forward pass."""

    total_parameters: int
    trainable_parameters: int
    macs: int

    def __str__(self) -> str:
        return (
            f"{self.total_parameters / 1e6:.2f} M parameters, {self.trainable_parameters / 1e6:.2f} M trainable, "
            f"{self.macs / 1e9:.3f} GMACs"
        )


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """Parameters that a forward pass uses, and those that are trained. Originals that an adapter's copy stands in
    for (peft's `modules_to_save`) are not counted."""
    used = [p for name, p in model.named_parameters() if ".original_module." not in name]
    return sum(p.numel() for p in used), sum(p.numel() for p in used if p.requires_grad)


def count_macs(model: nn.Module, pixel_values_shape: tuple[int, ...]) -> int:
    """MACs of one forward pass on pixels of the given shape, (B, T, C, h, w) for a video model.

    All tokens of all blocks, as papers count, although a classifier that reads the CLS token skips some in the last.
    """
    model = on_meta(model).eval()
    pixel_values = torch.empty(pixel_values_shape, device="meta", dtype=next(model.parameters()).dtype)
    counter = FlopCounterMode(display=False)
    # the fused CPU kernel is unknown to torch's counter; the math kernel is two plain matrix products
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        model(pixel_values, output_hidden_states=True)
    return counter.get_total_flops() // 2


def cost(model: nn.Module, pixel_values_shape: tuple[int, ...]) -> Cost:
    """Parameters and MACs of `model` for an input of the given shape."""
    return Cost(*count_parameters(model), count_macs(model, pixel_values_shape))


def on_meta(model: nn.Module) -> nn.Module:
    """A copy of the model whose tensors have shapes but no memory."""
    memo = {id(p): nn.Parameter(p.to("meta"), requires_grad=p.requires_grad) for p in model.parameters()}
    memo |= {id(b): b.to("meta") for b in model.buffers()}
    return copy.deepcopy(model, memo)
