"""Parameters, multiply-accumulates (MACs, which papers print as "GFLOPs") and latency of a model.

Counted operation by operation, attention included, on the meta device: no weights are copied and nothing is computed.
"""

import copy
import math
import statistics
import time
from dataclasses import dataclass

import torch
from peft import PeftModel
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True)
class Cost:
    """What a model costs.

    Attributes:
        total_parameters: that a forward pass uses.
        trainable_parameters: of these, those that are trained.
        macs: multiply-accumulates of one forward pass.
    """

    total_parameters: int
    trainable_parameters: int
    macs: int

    def __str__(self) -> str:
        return (
            f"{self.total_parameters / 1e6:.2f} M parameters, {self.trainable_parameters / 1e6:.2f} M trainable, "
            f"{self.macs / 1e9:.3f} GMACs"
        )


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """Parameters of `model` that a forward pass uses, and those that are trained. peft's `modules_to_save` keeps
    originals beside the trained copies; they are not counted."""
    used = [p for name, p in model.named_parameters() if ".original_module." not in name]
    return sum(p.numel() for p in used), sum(p.numel() for p in used if p.requires_grad)


def count_macs(model: nn.Module, pixel_values_shape: tuple[int, ...], *, as_papers_count: bool = True) -> int:
    """MACs of one forward pass.

    Args:
        model: on any device; it is not run.
        pixel_values_shape: (B, T, C, h, w) for a video model, (B, C, h, w) for an image model.
        as_papers_count: count all tokens in all blocks. False: without those that the last block skips because the
            classifier reads the CLS token only.
    """
    model = on_meta(model).eval()
    pixel_values = torch.empty(pixel_values_shape, device="meta", dtype=next(model.parameters()).dtype)
    counter = FlopCounterMode(display=False)
    # the fused CPU kernel is unknown to torch's counter; the math kernel is two plain matrix products
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        model(pixel_values, output_hidden_states=as_papers_count or None)
    return counter.get_total_flops() // 2


def cost(model: nn.Module, pixel_values_shape: tuple[int, ...]) -> Cost:
    """Parameters and MACs of `model` for an input of `pixel_values_shape`, see `count_macs`."""
    return Cost(*count_parameters(model), count_macs(model, pixel_values_shape))


def merged_macs(model: PeftModel, pixel_values_shape: tuple[int, ...]) -> int | None:
    """MACs of one forward pass with the adapter merged.

    Args:
        model: with an adapter, which is merged into it.
        pixel_values_shape: (B, T, C, h, w).

    Returns:
        None if the adapter cannot be merged.
    """
    try:
        return count_macs(model.merge_and_unload(), pixel_values_shape)
    except ValueError:
        return None


def on_meta(model: nn.Module) -> nn.Module:
    """A copy of the model whose tensors have shapes but no memory."""
    memo = {id(p): nn.Parameter(p.to("meta"), requires_grad=p.requires_grad) for p in model.parameters()}
    memo |= {id(b): b.to("meta") for b in model.buffers()}
    return copy.deepcopy(model, memo)


def latency(
    model: nn.Module, pixel_values_shape: tuple[int, ...], rounds: int, *, max_seconds: float = math.inf
) -> tuple[float, float]:
    """Median seconds of a forward pass on the model's device, and half the distance between the quartiles.

    Args:
        model: where it lies and in its dtype.
        pixel_values_shape: (B, T, C, h, w) of a forward pass's clips.
        rounds: timed forward passes, after one to warm up. After `max_seconds` no further one is started; at least one
            is timed.
    """
    was_training = model.training
    model.eval()
    place = next(model.parameters())
    pixel_values = torch.randn(pixel_values_shape, device=place.device, dtype=place.dtype)
    seconds = []
    with torch.inference_mode():
        for _ in range(rounds + 1):
            started = time.perf_counter()
            model(pixel_values)
            if place.is_cuda:
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - started)
            if len(seconds) > 1 and sum(seconds) > max_seconds:
                break
    model.train(was_training)
    del seconds[0]  # warming up
    low, _, high = statistics.quantiles(seconds, n=4) if len(seconds) > 1 else seconds * 3
    return statistics.median(seconds), (high - low) / 2
