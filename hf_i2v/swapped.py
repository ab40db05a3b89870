"""Exchange a module's class in place for one derived from it. The module keeps its weights, names and hooks."""

from contextlib import contextmanager
from functools import cache

from accelerate.hooks import add_hook_to_module, remove_hook_from_module
from torch import nn

from .backbones import UnsupportedBackboneError


class Swapped:
    """A module whose class was swapped for one that derives from `Swapped` and its own. Can be copied and pickled."""

    def __reduce_ex__(self, protocol):
        return _rebuild, (*type(self).__bases__,), self.__dict__


def swap_in(module: nn.Module, mixin: type) -> None:
    """Give the module a class that derives from `mixin` and, after it, from its own class.

    Raises:
        UnsupportedBackboneError: the module has a forward of its own in its instance, which would hide the new one.
    """
    with _without_hook(module):
        if "forward" in module.__dict__:
            raise UnsupportedBackboneError(
                f"The forward of a {type(module).__name__} was replaced by hand ({module.forward}); undo that first."
            )
        module.__class__ = _mixed(mixin, type(module))


def swap_out(module: nn.Module) -> None:
    """Give a swapped module its own class back."""
    with _without_hook(module):
        module.__class__ = type(module).__bases__[1]


@contextmanager
def _without_hook(module: nn.Module):
    """accelerate's hooks (`device_map`) keep the old class's forward. Remove the hook before the swap, add it again
    after."""
    hook = getattr(module, "_hf_hook", None)
    if hook is not None:
        remove_hook_from_module(module)
        module.__dict__.pop("forward", None)  # removing the hook leaves the bound method of the old class
    try:
        yield
    finally:
        if hook is not None:
            add_hook_to_module(module, hook)


@cache
def _mixed(mixin: type, cls: type) -> type:
    # Same name: wrap policies, device maps and transformers' registries find a block by its class name.
    names = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
    return type(cls.__name__, (mixin, cls), names)


def _rebuild(mixin: type, cls: type) -> nn.Module:
    mixed = _mixed(mixin, cls)
    return mixed.__new__(mixed)
