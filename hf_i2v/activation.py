"""CLIP's activation, x·σ(1.702x), with the same values in a third of the memory.

transformers computes it through three tensors. autograd keeps two of them until the backward pass, the largest share
of what a frozen CLIP keeps while an adapter trains. With u = 1.702x it is silu(u)/1.702, so its derivative is
silu'(u), which torch computes from u alone.
"""

import torch
from torch import nn

from .remade import remade
from .swapped import Swapped, swap_in, swap_out


class LeanQuickGELU(Swapped):
    """QuickGELU with the same values to the bit. autograd keeps its input only."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if torch.compiler.is_compiling():  # the compiler fuses the three steps
            return super().forward(x)
        return remade(_with_lean_gradient, x) if torch.is_grad_enabled() and x.requires_grad else _quick_gelu(x)


def _quick_gelu(x: torch.Tensor) -> torch.Tensor:
    return (1.702 * x).sigmoid_().mul_(x)


def _with_lean_gradient(x: torch.Tensor) -> torch.Tensor:
    return _QuickGELU.apply(x) if torch.is_grad_enabled() else _quick_gelu(x)


class _QuickGELU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return _quick_gelu(x)

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        u = 1.702 * x
        if u.dtype == gradient.dtype:
            return torch.ops.aten.silu_backward.grad_input(gradient, u, grad_input=u)
        return torch.ops.aten.silu_backward(gradient, u)


def lean_activations(mlp: nn.Module) -> None:
    """Exchange the MLP's QuickGELU, if it has one, for `LeanQuickGELU`."""
    for child in mlp.children():
        if type(child).__name__ == "QuickGELUActivation":
            swap_in(child, LeanQuickGELU)


def own_activations(mlp: nn.Module) -> None:
    """Undo `lean_activations`."""
    for child in mlp.children():
        if isinstance(child, LeanQuickGELU):
            swap_out(child)
