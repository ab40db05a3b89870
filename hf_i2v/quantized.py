"""Projections that bitsandbytes or torchao quantised, and dequantising them for a merge."""

import copy
import warnings

import torch
from peft.utils.integrations import dequantize_module_weight
from torch import nn


def is_quantized(module: nn.Module) -> bool:
    """Whether a linear layer's weight is quantised."""
    weight = getattr(module, "weight", None)
    library = type(weight).__module__.partition(".")[0]
    return isinstance(module, nn.Linear) and library in ("bitsandbytes", "torchao")


def dequantized(linear: nn.Linear, dtype: torch.dtype) -> nn.Linear:
    """An ordinary linear layer with the same weights, in `dtype`, frozen."""
    weight = _weight(linear).detach().to(dtype)
    plain = nn.Linear(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
    plain.weight = nn.Parameter(weight, requires_grad=False)
    if linear.bias is not None:
        plain.bias = nn.Parameter(linear.bias.detach().to(weight), requires_grad=False)
    return plain.train(linear.training)


def _weight(linear: nn.Linear) -> torch.Tensor:
    if getattr(getattr(linear.weight, "quant_state", None), "packing_format_for_cpu", False):
        # bitsandbytes 0.50 repacks 4-bit weights for inference on a CPU, and loses scales when it unpacks them. The
        # layer's results on the unit vectors are its weight.
        with torch.no_grad():
            units = torch.eye(linear.in_features, device=linear.weight.device)
            return (linear(units) - (0 if linear.bias is None else linear.bias)).T.contiguous()
    return dequantize_module_weight(copy.deepcopy(linear))  # of a copy: the function moves the weights between devices


def dequantize(model: nn.Module, dtype: torch.dtype) -> None:
    """Make every quantised projection in `model` an ordinary one, in place, and update its configuration."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if is_quantized(child):
                setattr(parent, name, dequantized(child, dtype))
    for module in model.modules():
        if hasattr(module, "hf_quantizer"):
            module.hf_quantizer.remove_quantization_config(module)
            for flag in ("is_loaded_in_8bit", "is_loaded_in_4bit"):
                module.__dict__.pop(flag, None)


def warn_dequantized(what: str, dtype: torch.dtype) -> None:
    """Warn that merging dequantised weights."""
    warnings.warn(
        f"{what}: the quantised frozen weights that it touches were dequantised, merged in float32 and kept as "
        f"{str(dtype).removeprefix('torch.')}. The model takes more memory than before; quantise the saved model "
        "again if you need it small.",
        stacklevel=4,
    )
