"""Memory of a training step, found by going through the step with tensors that have shapes but no memory.

Every operation of forward and backward pass is seen, so what a method keeps, makes again or needs on the
way is counted as it is. Not seen: what kernels use inside, and what an allocator keeps beyond the tensors alive.
"""

import contextlib
import copy
import weakref
from dataclasses import dataclass

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary


class LiveBytes(TorchDispatchMode):
    """Bytes of the tensors alive, now and at their highest; of those made while it is on, and those given to `see`."""

    def __init__(self):
        super().__init__()
        self.now = self.highest = 0
        self._seen = WeakIdKeyDictionary()

    def see(self, *tensors: torch.Tensor) -> None:
        for tensor in tensors:
            memory = tensor.untyped_storage()
            if memory not in self._seen:
                self._seen[memory] = True
                self._add(memory.nbytes())
                weakref.finalize(memory, self._add, -memory.nbytes())

    def _add(self, change: int) -> None:
        self.now += change
        self.highest = max(self.highest, self.now)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.see(*(x for x in tree_leaves(result) if isinstance(x, torch.Tensor)))
        return result


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes of a training step with AdamW.

    Attributes:
        weights: parameters and buffers.
        kept: what autograd keeps from forward to backward pass.
        trained: gradients, and AdamW's two moments.
        peak: the highest sum of all that is alive, the batch among it.
    """

    weights: int
    kept: int
    trained: int
    peak: int

    def __str__(self) -> str:
        return (
            f"{self.peak / 2**30:.2f} GiB: weights {self.weights / 2**30:.2f}, kept for the backward pass "
            f"{self.kept / 2**30:.2f}, gradients and moments {self.trained / 2**30:.2f}, and what a step works with"
        )


def training_memory(
    model: nn.Module, pixel_values_shape: tuple[int, ...], *, autocast: torch.dtype | None = None
) -> TrainingMemory:
    """Bytes that a training step of `model` takes, with the parameters trained that require a gradient now.

    Args:
        pixel_values_shape: of a batch, (B, T, C, h, w).
        autocast: torch.bfloat16 or torch.float16 in mixed precision.

    Returns:
        The bytes of one process, on any device.
    """
    fake = FakeTensorMode()
    model = _without_memory(model, fake).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    live = LiveBytes()
    with fake, live:
        live.see(*model.parameters(), *model.buffers())
        weights = live.now
        moments = [torch.empty_like(p) for p in trained for _ in range(2)]
        pixel_values = torch.empty(pixel_values_shape, dtype=next(model.parameters()).dtype)
        before = live.now
        with torch.autocast("cpu", dtype=autocast) if autocast else contextlib.nullcontext():
            output = model(pixel_values)
        score = output
        if not isinstance(output, torch.Tensor):
            score = output.logits if "logits" in output else output.pooler_output
        kept = live.now - before
        if score.requires_grad:
            score.float().square().mean().backward()
    return TrainingMemory(weights, kept, 3 * sum(m.nbytes for m in moments) // 2, live.highest)


def _without_memory(model: nn.Module, fake: FakeTensorMode) -> nn.Module:
    """A copy of the model whose tensors are as those of a CPU, without memory."""

    def empty(tensor: torch.Tensor) -> torch.Tensor:
        with fake:
            return torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype)

    memo = {id(p): nn.Parameter(empty(p), requires_grad=p.requires_grad) for p in model.parameters()}
    return copy.deepcopy(model, memo | {id(b): empty(b) for b in model.buffers()})
