"""The model that an adapter was trained on: its shape, a sample of its frozen weights, and its labels."""

import hashlib
import warnings

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from .backbones import Backbone
from .quantized import is_quantized

SAMPLED = 64  # elements of each weight


def shape_of(backbone: Backbone) -> dict[str, int | str]:
    """The sizes that an adapter's weights depend on, by transformers' names."""
    return {
        "model_type": backbone.model.config.model_type,
        "hidden_size": backbone.hidden_size,
        "num_hidden_layers": len(backbone.blocks),
        "num_attention_heads": backbone.num_heads,
    }


@torch.no_grad()
def weights_sample(model: nn.Module) -> dict[str, str] | None:
    """The dtype of a backbone without its adapters, and a hash of elements spread over each of its weights. Merging or
    further training changes the hash. None for weights that are quantised or on the meta device."""
    tuned = tuple(f"{path}." for path, module in model.named_modules() if isinstance(module, BaseTunerLayer))
    weights = {
        name.replace("original_module.", ""): parameter
        for name, parameter in model.named_parameters()
        if not name.startswith(tuned) and ".modules_to_save." not in f".{name}"
    }
    if any(map(is_quantized, model.modules())) or any(weight.is_meta for weight in weights.values()):
        return None
    digest = hashlib.sha256()
    for name, weight in sorted(weights.items()):
        spread = weight.detach().flatten()[:: max(1, weight.numel() // SAMPLED)]
        digest.update(f"{name} {tuple(weight.shape)}".encode())
        digest.update(spread.cpu().contiguous().view(torch.uint8).numpy())
    return {"dtype": str(next(iter(weights.values())).dtype), "sha256": digest.hexdigest()}


def has_other_weights(trained_on: dict, model: nn.Module) -> bool:
    """Whether the backbone's weights are known to differ from those that the adapter was trained on.

    False also where they cannot be compared: in another dtype, quantised, or not recorded by the adapter.
    """
    before, now = trained_on.get("weights"), weights_sample(model)
    return bool(before and now and before["dtype"] == now["dtype"] and before["sha256"] != now["sha256"])


def check_trained_on(config: PeftConfig, model: nn.Module, backbone: Backbone) -> None:
    """Check that an adapter from disk fits the model. Other weights or label names give a warning.

    Raises:
        ValueError: another kind, shape or number of labels.
    """
    trained_on = config.trained_on or {}
    found = shape_of(backbone)
    wrong = [
        f"{key} {trained_on[key]} (here {found[key]})"
        for key in found
        if trained_on.get(key, found[key]) != found[key]
    ]
    if wrong:
        raise ValueError(
            f"This {type(config).__name__} belongs to a model with {', '.join(wrong)}. Load the adapter on the model "
            "it was trained on; for another model make a new configuration."
        )
    if has_other_weights(trained_on, backbone.model):
        warnings.warn(
            f"This {type(config).__name__} was trained on a {found['model_type']} with other weights than this one's. "
            "Load it on the checkpoint that it was trained on, unless you mean to move it to other weights.",
            stacklevel=2,
        )
    names = (trained_on.get("video_model") or {}).get("id2label")
    own = getattr(getattr(model, "config", None), "id2label", None)
    if names is None or own is None or not hasattr(model, "i2v"):
        return
    names = {int(key): name for key, name in names.items()}
    if len(names) != len(own):
        raise ValueError(
            f"This adapter has a classifier of {len(names)} labels, but the model has {len(own)}. Make the model with "
            f"num_labels={len(names)}, or load both with hf_i2v.AutoPeftModelForVideoClassification."
        )
    generic = {i: f"LABEL_{i}" for i in own}
    if names != own and generic not in (names, own):
        differing = [f"{i}: {names.get(i)!r} / {own[i]!r}" for i in own if names.get(i) != own[i]]
        warnings.warn(
            f"The adapter and the model name {len(differing)} classes differently (adapter / model): "
            f"{', '.join(differing[:5])}. The adapter's classifier gives the adapter's classes.",
            stacklevel=2,
        )
