"""One transformer block with its sites, where a method may act (see `methods/site.py`).

A backbone's block becomes a `VideoBlock` when its class is exchanged for one that derives from both (as FSDP2 does).
Its weights, names, hooks, output capturing and gradient checkpointing stay the same.
"""

import inspect
import itertools
import operator
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import nn

from .activation import lean_activations, own_activations
from .backbones import BlockParts
from .frames import (
    continue_with,
    frames_in_flight,
    frozen_blocks_in_flight,
    passage_in_flight,
    prefix_only_in_flight,
    step_in_flight,
)
from .merging import Folded, fold_into_weights
from .methods.kernel import KernelConfig
from .methods.site import FOLDING_SITES, SITE_NAMES, SiteModule
from .methods.stdha import StreamShift, TimeShift
from .remade import remade, remaking
from .stream_state import Step
from .swapped import Swapped, swap_in, swap_out


class I2VLayer(nn.Module, BaseTunerLayer):
    """A method as a tuner layer of peft: containers keyed by the adapter's name, and the names of the active ones."""

    def __init__(self, adapter_name: str):
        super().__init__()
        self._disable_adapters = False
        self._active_adapter = adapter_name
        self.merged_adapters = []

    @property
    def weight(self) -> NoReturn:
        raise AttributeError("a tuner layer of hf_i2v stands beside a block and wraps no weight")

    bias = weight

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Mark the adapters as merged. Their modules still run in the forward pass."""
        self.merged_adapters += [n for n in adapter_names or self.active_adapters if n not in self.merged_adapters]

    def unmerge(self) -> None:
        self.merged_adapters.clear()

    def working_adapters(self) -> list[str]:
        """Names of the adapters that take part in a forward pass."""
        return [] if self.disable_adapters else list(dict.fromkeys([*self.merged_adapters, *self.active_adapters]))


class BlockLayer(I2VLayer):
    """The tuner layer of a block: per site and adapter the modules of its methods, by method name."""

    adapter_layer_names = tuple(f"i2v_{site}" for site in SITE_NAMES)  # with the tuner's prefix, as peft expects
    other_param_names = ("time_offsets",)

    def __init__(self, block: "VideoBlock", adapter_name: str):
        super().__init__(adapter_name)
        self.__dict__["block"] = block  # not a submodule
        for site in SITE_NAMES:
            setattr(self, f"i2v_{site}", nn.ModuleDict())
        self.time_offsets: dict[str, tuple[int, ...]] = {}
        self.folded: dict[str, Folded] = {}

    def adapters_at(self, site: str) -> nn.ModuleDict:
        """All adapters' modules at `site`, by adapter."""
        return getattr(self, f"i2v_{site}")

    def modules_of(self, adapter_name: str, site: str) -> Iterator[tuple[str, SiteModule]]:
        """The adapter's modules at `site`, with the names of their methods."""
        adapters = self.adapters_at(site)
        return iter(adapters[adapter_name].items() if adapter_name in adapters else ())

    def working_at(self, site: str) -> Iterator[tuple[str, SiteModule]]:
        """The modules to run at `site`, with their methods' names. Folded ones are in the weights already."""
        for name in self.working_adapters():
            for method, module in self.modules_of(name, site):
                if not (module.folds and name in self.merged_adapters):
                    yield method, module

    def shift(self) -> tuple[int, ...] | None:
        """Time offsets of the working adapters, or None if they have none of their own."""
        offsets = {self.time_offsets[name] for name in self.working_adapters() if name in self.time_offsets}
        if len(offsets) > 1:
            raise ValueError(
                f"The active adapters {self.working_adapters()} shift the same heads differently: {sorted(offsets)}. "
                "Activate only one of them."
            )
        return offsets.pop() if offsets else None

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Fold the adapters' modules into the block's weights, see `merging.fold_into_weights`."""
        for name in check_adapters_to_merge(self, adapter_names):
            modules = [(site, m) for site in FOLDING_SITES for _, m in self.modules_of(name, site) if m.folds]
            self.folded[name] = fold_into_weights(self.block, modules, check=safe_merge, adapter_name=name)
            self.merged_adapters.append(name)

    def unmerge(self) -> None:
        """Put the weights from before the merges back, exactly."""
        while self.merged_adapters:
            self.folded.pop(self.merged_adapters.pop()).undo()


class VideoBlock(Swapped):
    """A backbone's block that shifts heads in time and runs the modules at its sites.

    `time_offsets` and the modules in `baked` are the model's own (after a merge, or by its config). The time offsets
    of an active adapter replace the model's. Its modules run after the model's.
    """

    block_parts: BlockParts
    number: int  # from 0
    time_offsets: tuple[int, ...]
    rotary: bool  # whether the attention takes position embeddings
    num_prefix_tokens: int | None = None  # last block only: it may drop all other tokens

    def __call__(self, x_MND: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        passage = passage_in_flight()
        if passage is None:
            return self._run(x_MND, *args, **kwargs)
        if passage.entering is not None and self.number <= passage.first_block:
            x_MND = passage.entering
        passage.note(self.number, x_MND)
        if not passage.skips(self.number):
            x_MND = self._run(x_MND, *args, **kwargs)
            passage.note(self.number + 1, x_MND)
        return x_MND

    def _run(self, x_MND: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        frozen = self.number < frozen_blocks_in_flight()
        if self._checkpoints_reentrantly() and not (frozen or x_MND.requires_grad):
            x_MND = x_MND.detach().requires_grad_()  # reentrant checkpointing needs an input that requires a gradient
        # Read before gradient checkpointing starts: its second run gets the same number of frames on any thread.
        num_frames = frames_in_flight()
        prefix_only = self.num_prefix_tokens is not None and prefix_only_in_flight()
        if (step := step_in_flight()) is not None:
            kwargs["step"] = step
        kwargs |= {"num_frames": num_frames, "prefix_only": prefix_only}
        if frozen:
            self.gradient_checkpointing = False  # there is nothing to checkpoint
            try:
                with torch.no_grad():
                    x_MND = super().__call__(x_MND, *args, **kwargs)
            finally:
                self.gradient_checkpointing = True
        elif self.training and not (torch.compiler.is_compiling() or getattr(self, "gradient_checkpointing", False)):
            with remaking():
                x_MND = super().__call__(x_MND, *args, **kwargs)
        else:
            x_MND = super().__call__(x_MND, *args, **kwargs)
        if (remaining := self.frames_before(num_frames)[-1]) != num_frames:
            continue_with(remaining)
        return x_MND

    def frames_before(self, num_frames: int) -> list[int]:
        """How many frames of a clip each module at `before` gets and, last, how many the block gets."""
        merged = (module.frames_merged for module in self.modules_at("before"))
        return list(itertools.accumulate(merged, operator.floordiv, initial=num_frames))

    def _checkpoints_reentrantly(self) -> bool:
        checkpoint = getattr(self, "_gradient_checkpointing_func", None)
        return (
            getattr(self, "gradient_checkpointing", False)
            and self.training
            and torch.is_grad_enabled()
            and getattr(checkpoint, "keywords", {}).get("use_reentrant", False)
        )

    def forward(
        self,
        x_MND: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        *,
        num_frames: int,
        prefix_only: bool = False,
        step: Step | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        parts = self.block_parts
        sites = self._modules.get("sites")
        if sites is not None and sites.disable_adapters and sites.merged:
            sites.unmerge()

        own = {"norm1": self.first_norm, "attend": self.attend}  # not the block: hooks would move it to a device

        def act(site, i, module, x, num_frames):
            if step is not None:
                return step.run(f"block{self.number}.{site}{i}", module, x, **own)
            return module(x, num_frames=num_frames, **own)

        def run(site, x):
            for i, module in enumerate(self.modules_at(site)):
                x = act(site, i, module, x, num_frames)
            return x

        *frames_found, num_frames = self.frames_before(num_frames)
        for i, (module, found) in enumerate(zip(self.modules_at("before"), frames_found, strict=True)):
            x_MND = act("before", i, module, x_MND, found)
        if shift := self.working_time_offsets():
            if step is None:
                attention_mask = TimeShift(attention_mask, num_frames, shift)
            else:
                attention_mask = StreamShift(attention_mask, step, f"block{self.number}.heads", shift)
        h_MND = run("attention_in", self.first_norm(x_MND))
        h_MND = getattr(self, parts.attention)(h_MND, attention_mask, **kwargs)[0]
        x_MND = remade(torch.add, x_MND, self._through(parts.after_attention, run("attention_out", h_MND)))

        x_MND = run("between", x_MND)
        if prefix_only:  # everything below works token by token
            x_MND = x_MND[:, : self.num_prefix_tokens]
        n_MND = remade(getattr(self, parts.norm2), x_MND)
        h_MND = getattr(self, parts.mlp)(run("mlp_in", n_MND))
        h_MND = self._through(parts.after_mlp, run("mlp_out", h_MND))
        for i, module in enumerate(self.modules_at("parallel")):
            h_MND = h_MND + act("parallel", i, module, n_MND, num_frames)
        return run("after", x_MND + h_MND)

    def working_time_offsets(self) -> tuple[int, ...]:
        """The heads' offsets in a forward pass: the working adapters' if they have some, else the model's own."""
        shift = self.sites.shift() if "sites" in self._modules else None
        return self.time_offsets if shift is None else shift

    def modules_at(self, site: str) -> Iterator[SiteModule]:
        """The modules that run at `site`, in order: the model's own, then the working adapters'."""
        if (baked := self._modules.get("baked")) is not None and site in baked:
            yield from baked[site].values()
        if (sites := self._modules.get("sites")) is not None:
            yield from (module for _, module in sites.working_at(site))

    def bake(self) -> set[str]:
        """Make the working adapters' unfolded modules the model's own, and return their methods' names."""
        methods = set()
        for site in SITE_NAMES:
            for method, module in self.sites.working_at(site):
                self.add_baked(site, method, module.to(self.dtype).requires_grad_(False))
                methods.add(method)
        return methods

    def add_baked(self, site: str, method: str, module: SiteModule) -> None:
        """Give the model a module of its own at `site`."""
        if "baked" not in self._modules:
            self.baked = nn.ModuleDict()
        if site not in self.baked:
            self.baked[site] = nn.ModuleDict()
        if method in self.baked[site]:
            raise ValueError(f"The model has a baked {method} at the site {site!r} already.")
        self.baked[site][method] = module

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the block's norms. Its projections may be quantised."""
        return getattr(self, self.block_parts.norm1).weight.dtype

    def first_norm(self, x: torch.Tensor) -> torch.Tensor:
        """The norm before the attention."""
        return remade(getattr(self, self.block_parts.norm1), x)

    def attend(self, h_CTD: torch.Tensor, attention_mask: torch.Tensor | Callable | None = None) -> torch.Tensor:
        """The attention of this block on any sequences (…, length, D), without time shift or positions.

        Args:
            attention_mask: added to the logits; or what changes keys and values, see `methods/kernel.py`.

        Raises:
            ValueError: a mask, but the user's kernel takes none.
        """
        attention = getattr(self, self.block_parts.attention)
        kernel = attention.config.wrapped._attn_implementation
        if attention_mask is not None and kernel not in ("eager", "sdpa"):
            raise ValueError(
                f"Attention over the last frames needs a mask, which the kernel {kernel!r} does not take here. Call "
                "set_attn_implementation('sdpa') on the model."
            )
        if self.rotary:
            none = h_CTD.new_empty(0, attention.head_dim)  # rotary embeddings of no token
            return attention(h_CTD, attention_mask, position_embeddings=(none, none))[0]
        return attention(h_CTD, attention_mask)[0]

    def why_not_streaming(self) -> str | None:
        """The reason why this block cannot run frame by frame; None: it can."""
        if (ahead := max(self.working_time_offsets(), default=0)) > 0:
            return (
                f"heads of block {self.number} look {ahead} frame{'s' if ahead > 1 else ''} ahead, and the look-ahead "
                "adds up over the blocks; causal=True makes them look back"
            )
        for site in SITE_NAMES:
            for module in self.modules_at(site):
                if why := module.why_not_streaming:
                    return f"the {type(module).__name__} in block {self.number} {why}"
        return None

    def _through(self, names: tuple[str, ...], x: torch.Tensor) -> torch.Tensor:
        for name in names:
            x = getattr(self, name)(x)
        return x


def to_video_block(block: nn.Module, parts: BlockParts, number: int) -> None:
    """Turn a backbone's block into a `VideoBlock`, in place."""
    swap_in(block, VideoBlock)
    block.block_parts, block.number, block.time_offsets = parts, number, ()
    attention = getattr(block, parts.attention)
    block.rotary = "position_embeddings" in inspect.signature(attention.forward).parameters
    attention.config = KernelConfig(attention)
    lean_activations(getattr(block, parts.mlp))


def to_image_block(block: VideoBlock) -> None:
    """Undo `to_video_block`."""
    attention = getattr(block, block.block_parts.attention)
    attention.config = attention.config.wrapped
    own_activations(getattr(block, block.block_parts.mlp))
    del block.block_parts, block.number, block.time_offsets, block.rotary
    block.__dict__.pop("num_prefix_tokens", None)
    swap_out(block)
