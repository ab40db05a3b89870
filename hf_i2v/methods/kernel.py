"""The attention function of every video block: a method may change keys and values before the user's kernel.

What changes them is passed instead of the attention mask, the only argument that every model hands on to its kernel: a
callable `(key_MHNK, value_MHNK) → key, value, attention mask`.
"""

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ..remade import remade


class KernelConfig:
    """An attention layer's config with another kernel name, this file's. All other attributes are the real config's.

    Each call reads the user's kernel (eager, sdpa, flash, flex) from the real config. So `set_attn_implementation`
    keeps working and does not switch a method off.
    """

    _attn_implementation = f"hf_i2v ({__name__})"  # a copy of this module beside a model has a kernel of its own

    def __init__(self, attention: nn.Module):
        self.wrapped = attention.config
        # "eager" is no entry of transformers' registry but a function of each model's module
        self.eager = sys.modules[type(attention).__module__].eager_attention_forward

    def __getattr__(self, name):
        if name == "wrapped":  # not set yet while copying or unpickling
            raise AttributeError(name)
        return getattr(self.wrapped, name)


class _WithRealConfig:
    """An attention layer as a kernel expects it: some kernels read their own name from `module.config`."""

    def __init__(self, module: nn.Module):
        self.module, self.config = module, module.config.wrapped

    def __getattr__(self, name):
        return getattr(self.module, name)


def video_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | Callable | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attention function: change keys and values as the method says, then call the kernel that the user chose."""
    if callable(attention_mask):
        key, value, attention_mask = attention_mask(key, value)
    name = module.config.wrapped._attn_implementation
    kernel = ALL_ATTENTION_FUNCTIONS.get_interface(name, module.config.eager)
    if name not in ("eager", "sdpa"):
        module = _WithRealConfig(module)
    if name != "sdpa" or kwargs.get("dropout"):
        return kernel(module, query, key, value, attention_mask, **kwargs)

    def attend(query, key, value):
        return kernel(module, query, key, value, attention_mask, **kwargs)[0]

    return remade(attend, query, key, value), None


AttentionInterface.register(KernelConfig._attn_implementation, video_attention)
