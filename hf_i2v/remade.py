"""Less memory in training: what is cheap to make again is not kept for the backward pass.

From forward to backward pass autograd keeps the tensors that derivatives read. Inside `remaking()`,
`remade(function, *inputs)` leaves it, in the place of `function(*inputs)`, with this recipe. The backward pass makes
the tensor again when it needs it: the same function on the same values, so the same to the bit. Recipes may build on
each other. Gradient checkpointing, where it is on, takes the place of this, and torch.compile makes its own choice.

Recipes end with their block, for a model in shards (FSDP) has a block's weights at hand only while it runs.
Worth a recipe: norms, activations, residual sums, what an adapter's small matrix adds, and the attention from its
queries, keys and values. Not worth one: the products with the frozen model's large matrices.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.weak import WeakIdKeyDictionary


class Recipe:
    """How to make a tensor again. What was made is held until no reader is left."""

    def __init__(self, function: Callable, inputs: list[Any], output: torch.Tensor):
        self.function, self.inputs = function, inputs
        self.dtype, self.version = output.dtype, output._version
        self.device, self.autocast_dtype = output.device, autocast_dtype(output.device)
        self.made: torch.Tensor | None = None

    def makes(self, tensor: torch.Tensor) -> bool:
        """Whether it makes what a tensor in the output's memory holds now."""
        return tensor.dtype == self.dtype and tensor._version == self.version

    def make(self) -> torch.Tensor:
        if self.made is None:
            with torch.no_grad(), self._autocast():
                self.made = self.function(*(x.take() if isinstance(x, Reader) else x for x in self.inputs))
        return self.made

    def _autocast(self) -> AbstractContextManager:
        if self.autocast_dtype is None:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.autocast_dtype)


class Reader:
    """What autograd or a recipe holds: a tensor, or the recipe of one and which part of its memory is read."""

    def __init__(self, tensor: torch.Tensor, recipe: Recipe | None):
        self.tensor: torch.Tensor | None = tensor
        self.version = tensor._version
        self.recipe: Recipe | None = None
        if recipe is not None:
            self.read(recipe)

    def read(self, recipe: Recipe) -> None:
        """Let the tensor go: the recipe makes it again."""
        self.part = self.tensor.size(), self.tensor.stride(), self.tensor.storage_offset()
        self.recipe, self.tensor = recipe, None

    def take(self) -> torch.Tensor:
        if self.recipe is not None:
            made = self.recipe.make()
            whole = made.size(), made.stride(), made.storage_offset()
            return made if whole == self.part else made.as_strided(*self.part)
        if self.tensor._version != self.version:  # autograd's own check, which hooks switch off
            raise RuntimeError(
                f"A tensor {tuple(self.tensor.shape)} that the backward pass needs was changed in place after the "
                "forward pass had read it. Change a copy of it."
            )
        return self.tensor


class Remaking:
    """The forward pass of a block that keeps recipes."""

    def __init__(self):
        self.recipes = WeakIdKeyDictionary()  # by the memory of what they make, as long as that lives
        self.new_readers: list[Reader] | None = None  # of the function that `remade` is running

    def reader(self, tensor: torch.Tensor) -> Reader:
        recipe = self.recipes.get(tensor.untyped_storage())
        reader = Reader(tensor, recipe if recipe is not None and recipe.makes(tensor) else None)
        if self.new_readers is not None:
            self.new_readers.append(reader)
        return reader

    def run(self, function: Callable, inputs: tuple) -> torch.Tensor:
        outer, self.new_readers = self.new_readers, []
        try:
            output = function(*inputs)
            new, self.new_readers = self.new_readers, None
            memory = output.untyped_storage()
            if output.requires_grad and not any(x.untyped_storage() is memory for x in inputs if _is_tensor(x)):
                recipe = Recipe(function, [self.reader(x) if _is_tensor(x) else x for x in inputs], output)
                self.recipes[memory] = recipe
                for reader in new:  # some functions keep their own output
                    if reader.tensor is not None and reader.tensor.untyped_storage() is memory:
                        reader.read(recipe)
        finally:
            self.new_readers = outer
        if outer is not None:
            outer += new
        return output


_running: ContextVar[Remaking | None] = ContextVar("hf_i2v_remaking", default=None)


@contextmanager
def remaking() -> Iterator[None]:
    """Within, autograd keeps recipes where there are some. Hooks of the caller's on what autograd keeps
    (`torch.autograd.graph.save_on_cpu`) have precedence."""
    if not torch.is_grad_enabled() or _hooks_of_others():
        yield
        return
    running = Remaking()
    token = _running.set(running)
    try:
        with saved_tensors_hooks(running.reader, Reader.take):
            yield
    finally:
        _running.reset(token)


def remade(function: Callable[..., torch.Tensor], *inputs: Any) -> torch.Tensor:
    """`function(*inputs)`, which the backward pass makes again where it needs it.

    Args:
        function: gives a new tensor and draws no random numbers. Parameters that it reads are in the function, and all
            other tensors in `inputs`. A module with forward hooks is called once, so its output is kept.
    """
    running = None if torch.compiler.is_compiling() else _running.get()
    if running is None or not torch.is_grad_enabled() or _has_hooks(function):
        return function(*inputs)
    return running.run(function, inputs)


def taken_by(linear: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    """`x` in the dtype in which the layer computes. A copy in another dtype is made again where it is needed."""
    dtype = autocast_dtype(x.device) or linear.weight.dtype
    return x if x.dtype == dtype else remade(torch.Tensor.to, x, dtype)


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """The dtype of the autocast that is on now; None: none is."""
    on = device.type != "meta" and torch.is_autocast_enabled(device.type)  # the meta device has none
    return torch.get_autocast_dtype(device.type) if on else None


def _hooks_of_others() -> bool:
    enabled = torch._C._autograd._saved_tensors_hooks_is_enabled()  # torch.func allows none
    return not enabled or torch._C._autograd._top_saved_tensors_default_hooks(False) is not None


def _has_hooks(function: Callable) -> bool:
    return isinstance(function, nn.Module) and bool(function._forward_hooks or function._forward_pre_hooks)


def _is_tensor(x: Any) -> bool:
    return isinstance(x, torch.Tensor)
