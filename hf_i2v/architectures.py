"""Configurations of the image models that the published runs start from, for use without the Hub."""

import os

from transformers import AutoConfig, CLIPVisionConfig, PreTrainedConfig, ViTConfig

_BASE = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
_LARGE = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}

KNOWN = {
    "openai/clip-vit-base-patch16": (CLIPVisionConfig, {**_BASE, "patch_size": 16, "image_size": 224}),
    "openai/clip-vit-base-patch32": (CLIPVisionConfig, {**_BASE, "patch_size": 32, "image_size": 224}),
    "openai/clip-vit-large-patch14": (CLIPVisionConfig, {**_LARGE, "patch_size": 14, "image_size": 224}),
    "google/vit-base-patch16-224-in21k": (ViTConfig, {**_BASE, "patch_size": 16, "image_size": 224}),
}


def image_config(model_name_or_path: str | os.PathLike) -> PreTrainedConfig:
    """The configuration of an image model: from the table above, else as transformers finds it.

    Raises:
        OSError: no such model here or on the Hub.
    """
    if str(model_name_or_path) in KNOWN:
        config_class, values = KNOWN[str(model_name_or_path)]
        return config_class(**values)
    config = AutoConfig.from_pretrained(model_name_or_path)
    return getattr(config, "vision_config", config)
