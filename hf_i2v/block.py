"""One transformer block with its sites, where a method may act.

    x ── before ──► norm1 ─ attention_in ─ attention ─ attention_out ─► + ── between ──►
         norm2 ─┬─ mlp_in ─ mlp ─ mlp_out ─► + ── after ──► x
                └─ parallel ───────────────► +

A backbone's block becomes a `VideoBlock` by taking on a class that derives from both (as FSDP2 does): its weights,
names, hooks, output capturing and gradient checkpointing stay what they were.
"""

import inspect
from collections.abc import Iterator

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import nn

from .activation import lean_activations, own_activations
from .backbones import BlockParts, without_peft
from .config import SITES
from .frames import continue_with, frames_in_flight, tokens_read_in_flight
from .methods.linear_adapter import MERGEABLE_SITES
from .methods.stdha import TimeShift, TimeShiftConfig
from .quantized import dequantized, is_quantized, warn_dequantized
from .swapped import Swapped, swap_in, swap_out


class I2VLayer(nn.Module, BaseTunerLayer):
    """What peft sees of a method: containers keyed by the adapter's name, and which adapters are active."""

    def __init__(self, adapter_name: str):
        super().__init__()
        self._disable_adapters = False
        self._active_adapter = adapter_name
        self.merged_adapters = []

    @property
    def weight(self):
        raise AttributeError("a tuner layer that stands beside a block wraps no weight")

    bias = weight

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Note the adapters as merged; what acts in the forward pass goes on doing so."""
        self.merged_adapters += [n for n in adapter_names or self.active_adapters if n not in self.merged_adapters]

    def unmerge(self) -> None:
        self.merged_adapters.clear()

    def working_adapters(self) -> list[str]:
        """Names of the adapters that take part in a forward pass."""
        return [] if self.disable_adapters else list(dict.fromkeys([*self.merged_adapters, *self.active_adapters]))


class Sites(I2VLayer):
    """The tuner layer of a block: per site and adapter the modules of its methods, by method name."""

    adapter_layer_names = tuple(f"i2v_{site}" for site in SITES)  # with the tuner's prefix, as peft expects
    other_param_names = ("time_offsets",)

    def __init__(self, block: "VideoBlock", adapter_name: str):
        super().__init__(adapter_name)
        self.__dict__["block"] = block  # not a submodule
        for site in SITES:
            setattr(self, f"i2v_{site}", nn.ModuleDict())
        self.time_offsets: dict[str, tuple[int, ...]] = {}
        self._unmerged_weights: dict[str, list[tuple[nn.Parameter, torch.Tensor]]] = {}
        self._new_biases: dict[str, list[tuple[nn.Linear, str]]] = {}
        self._quantized: dict[str, list[tuple[nn.Module, str, nn.Linear]]] = {}

    def adapters_at(self, site: str) -> nn.ModuleDict:
        """All adapters' modules at `site`, by adapter."""
        return getattr(self, f"i2v_{site}")

    def at(self, site: str) -> Iterator[nn.Module]:
        """Modules to run at `site`, in order. Merged ones are in the weights already."""
        adapters = self.adapters_at(site)
        for name in self.working_adapters():
            if name in adapters and name not in self.merged_adapters:
                yield from adapters[name].values()

    def methods_of(self, adapter_name: str, *, mergeable: bool) -> set[str]:
        """Names of the adapter's methods that have modules here which fold into weights, or which do not."""
        return {
            method
            for site in SITES
            if adapter_name in self.adapters_at(site)
            for method, module in self.adapters_at(site)[adapter_name].items()
            if hasattr(module, "affine") == mergeable
        }

    def shift(self) -> tuple[int, ...] | None:
        """Time offsets that the working adapters bring, or None if they leave them to the model."""
        offsets = {self.time_offsets[name] for name in self.working_adapters() if name in self.time_offsets}
        if len(offsets) > 1:
            raise ValueError(
                f"The active adapters {self.working_adapters()} shift the same heads differently: {sorted(offsets)}. "
                "Activate only one of them."
            )
        return offsets.pop() if offsets else None

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Fold the linear adapters into the block's weights: on the input side W ← W·A, on the output side W ← A·W.

        Quantised weights are dequantised first, with a warning.

        Raises:
            ValueError: with `safe_merge`, a weight would not be finite; or a projection can have no bias that the
                adapter needs. The block is left as it was.
        """
        for name in check_adapters_to_merge(self, adapter_names):
            merged, new_biases, quantized = {}, [], []
            try:
                for site, module in self._affine_modules(name):
                    up, down, a = module.affine()
                    quantized += self.block.dequantize(site)
                    new_biases += self.block.add_missing_biases(site)
                    for linear in self.block.linears_at(site):
                        _fold_affine(linear, up, down, a, output_side=site.endswith("_out"), merged=merged)
                if safe_merge and not all(torch.isfinite(value).all() for value in merged.values()):
                    raise ValueError(f"NaNs detected in the merged weights. The adapter {name} seems to be broken")
            except BaseException:
                self.block.remove_biases(new_biases)
                _put_back(quantized)
                raise
            if quantized:
                warn_dequantized(f"Merging the adapter {name!r}", self.block.dtype)
            self._unmerged_weights[name] = [(parameter, parameter.data) for parameter in merged]
            self._quantized[name] = quantized
            self._new_biases[name] = new_biases
            fresh = {p for parent, child, _ in quantized for p in getattr(parent, child).parameters()}
            for parameter, value in merged.items():
                parameter.data = value.to(self.block.dtype if parameter in fresh else parameter.dtype)
            self.merged_adapters.append(name)

    def _affine_modules(self, adapter_name: str) -> list[tuple[str, nn.Module]]:
        """The adapter's modules that fold into weights, with their sites."""
        return [
            (site, module)
            for site in MERGEABLE_SITES
            if adapter_name in self.adapters_at(site)
            for module in self.adapters_at(site)[adapter_name].values()
            if hasattr(module, "affine")
        ]

    def unmerge(self) -> None:
        """Put the weights from before the merges back, exactly."""
        while self.merged_adapters:
            name = self.merged_adapters.pop()
            for parameter, value in self._unmerged_weights.pop(name):
                parameter.data = value
            self.block.remove_biases(self._new_biases.pop(name))
            _put_back(self._quantized.pop(name))


def _put_back(modules: list[tuple[nn.Module, str, nn.Module]]) -> None:
    for parent, name, module in modules:
        setattr(parent, name, module)


def _fold_affine(linear: nn.Linear, up, down, a, *, output_side: bool, merged: dict) -> None:
    """Add to `merged` the float32 (or wider) weight and bias of A·(W x + b) + a, or of W·(A x + a) + b, where
    A = I + up·down. A itself is never made: two thin products per weight are cheaper than a square one."""
    W = merged.get(linear.weight, linear.weight.detach()).to(up.dtype)
    b = merged.get(linear.bias, linear.bias.detach()).to(up.dtype)
    up, down, a = (tensor.detach().to(W.device) for tensor in (up, down, a))
    if output_side:
        merged[linear.weight], merged[linear.bias] = torch.addmm(W, up, down @ W), b + up @ (down @ b) + a
    else:
        merged[linear.weight], merged[linear.bias] = torch.addmm(W, W @ up, down), W @ a + b


class VideoBlock(Swapped):
    """A backbone's block that knows the number of frames, shifts heads in time, and runs what stands at its sites.

    `time_offsets` and the modules in `baked` are the model's own (after a merge, or by its config). The time offsets
    of an active adapter replace the model's, its modules run after the model's.
    """

    block_parts: BlockParts
    time_offsets: tuple[int, ...]
    rotary: bool  # whether the attention asks for position embeddings
    is_last: bool = False

    def __call__(self, x_MND: torch.Tensor, *args, **kwargs):
        if self._checkpoints_reentrantly() and not x_MND.requires_grad:
            x_MND = x_MND.detach().requires_grad_()  # else the whole block would be taken for frozen
        # outside of gradient checkpointing, whose second run must see the same number of frames on any thread
        num_frames = remaining = frames_in_flight()
        tokens_read = tokens_read_in_flight() if self.is_last else None
        x_MND = super().__call__(x_MND, *args, num_frames=num_frames, tokens_read=tokens_read, **kwargs)
        for module in self.modules_at("before"):
            remaining //= getattr(module, "frame_stride", 1)
        if remaining != num_frames:
            continue_with(remaining)
        return x_MND

    def _checkpoints_reentrantly(self) -> bool:
        checkpoint = getattr(self, "_gradient_checkpointing_func", None)
        return (
            getattr(self, "gradient_checkpointing", False)
            and self.training
            and torch.is_grad_enabled()
            and getattr(checkpoint, "keywords", {}).get("use_reentrant", False)
        )

    def forward(
        self, x_MND: torch.Tensor, attention_mask=None, *, num_frames: int, tokens_read: int | None = None, **kwargs
    ) -> torch.Tensor:
        parts = self.block_parts
        sites = self._modules.get("sites")
        if sites is not None and sites.disable_adapters and sites.merged:
            sites.unmerge()
        shift = sites.shift() if sites is not None else None
        shift = self.time_offsets if shift is None else shift

        own = {"norm1": self.first_norm, "attend": self.attend}  # not the block: hooks would move it about

        def run(site, x):
            for module in self.modules_at(site):
                x = module(x, num_frames=num_frames, **own)
            return x

        for module in self.modules_at("before"):
            x_MND = module(x_MND, num_frames=num_frames, **own)
            num_frames //= getattr(module, "frame_stride", 1)
        if shift:
            attention_mask = TimeShift(attention_mask, num_frames, shift)
        h_MND = run("attention_in", self.first_norm(x_MND))
        h_MND = getattr(self, parts.attention)(h_MND, attention_mask, **kwargs)[0]
        x_MND = x_MND + self._through(parts.after_attention, run("attention_out", h_MND))

        x_MND = run("between", x_MND)[:, :tokens_read]  # what follows works token by token
        n_MND = getattr(self, parts.norm2)(x_MND)
        h_MND = getattr(self, parts.mlp)(run("mlp_in", n_MND))
        h_MND = self._through(parts.after_mlp, run("mlp_out", h_MND))
        for module in self.modules_at("parallel"):
            h_MND = h_MND + module(n_MND, num_frames=num_frames, **own)
        return run("after", x_MND + h_MND)

    def modules_at(self, site: str) -> Iterator[nn.Module]:
        """What runs at `site`, in order: the model's own modules, then those of the working adapters."""
        if (baked := self._modules.get("baked")) is not None and site in baked:
            yield from baked[site].values()
        if (sites := self._modules.get("sites")) is not None:
            yield from sites.at(site)

    def bake(self, adapter_name: str, *, with_linear: bool) -> set[str]:
        """Move an adapter's modules (without those that were merged) among the model's own; returns their methods."""
        methods = set()
        for site in SITES:
            for method, module in self.sites.adapters_at(site)._modules.pop(adapter_name, nn.ModuleDict()).items():
                if with_linear or not hasattr(module, "affine"):
                    self.add_baked(site, method, module.to(self.dtype).requires_grad_(False))
                    methods.add(method)
        return methods

    def add_baked(self, site: str, method: str, module: nn.Module) -> None:
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
        """Of the block's own computation; its projections may be quantised."""
        return getattr(self, self.block_parts.norm1).weight.dtype

    def first_norm(self, x: torch.Tensor) -> torch.Tensor:
        """The norm before the attention."""
        return getattr(self, self.block_parts.norm1)(x)

    def attend(self, h_CTD: torch.Tensor) -> torch.Tensor:
        """The attention of this block on any sequences (…, length, D), without mask, time shift or positions."""
        attention = getattr(self, self.block_parts.attention)
        if self.rotary:
            none = h_CTD.new_empty(0, attention.head_dim)  # rotary embeddings of no token
            return attention(h_CTD, position_embeddings=(none, none))[0]
        return attention(h_CTD)[0]

    def _through(self, names: tuple[str, ...], x: torch.Tensor) -> torch.Tensor:
        for name in names:
            x = getattr(self, name)(x)
        return x

    def add_missing_biases(self, site: str) -> list[tuple[nn.Linear, str]]:
        """Give the projections at `site` a bias, for the constant part of a merged adapter, and say so in the config.

        Returns:
            The projections that got one, each with the config's name for it.

        Raises:
            ValueError: the model's configuration has no word for such a bias, so it could not be saved.
        """
        config = getattr(self, self.block_parts.attention).config.wrapped
        added = []
        for module, name in self._linear_names(site):
            linear = without_peft(getattr(module, name))
            if linear.bias is not None:
                continue
            words = {"q_proj": "query_bias", "k_proj": "key_bias", "v_proj": "value_bias"}.get(name, "mlp_bias")
            flag = next((flag for flag in (words, "qkv_bias") if hasattr(config, flag)), None)
            if flag is None:
                self.remove_biases(added)
                raise ValueError(
                    f"A linear adapter at {site!r} cannot be merged: {name} has no bias to take its constant part, "
                    f"and {type(config).__name__} cannot say that it has one. Leave {site!r} out of adapter_sites."
                )
            linear.bias = nn.Parameter(linear.weight.new_zeros(linear.out_features), requires_grad=False)
            setattr(config, flag, True)
            added.append((linear, flag))
        return added

    def dequantize(self, site: str) -> list[tuple[nn.Module, str, nn.Linear]]:
        """Make the quantised projections at `site` ordinary ones in float32; returns what stood where."""
        replaced = []
        for module, name in self._linear_names(site):
            if is_quantized(linear := getattr(module, name)):
                replaced.append((module, name, linear))
                setattr(module, name, dequantized(linear, torch.float32))
        return replaced

    def remove_biases(self, added: list[tuple[nn.Linear, str]]) -> None:
        """Undo `add_missing_biases`."""
        config = getattr(self, self.block_parts.attention).config.wrapped
        for linear, flag in added:
            linear.bias = None
            setattr(config, flag, False)

    def linears_at(self, site: str) -> list[nn.Linear]:
        """The frozen projections that directly follow an `_in` site, or directly precede an `_out` site."""
        return [without_peft(getattr(module, name)) for module, name in self._linear_names(site)]

    def _linear_names(self, site: str) -> list[tuple[nn.Module, str]]:
        return [(getattr(self, owner), name) for owner, name in self.block_parts.projections(site)]


def to_video_block(block: nn.Module, parts: BlockParts, time_offsets: tuple[int, ...] = ()) -> None:
    """Turn a backbone's block into a `VideoBlock`, in place."""
    swap_in(block, VideoBlock)
    block.block_parts, block.time_offsets = parts, time_offsets
    attention = getattr(block, parts.attention)
    block.rotary = "position_embeddings" in inspect.signature(attention.forward).parameters
    attention.config = TimeShiftConfig(attention)
    lean_activations(getattr(block, parts.mlp))


def to_image_block(block: VideoBlock) -> None:
    """Undo `to_video_block`."""
    attention = getattr(block, block.block_parts.attention)
    attention.config = attention.config.wrapped
    own_activations(getattr(block, block.block_parts.mlp))
    del block.block_parts, block.time_offsets, block.rotary
    block.__dict__.pop("is_last", None)
    swap_out(block)
