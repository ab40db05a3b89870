"""Checkpoints of the papers' released code: read into a `PeftModel`, and written back in their layout.

Each key of a released checkpoint names one tensor here (q, k and v, which are packed there, name three).
"""

import os
import re
from collections.abc import Iterator

import torch
from peft import PeftModel, get_peft_model
from transformers import CLIPVisionConfig

from .methods.zeroi2v import ZeroI2VConfig
from .modeling_i2v import I2VConfig, I2VForVideoClassification

BASE = "base_model.model."
IMAGE = BASE + "i2v.image_model."
SITE_NAMES = {
    "zeroi2v": {
        "T_Adapter_in": "attention_in",
        "S_Adapter": "attention_out",
        "MLP_Adapter": "mlp_in",
        "MLP_Adapter_out": "mlp_out",
    },
}
METHODS = tuple(SITE_NAMES)


def load_released_checkpoint(
    path_or_state_dict: str | os.PathLike | dict[str, torch.Tensor],
    method: str,
    *,
    num_heads: int | None = None,
    **options,
) -> PeftModel:
    """A released checkpoint as an adapter over the `I2VForVideoClassification` that is in the checkpoint too.

    Args:
        path_or_state_dict: a file of the paper's repository (opened with `weights_only=True`), or its state dict.
            Prefixes `backbone.` and `module.`, a `state_dict` level and half precision are handled.
        method: "zeroi2v".
        num_heads: attention heads; default D / 64, as in every CLIP.
        options: what shapes do not tell, by the names of the method's configuration (`time_offsets`,
            `adapter_scale`, …), and `num_frames` where the checkpoint has no temporal embedding. Default: the
            released recipe.

    Raises:
        ValueError: an unknown method; or keys that are missing, left over or of the wrong shape, all listed.
    """
    if method not in METHODS:
        raise ValueError(f"method {method!r} must be one of {list(METHODS)}")
    state = _tensors(path_or_state_dict)
    config = _tuner_config(method, state, options)
    base = I2VForVideoClassification(_model_config(state, num_heads, config)).eval()
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
    return model


def to_released_state_dict(model: PeftModel) -> dict[str, torch.Tensor]:
    """The active adapter and its model in the layout of the paper's released code, without prefixes."""
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
    """The released name of one of our parameters, and all of ours that it holds; None where another one stands."""
    plain = re.sub(r"\.modules_to_save\.[^.]+", "", name)
    if ".original_module." in name:
        return None, ()
    if plain.startswith(BASE + "classifier."):
        return plain.replace(BASE + "classifier", "cls_head.fc_cls"), (name,)
    plain = plain.removeprefix(IMAGE)
    for pattern, replacement in _patterns(method):
        released, found = re.subn(rf"^{pattern}$", replacement, plain)
        if found and released == "skip":
            return None, ()
        if found and "in_proj" in released:
            return released, tuple(name.replace("q_proj", p) for p in ("q_proj", "k_proj", "v_proj"))
        if found:
            return released, (name,)
    raise AssertionError(f"{name} has no counterpart in the released layout of {method}")


def _patterns(method: str) -> Iterator[tuple[str, str]]:
    yield r"embeddings\.class_embedding", "class_embedding"
    yield r"embeddings\.patch_embedding\.weight", "conv1.weight"
    yield r"embeddings\.position_embedding\.weight", "positional_embedding"
    yield r"embeddings\.temporal\.temporal_embedding\.[^.]+", "temporal_embedding"
    yield r"pre_layrnorm\.(\w+)", r"ln_pre.\1"
    yield r"post_layernorm\.(\w+)", r"ln_post.\1"
    block, released = r"encoder\.layers\.(\d+)\.", r"transformer.resblocks.\1."
    yield block + r"layer_norm([12])\.(\w+)", released + r"ln_\2.\3"
    yield block + r"self_attn\.q_proj\.(\w+)", released + r"attn.in_proj_\2"
    yield block + r"self_attn\.[kv]_proj\.(\w+)", "skip"
    yield block + r"self_attn\.out_proj\.(\w+)", released + r"attn.out_proj.\2"
    yield block + r"mlp\.fc1\.(\w+)", released + r"mlp.c_fc.\2"
    yield block + r"mlp\.fc2\.(\w+)", released + r"mlp.c_proj.\2"
    for theirs, site in SITE_NAMES[method].items():
        adapter = block + rf"sites\.{site}\.[^.]+\.{method}\."
        yield adapter + r"down\.(\w+)", released + rf"{theirs}.D_fc1.\2"
        yield adapter + r"up\.(\w+)", released + rf"{theirs}.D_fc2.\2"


def _tensors(path_or_state_dict) -> dict[str, torch.Tensor]:
    state = path_or_state_dict
    if not isinstance(state, dict):
        state = torch.load(state, map_location="cpu", weights_only=True)
    state = state.get("state_dict", state)
    return {re.sub(r"^(module\.|backbone\.)+", "", key): value for key, value in state.items()}


def _model_config(state: dict[str, torch.Tensor], num_heads: int | None, tuner_config) -> I2VConfig:
    width, channels, patch_size, _ = state["conv1.weight"].shape
    grid = round((state["positional_embedding"].shape[0] - 1) ** 0.5)
    layers = 1 + max(int(m[1]) for key in state if (m := re.match(r"transformer\.resblocks\.(\d+)\.", key)))
    image_config = CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=state["transformer.resblocks.0.mlp.c_fc.weight"].shape[0],
        num_hidden_layers=layers,
        num_attention_heads=num_heads or width // 64,
        num_channels=channels,
        patch_size=patch_size,
        image_size=grid * patch_size,
        hidden_act="quick_gelu",
    )
    num_labels = state["cls_head.fc_cls.weight"].shape[0]
    return I2VConfig(image_config=image_config, num_frames=tuner_config.num_frames, num_labels=num_labels)


def _tuner_config(method: str, state: dict[str, torch.Tensor], options: dict) -> ZeroI2VConfig:
    options = {"num_frames": state["temporal_embedding"].shape[1], **options}
    block = "transformer.resblocks.0."
    present = [theirs for theirs in SITE_NAMES[method] if f"{block}{theirs}.D_fc1.weight" in state]
    if present:
        bottleneck, width = state[f"{block}{present[0]}.D_fc1.weight"].shape
        options = {"adapter_ratio": bottleneck / width, **options}
    return ZeroI2VConfig(adapter_sites=[SITE_NAMES[method][theirs] for theirs in present], **options)
