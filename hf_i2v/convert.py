"""Checkpoints of the papers' released code: read into a `PeftModel`, and written back in their layout.

Each key of a released checkpoint names one tensor here (q, k and v, which are packed there, name three).
"""

import os
import re
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import CLIPVisionConfig, ViTConfig

from .backbones import find_backbone, grid_side
from .configuration_i2v import I2VConfig
from .data.transforms import CLIP_MEAN, CLIP_STD, IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from .methods.aim import AIMConfig
from .methods.config import I2VTunerConfig
from .methods.st_adapter import STAdapterConfig
from .methods.zeroi2v import ZeroI2VConfig
from .modeling_i2v import I2VForVideoClassification
from .trained_on import weights_sample
from .untrusted import check_finite

BASE = "base_model.model."
IMAGE = BASE + "i2v.image_model."
# released name of a module beside a block's parts → its site, and its place in the method's module there
RELEASED_SITES = {
    "zeroi2v": {
        "T_Adapter_in": ("attention_in", ""),
        "S_Adapter": ("attention_out", ""),
        "MLP_Adapter": ("mlp_in", ""),
        "MLP_Adapter_out": ("mlp_out", ""),
    },
    "st_adapter": {"adapter_pre_attn": ("before", ""), "adapter_pre_mlp": ("between", "")},
    "aim": {
        "T_Adapter": ("before", "adapter."),
        "T_Adapter_in": ("before", "adapter_in."),
        "S_Adapter": ("attention_out", ""),
        "MLP_Adapter": ("parallel", "adapter."),
    },
}
LAYERS = {
    "zeroi2v": {"down": "D_fc1", "up": "D_fc2"},
    "st_adapter": {"down": "fc1", "conv": "conv", "up": "fc2"},
    "aim": {"down": "D_fc1", "up": "D_fc2"},
}
HEADS = {"zeroi2v": "cls_head.fc_cls", "st_adapter": "fc", "aim": "cls_head.fc_cls"}
METHODS = tuple(RELEASED_SITES)


def load_released_checkpoint(
    path_or_state_dict: str | os.PathLike | dict[str, torch.Tensor],
    method: str,
    *,
    num_heads: int | None = None,
    **options: Any,
) -> PeftModel:
    """A released checkpoint as an adapter over the `I2VForVideoClassification` that is in the checkpoint too.

    Args:
        path_or_state_dict: a file of the paper's repository (opened with `weights_only=True`), or its state dict.
            Prefixes `backbone.` and `module.`, a `state_dict` level and half precision are handled.
        method: "zeroi2v", "st_adapter" or "aim" (CLIP's layout, or that of its ImageNet ViT).
        num_heads: attention heads; default D / 64, as in every CLIP.
        options: of the method's configuration, where the shapes of the weights do not determine them (`time_offsets`,
            `adapter_scale`, …; `num_frames` where the checkpoint has no temporal embedding). Default: the released
            recipe.

    Returns:
        The model in eval mode, with the classifier and the final norm of the checkpoint.

    Raises:
        ValueError: an unknown method; or keys that are missing, left over or of the wrong shape, all listed; or
            weights that are not finite.
    """
    if method not in METHODS:
        raise ValueError(f"method {method!r} must be one of {list(METHODS)}")
    state = _tensors(path_or_state_dict)
    check_finite(state, "The checkpoint")
    try:
        config = _tuner_config(method, state, options)
        model_config = _model_config(method, state, num_heads, config.num_frames)
    except KeyError as error:
        raise ValueError(f"The checkpoint does not fit:\n  missing: {error.args[0]}") from None
    base = I2VForVideoClassification(model_config).eval()
    model = get_peft_model(base, config)

    names = _released_names(method, model)
    ours = dict(model.named_parameters())
    problems = [f"left over: {key}" for key in sorted(state.keys() - names.keys())]
    loaded = {}
    for released, targets in names.items():
        if released not in state:
            problems.append(f"missing: {released}")
            continue
        rows = state[released].float().chunk(len(targets))
        for target, value in zip(targets, rows, strict=True):
            if value.numel() != ours[target].numel() or value.squeeze(0).shape != ours[target].squeeze(0).shape:
                problems.append(
                    f"wrong shape: {released} {tuple(state[released].shape)}, expected {tuple(ours[target].shape)}"
                )
            loaded[target] = value
    if problems:
        raise ValueError("The checkpoint does not fit:\n  " + "\n  ".join(problems))
    with torch.no_grad():
        for name, value in loaded.items():
            ours[name].copy_(value.reshape(ours[name].shape))
            if ".modules_to_save." in name:  # the frozen original, in use while the adapter is disabled
                original = re.sub(r"modules_to_save\.[^.]+", "original_module", name)
                ours[original].copy_(value.reshape(ours[name].shape))
    model.peft_config["default"].trained_on["weights"] = weights_sample(find_backbone(base).model)
    return model


def to_released_state_dict(model: PeftModel) -> dict[str, torch.Tensor]:
    """The active adapter and its model in the layout of the paper's released code, without prefixes.

    Args:
        model: with one adapter of ZeroI2V, ST-Adapter or AIM.

    Raises:
        ValueError: another method, for which no code was released.
    """
    method = model.active_peft_config.method_name
    if method not in METHODS:
        raise ValueError(f"No code was released for {method!r}; the methods with a released layout: {list(METHODS)}")
    ours = dict(model.named_parameters())
    state = {}
    for released, targets in _released_names(method, model).items():
        value = torch.cat([ours[target].detach() for target in targets])
        state[released] = value[None] if released == "temporal_embedding" else value
    return state


def _released_names(method: str, model: PeftModel) -> dict[str, tuple[str, ...]]:
    """Released name → our names, for all parameters of `model` but the frozen originals."""
    return {
        released: targets
        for released, targets in (_pair(method, name) for name in model.state_dict(keep_vars=True))
        if released is not None
    }


def _pair(method: str, name: str) -> tuple[str | None, tuple[str, ...]]:
    """The released name of one of our parameters, and all of ours that the released tensor holds. None for a parameter
    that another one's entry covers."""
    plain = re.sub(r"\.modules_to_save\.[^.]+", "", name)
    if ".original_module." in name:
        return None, ()
    if plain.startswith(BASE + "classifier."):
        return plain.replace(BASE + "classifier", HEADS[method]), (name,)
    plain = plain.removeprefix(IMAGE)
    for pattern, replacement in _patterns(method):
        released, found = re.subn(rf"^{pattern}$", replacement, plain)
        if found and released == "skip":
            return None, ()
        if found and ("in_proj" in released or "attn.qkv" in released):
            return released, tuple(name.replace("q_proj", p) for p in ("q_proj", "k_proj", "v_proj"))
        if found:
            return released, (name,)
    raise AssertionError(f"{name} has no counterpart in the released layout of {method}")


def _patterns(method: str) -> Iterator[tuple[str, str]]:
    """Our names, relative to the image model, and the released code's names."""
    yield r"embeddings\.temporal\.i2v_embedding\.[^.]+", "temporal_embedding"
    # CLIP
    yield r"embeddings\.class_embedding", "class_embedding"
    yield r"embeddings\.patch_embedding\.weight", "conv1.weight"
    yield r"embeddings\.position_embedding\.weight", "positional_embedding"
    yield r"pre_layrnorm\.(\w+)", r"ln_pre.\1"
    yield r"post_layernorm\.(\w+)", r"ln_post.\1"
    block, released = r"encoder\.layers\.(\d+)\.", r"transformer.resblocks.\1."
    yield block + r"layer_norm([12])\.(\w+)", released + r"ln_\2.\3"
    yield block + r"self_attn\.q_proj\.(\w+)", released + r"attn.in_proj_\2"
    yield block + r"self_attn\.[kv]_proj\.(\w+)", "skip"
    yield block + r"self_attn\.out_proj\.(\w+)", released + r"attn.out_proj.\2"
    yield block + r"mlp\.fc1\.(\w+)", released + r"mlp.c_fc.\2"
    yield block + r"mlp\.fc2\.(\w+)", released + r"mlp.c_proj.\2"
    yield from _adapter_patterns(method, block, released)
    # the ImageNet ViT of AIM
    yield r"embeddings\.cls_token", "cls_token"
    yield r"embeddings\.patch_embeddings\.projection\.(\w+)", r"patch_embed.proj.\1"
    yield r"embeddings\.position_embeddings", "pos_embed"
    yield r"layernorm\.(\w+)", r"ln_post.\1"
    block, released = r"layers\.(\d+)\.", r"blocks.\1."
    yield block + r"layernorm_before\.(\w+)", released + r"norm1.\2"
    yield block + r"layernorm_after\.(\w+)", released + r"norm2.\2"
    yield block + r"attention\.q_proj\.(\w+)", released + r"attn.qkv.\2"
    yield block + r"attention\.[kv]_proj\.(\w+)", "skip"
    yield block + r"attention\.o_proj\.(\w+)", released + r"attn.proj.\2"
    yield block + r"mlp\.fc([12])\.(\w+)", released + r"mlp.fc\2.\3"
    yield from _adapter_patterns(method, block, released)


def _adapter_patterns(method: str, block: str, released: str) -> Iterator[tuple[str, str]]:
    for theirs, (site, inner) in RELEASED_SITES[method].items():
        for ours, layer in LAYERS[method].items():
            name = rf"sites\.i2v_{site}\.[^.]+\.{method}\.{re.escape(inner)}{ours}"
            yield block + name + r"\.(\w+)", released + rf"{theirs}.{layer}.\2"


def _tensors(path_or_state_dict: str | os.PathLike | dict) -> dict[str, torch.Tensor]:
    state = path_or_state_dict
    if not isinstance(state, dict):
        safe = str(state).endswith(".safetensors")
        state = load_file(state) if safe else torch.load(state, map_location="cpu", weights_only=True)
    state = state.get("state_dict", state)
    return {re.sub(r"^(module\.|backbone\.)+", "", key): value for key, value in state.items()}


def _model_config(method: str, state: dict[str, torch.Tensor], num_heads: int | None, num_frames: int) -> I2VConfig:
    """Sizes read from the shapes of the backbone's weights."""
    clip = "conv1.weight" in state
    patch_embedding = state["conv1.weight" if clip else "patch_embed.proj.weight"]
    width, channels, patch_size, _ = patch_embedding.shape
    positions = state["positional_embedding" if clip else "pos_embed"]
    hidden = state[_block(state, 0) + ("mlp.c_fc.weight" if clip else "mlp.fc1.weight")]
    sizes = {
        "hidden_size": width,
        "intermediate_size": hidden.shape[0],
        "num_hidden_layers": _num_blocks(state),
        "num_attention_heads": num_heads or width // 64,
        "num_channels": channels,
        "patch_size": patch_size,
        "image_size": grid_side(positions.shape[-2] - 1) * patch_size,
    }
    if clip:
        image_config = CLIPVisionConfig(**sizes, hidden_act="quick_gelu")
    else:
        image_config = ViTConfig(**sizes, layer_norm_eps=1e-6)
    # as the released configurations say
    mean, std = (CLIP_MEAN, CLIP_STD) if clip else (IMAGENET_MEAN, IMAGENET_STD)
    interpolation = "bicubic" if method == "st_adapter" else "bilinear"
    return I2VConfig(
        image_config=image_config,
        num_frames=num_frames,
        num_labels=state[HEADS[method] + ".weight"].shape[0],
        preprocessing=asdict(Preprocessing(sizes["image_size"], mean, std, interpolation)),
    )


def _tuner_config(method: str, state: dict[str, torch.Tensor], options: dict) -> I2VTunerConfig:
    """The method's configuration from the shapes of the weights, then from the options."""
    adapters = {  # block number, released name → the adapter's first matrix
        (int(m[1]), m[2]): value
        for key, value in state.items()
        if (m := re.match(rf"(?:transformer\.res)?blocks\.(\d+)\.(\w+)\.{LAYERS[method]['down']}\.weight$", key))
        and m[2] in RELEASED_SITES[method]
    }
    if not adapters:
        raise ValueError(
            f"The checkpoint has no adapter of {method}, none of {list(RELEASED_SITES[method])} in its blocks."
        )
    names = [name for name in RELEASED_SITES[method] if any(name == other for _, other in adapters)]
    layers = sorted({layer for layer, _ in adapters})
    bottleneck, width = next(iter(adapters.values())).shape
    found = {"layers_to_transform": None if len(layers) == _num_blocks(state) else layers}
    if "temporal_embedding" in state:
        found["num_frames"] = state["temporal_embedding"].shape[1]
    else:
        found["num_frames"] = 8
    if method == "st_adapter":
        conv = state[_block(state, layers[0]) + names[0] + ".conv.weight"]
        found |= {"adapter_width": bottleneck, "kernel_size": tuple(conv.shape[2:])}
    else:
        found["adapter_ratio"] = bottleneck / width
    if method == "aim":
        found["temporal_adapter_in"] = "T_Adapter_in" in names
    else:
        found["adapter_sites"] = [RELEASED_SITES[method][name][0] for name in names]
    config_class = {"zeroi2v": ZeroI2VConfig, "st_adapter": STAdapterConfig, "aim": AIMConfig}[method]
    return config_class(**{**found, **options})


def _block(state: dict[str, torch.Tensor], number: int) -> str:
    return f"transformer.resblocks.{number}." if "conv1.weight" in state else f"blocks.{number}."


def _num_blocks(state: dict[str, torch.Tensor]) -> int:
    return 1 + max(int(m[1]) for key in state if (m := re.match(r"(?:transformer\.res)?blocks\.(\d+)\.", key)))
