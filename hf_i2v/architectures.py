"""The configuration of a video model from an image model's name alone; those of the image models that the published
runs start from are known without the Hub."""

import os
from dataclasses import asdict
from typing import Any

from transformers import AutoConfig, CLIPVisionConfig, ViTConfig

from .configuration_i2v import I2VConfig, hub_name
from .data.transforms import usual_preprocessing
from .image_checkpoint import preprocessing_of

_BASE = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
_LARGE = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}

KNOWN = {
    "openai/clip-vit-base-patch16": (CLIPVisionConfig, {**_BASE, "patch_size": 16, "image_size": 224}),
    "openai/clip-vit-base-patch32": (CLIPVisionConfig, {**_BASE, "patch_size": 32, "image_size": 224}),
    "openai/clip-vit-large-patch14": (CLIPVisionConfig, {**_LARGE, "patch_size": 14, "image_size": 224}),
    "google/vit-base-patch16-224-in21k": (ViTConfig, {**_BASE, "patch_size": 16, "image_size": 224}),
}


def video_config(model_name_or_path: str | os.PathLike, **options: Any) -> I2VConfig:
    """The configuration of a video model made from an image model, or of a finished video model, without weights.

    Args:
        options: of `I2VConfig`: `num_frames`, `num_labels`, …

    Raises:
        OSError: no such model here or on the Hub.
    """
    name = str(model_name_or_path)
    if name in KNOWN:
        config_class, values = KNOWN[name]
        image_config = config_class(**values)
        preprocessing = asdict(usual_preprocessing(image_config))
    else:
        config = AutoConfig.from_pretrained(name)
        if isinstance(config, I2VConfig):
            return I2VConfig.from_pretrained(name, **options)
        image_config = getattr(config, "vision_config", config)
        preprocessing = preprocessing_of(name)
    return I2VConfig(image_config=image_config, base_model=hub_name(name), preprocessing=preprocessing, **options)
