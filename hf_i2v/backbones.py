"""Where the blocks of a Hugging Face vision transformer are, and the parts of a block.

Found by structure, not by one model's names: a block is a pre-norm transformer layer with two norms, an attention
with separate q, k, v projections and an MLP, and the vision model is the module that holds such blocks beside a
convolutional patch embedding. What does not look like that is refused before anything is changed.
"""

from dataclasses import dataclass

import torch
from torch import nn

SUPPORTED = "a pre-norm vision transformer with q_proj/k_proj/v_proj (CLIP, ViT, DeiT, SigLIP, DINOv2, DINOv3, …)"


class UnsupportedBackboneError(ValueError):
    """The model is not a vision transformer that hf_i2v can adapt."""


@dataclass(frozen=True)
class BlockParts:
    """Names of a block's own submodules. `x + after_attention(attention(norm1(x)))`, the same again for the MLP."""

    norm1: str
    attention: str
    after_attention: tuple[str, ...]  # dropout, layer scale, drop path: what stands before the residual sum
    norm2: str
    mlp: str
    after_mlp: tuple[str, ...]
    attention_output: str  # projection inside `attention`
    mlp_inputs: tuple[str, ...]  # projections inside `mlp`; two for a gated one
    mlp_output: str

    def projections(self, site: str) -> list[tuple[str, str]]:
        """The projections that directly follow an `_in` site or precede an `_out` site: (attention or mlp, name)."""
        owner, names = {
            "attention_in": (self.attention, ("q_proj", "k_proj", "v_proj")),
            "attention_out": (self.attention, (self.attention_output,)),
            "mlp_in": (self.mlp, self.mlp_inputs),
            "mlp_out": (self.mlp, (self.mlp_output,)),
        }[site]
        return [(owner, name) for name in names]


@dataclass(frozen=True)
class Backbone:
    """A vision transformer inside the model that was searched.

    Attributes:
        name: its path; "" if the searched model itself is the vision transformer. All paths lead from that model.
        model: the vision transformer.
        embeddings: its module that makes tokens of pixels, and `embeddings_path`.
        final_norm: the norm after the blocks, and `final_norm_path`.
        blocks: its transformer blocks in order, by path.
        parts: names of a block's own submodules.
        hidden_size: width D.
        num_heads: attention heads H.
        num_prefix_tokens: CLS, distillation and register tokens, which stand before the patches.
    """

    name: str
    model: nn.Module
    embeddings: nn.Module
    final_norm: nn.Module
    embeddings_path: str
    final_norm_path: str
    blocks: dict[str, nn.Module]
    parts: BlockParts
    hidden_size: int
    num_heads: int
    num_prefix_tokens: int

    @property
    def first_block(self) -> nn.Module:
        """Block 0."""
        return next(iter(self.blocks.values()))


def without_peft(module: nn.Module) -> nn.Module:
    """The module below peft's wrappers (a tuner layer's `base_layer`, `modules_to_save`'s original)."""
    while True:
        inner = getattr(module, "base_layer", None) or module._modules.get("original_module")
        if inner is None:
            return module
        module = inner


def find_backbone(model: nn.Module) -> Backbone:
    """Find the one vision transformer in `model`.

    Raises:
        UnsupportedBackboneError: there is none, or more than one.
    """
    modules = dict(model.named_modules())
    stacks = {
        name: parts
        for name, module in modules.items()
        if isinstance(module, nn.ModuleList) and len(module) and (parts := block_parts(module[0]))
    }
    found = {}
    for stack, parts in stacks.items():
        owner = stack
        while owner:
            owner = owner.rpartition(".")[0]
            prefix = f"{owner}." if owner else ""
            embeddings = [
                name
                for name, child in modules[owner].named_children()
                if any(isinstance(m, nn.Conv2d) for m in child.modules())
                and not any(f"{other}.".startswith(f"{prefix}{name}.") for other in stacks)
            ]
            if embeddings:
                found[owner] = (stack, embeddings[0], parts)
                break
    if not found:
        near_miss = _near_miss(modules, stacks)
        raise UnsupportedBackboneError(
            f"No supported vision transformer was found in {type(model).__name__}{near_miss}. hf_i2v adapts "
            f"{SUPPORTED}; pass such a model, or a model that holds one."
        )
    if len(found) > 1:
        raise UnsupportedBackboneError(
            f"{type(model).__name__} holds {len(found)} vision transformers: {sorted(found)}. Pass the one to adapt."
        )

    ((name, (stack, embeddings, parts)),) = found.items()
    vision_model = modules[name]
    attention = getattr(modules[stack][0], parts.attention)
    key = without_peft(attention.k_proj)
    norms = [child for child, module in vision_model.named_children() if _is_norm(without_peft(module))]
    if not norms:
        raise UnsupportedBackboneError(f"{type(vision_model).__name__} has no final norm. hf_i2v adapts {SUPPORTED}.")
    prefix = f"{name}." if name else ""
    return Backbone(
        name=name,
        model=vision_model,
        embeddings=getattr(vision_model, embeddings),
        final_norm=without_peft(getattr(vision_model, norms[-1])),
        embeddings_path=prefix + embeddings,
        final_norm_path=prefix + norms[-1],
        blocks={f"{stack}.{i}": block for i, block in enumerate(modules[stack])},
        parts=parts,
        hidden_size=key.in_features,
        num_heads=key.out_features // attention.head_dim,
        num_prefix_tokens=_num_prefix_tokens(getattr(vision_model, embeddings)),
    )


def _near_miss(modules: dict[str, nn.Module], stacks: dict[str, BlockParts]) -> str:
    """Why what looks like a vision transformer is none: " (its …)", or nothing."""
    if stacks:
        return " (its patches are not embedded by a convolution)"
    for stack in modules.values():
        if isinstance(stack, nn.ModuleList) and len(stack):
            block = without_peft(stack[0])
            if sum(_is_norm(child) for child in block.children()) > 1:
                return f" (its {type(block).__name__}: {_parts_or_reason(block)})"
    return ""


def grid_side(num_patches: int) -> int:
    """Patches along one side of a square image.

    Raises:
        ValueError: the patches make no square.
    """
    side = round(num_patches**0.5)
    if side * side != num_patches:
        raise ValueError(f"{num_patches} patches make no square grid; only square images can be adapted this way.")
    return side


def block_parts(block: nn.Module) -> BlockParts | None:
    """The parts of a transformer block, or None if it does not have the structure of one."""
    found = _parts_or_reason(block)
    return found if isinstance(found, BlockParts) else None


def _parts_or_reason(block: nn.Module) -> BlockParts | str:
    """The parts of a transformer block, or why they are not found."""
    if hasattr(block, "block_parts"):  # a VideoBlock knows them already
        return block.block_parts
    norms, attentions, mlps, tails = [], [], [], []
    for name, child in block.named_children():
        if _is_norm(child):
            norms.append(name)
        elif all(hasattr(child, projection) for projection in ("q_proj", "k_proj", "v_proj")):
            attentions.append(name)
        elif isinstance(child, (nn.Dropout, nn.Identity)) or type(child).__name__.endswith(("DropPath", "LayerScale")):
            tails.append(name)
        elif fused := _fused_projection(child):
            return f"{name}.{fused} is one projection for queries, keys and values; STDHA and adapters need three"
        elif "attention" in type(child).__name__.lower():
            return f"{name}, a {type(child).__name__}, has no q_proj, k_proj and v_proj of its own"
        elif _linears(child):
            mlps.append(name)
        else:
            return f"{name}, a {type(child).__name__}, is no part of a plain pre-norm block"
    if (len(norms), len(attentions), len(mlps)) != (2, 1, 1):
        return f"{len(norms)} norms, {len(attentions)} attentions and {len(mlps)} MLPs, not 2, 1 and 1"
    # A layer scale belongs to one of the two branches, in order; dropout and drop path serve both.
    scales = [name for name in tails if type(getattr(block, name)).__name__.endswith("LayerScale")]
    if len(scales) not in (0, 2):
        return f"{len(scales)} layer scales, not two or none"
    shared = [name for name in tails if name not in scales]
    attention_linears = [n for n in _linears(getattr(block, attentions[0])) if n not in ("q_proj", "k_proj", "v_proj")]
    *mlp_inputs, mlp_output = _linears(getattr(block, mlps[0]))
    if len(attention_linears) != 1 or not mlp_inputs:
        return f"{attentions[0]} and {mlps[0]} have other projections than an attention and an MLP"
    return BlockParts(
        norm1=norms[0],
        attention=attentions[0],
        after_attention=(*scales[:1], *shared),
        norm2=norms[1],
        mlp=mlps[0],
        after_mlp=(*scales[1:], *shared),
        attention_output=attention_linears[0],
        mlp_inputs=tuple(mlp_inputs),
        mlp_output=mlp_output,
    )


def _fused_projection(module: nn.Module) -> str | None:
    """The name of a projection for queries, keys and values together, if an attention has one."""
    return next((name for name in _linears(module) if "qkv" in name), None)


def _linears(module: nn.Module) -> list[str]:
    return [name for name, child in module.named_children() if isinstance(without_peft(child), nn.Linear)]


def _is_norm(module: nn.Module) -> bool:
    return "Norm" in type(module).__name__ and isinstance(module.weight, torch.Tensor) and module.weight.ndim == 1


def _num_prefix_tokens(embeddings: nn.Module) -> int:
    single = ("class_embedding", "cls_token", "distillation_token")
    count = sum(getattr(embeddings, name, None) is not None for name in single)
    registers = getattr(embeddings, "register_tokens", None)
    return count + (registers.shape[1] if registers is not None else 0)
