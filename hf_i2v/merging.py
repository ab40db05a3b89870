"""Finishing a model: affine modules are folded into the frozen weights, all others become the model's own.

On the input side of a frozen layer W x + b an affine map A x + a folds to W ← W·A, b ← b + W·a, on the output side to
W ← A·W, b ← A·b + a (ZeroI2V, arXiv 2310.01324, section 3.3). Everything is computed in float32 or wider and cast
once.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from peft import PeftModel
from torch import nn

from .backbones import Backbone, without_peft
from .frames import over_frames
from .methods.site import AffineMap, SiteModule
from .quantized import dequantized, is_quantized, warn_dequantized


@dataclass
class Folded:
    """The changes that folding one adapter made to one block. `undo` reverts them exactly."""

    weights: list[tuple[nn.Parameter, torch.Tensor]] = field(default_factory=list)
    new_biases: list[tuple[nn.Linear, object, str]] = field(
        default_factory=list
    )  # and its option in the configuration
    quantized: list[tuple[nn.Module, str, nn.Linear]] = field(default_factory=list)

    def undo(self) -> None:
        for parameter, value in self.weights:
            parameter.data = value
        for linear, config, flag in self.new_biases:
            linear.bias = None
            setattr(config, flag, False)
        for parent, name, linear in self.quantized:
            setattr(parent, name, linear)


def fold_into_weights(
    block: nn.Module, modules: Iterable[tuple[str, SiteModule]], *, check: bool, adapter_name: str
) -> Folded:
    """Fold an adapter's modules, given with their sites, into a `VideoBlock`.

    Quantised weights are dequantised first, with a warning.

    Raises:
        ValueError: with `check`, a weight would not be finite; or the adapter needs a bias that a projection cannot
            have. The block is left as it was.
    """
    merged: dict[nn.Parameter, torch.Tensor] = {}
    done = Folded()
    try:
        for site, module in modules:
            affine = module.affine()
            for owner, name in block.block_parts.projections(site):  # next to the site
                parent = getattr(block, owner)
                linear = _with_bias(block, site, parent, name, done)
                _fold_affine(linear, affine, output_side=site.endswith("_out"), merged=merged)
        if check and not all(torch.isfinite(value).all() for value in merged.values()):
            raise ValueError(f"NaNs detected in the merged weights. The adapter {adapter_name} seems to be broken")
    except BaseException:
        done.undo()
        raise
    if done.quantized:
        warn_dequantized(f"Merging the adapter {adapter_name!r}", block.dtype)
    fresh = {p for parent, name, _ in done.quantized for p in getattr(parent, name).parameters()}
    done.weights = [(parameter, parameter.data) for parameter in merged]
    for parameter, value in merged.items():
        parameter.data = value.to(block.dtype if parameter in fresh else parameter.dtype)
    return done


def _with_bias(block: nn.Module, site: str, parent: nn.Module, name: str, done: Folded) -> nn.Linear:
    """The projection as an ordinary one with a bias, for the constant part of an affine map.

    A new bias is written into the model's configuration, so that a saved model loads with it.

    Raises:
        ValueError: the configuration has no option for such a bias.
    """
    if is_quantized(getattr(parent, name)):
        done.quantized.append((parent, name, getattr(parent, name)))
        setattr(parent, name, dequantized(getattr(parent, name), torch.float32))
    linear = without_peft(getattr(parent, name))
    if linear.bias is not None:
        return linear
    config = getattr(block, block.block_parts.attention).config.wrapped
    word = {"q_proj": "query_bias", "k_proj": "key_bias", "v_proj": "value_bias"}.get(name, "mlp_bias")
    flag = next((flag for flag in (word, "qkv_bias") if hasattr(config, flag)), None)
    if flag is None:
        raise ValueError(
            f"A linear adapter at {site!r} cannot be merged: {name} has no bias for its constant part, and "
            f"{type(config).__name__} has no option to give it one. Leave {site!r} out of adapter_sites."
        )
    linear.bias = nn.Parameter(linear.weight.new_zeros(linear.out_features), requires_grad=False)
    setattr(config, flag, True)
    done.new_biases.append((linear, config, flag))
    return linear


def _fold_affine(linear: nn.Linear, affine: AffineMap, *, output_side: bool, merged: dict) -> None:
    """Add to `merged` the weight and bias of A·(W x + b) + a, or of W·(A x + a) + b. A itself is never computed: two
    thin products per weight are cheaper than a square one."""
    W = merged.get(linear.weight, linear.weight.detach()).to(affine.up.dtype)
    b = merged.get(linear.bias, linear.bias.detach()).to(affine.up.dtype)
    up, down, a = (tensor.detach().to(W.device) for tensor in affine)
    if output_side:
        merged[linear.weight], merged[linear.bias] = torch.addmm(W, up, down @ W), b + up @ (down @ b) + a
    else:
        merged[linear.weight], merged[linear.bias] = torch.addmm(W, W @ up, down), W @ a + b


def merge_layers(layers: list[nn.Module], *, check: bool, adapter_names: list[str] | None = None) -> None:
    """Merge the adapters in all tuner layers, or leave all of them as they were."""
    before = [list(layer.merged_adapters) for layer in layers]
    try:
        for layer in layers:
            layer.merge(safe_merge=check, adapter_names=adapter_names)
    except BaseException:
        for layer, merged in zip(layers, before, strict=True):
            layer.unmerge()
            if merged:
                layer.merge(adapter_names=merged)
        raise


def keep_as_own(backbone: Backbone, num_frames: int) -> set[str]:
    """Make the working adapters' unfolded modules, time offsets, temporal embedding, pooling and side branch the
    model's own.

    Returns:
        Names of the methods whose modules the model keeps.
    """
    kept = set()
    for block in backbone.blocks.values():
        if "sites" in block._modules:
            block.time_offsets = block.working_time_offsets()
            kept |= block.bake()
    model, embeddings = backbone.model, backbone.embeddings
    if "temporal" in embeddings._modules:
        _keep_temporal_embedding(embeddings, num_frames)
    if "clip_head" in model._modules:
        model.pooling = model.working_pooling()
        model.last_frames = num_frames if model.working_last_frames() else None
        for branch in model.clip_head.working_branches():
            model.baked_branch = branch.requires_grad_(False)
    return kept


def _keep_temporal_embedding(embeddings: nn.Module, num_frames: int) -> None:
    parts_TD = [over_frames(e.detach(), num_frames) for e in embeddings.temporal.working_embeddings()]
    if embeddings.temporal_embedding is not None:
        parts_TD.append(embeddings.temporal_embedding.detach())
    if parts_TD:
        dtype = next(p for n, p in embeddings.named_parameters() if not n.startswith("temporal")).dtype
        total_TD = torch.stack([part.to(torch.promote_types(part.dtype, torch.float32)) for part in parts_TD]).sum(0)
        embeddings.temporal_embedding = nn.Parameter(total_TD.to(dtype), requires_grad=False)


@torch.no_grad()
def merge_error(model: PeftModel, pixel_values: torch.Tensor) -> tuple[nn.Module, float]:
    """Merge an adapter (or bake it, if it cannot be merged) and measure how far the output moved.

    Returns:
        The model, in eval mode, and the largest difference of a logit on `pixel_values` (B, T, C, h, w).
    """
    before = model.eval()(pixel_values)[0]
    try:
        merged = model.merge_and_unload()
    except ValueError:  # no linear map of the weights
        merged = model.base_model.bake()
    after = merged.eval()(pixel_values)[0]
    return merged, (after - before).abs().max().item()


@torch.no_grad()
def merge_difference(model: PeftModel, pixel_values: torch.Tensor) -> float | None:
    """The largest difference that merging makes to a logit on `pixel_values` (B, T, C, h, w), or None if the adapter
    cannot be merged. The model stays unmerged."""
    video_model = model.eval().get_base_model()  # without the autocast of accelerate
    pixel_values = pixel_values.to(model.device)
    before = video_model(pixel_values)[0]
    try:
        model.merge_adapter()
    except ValueError:  # no linear map of the weights
        return None
    after = video_model(pixel_values)[0]
    model.unmerge_adapter()
    return (after - before).abs().max().item()
