"""Reads the image model that a video model is made from: a checkpoint, or a model in memory."""

import copy
import os
from dataclasses import asdict
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import MODEL_MAPPING, AutoConfig, AutoModel, BaseImageProcessor
from transformers.utils import logging

from .backbones import find_backbone
from .configuration_i2v import I2VConfig, hub_arguments
from .data.transforms import preprocessing_from_pretrained, preprocessing_of_processor
from .untrusted import check_finite
from .video import VideoBackbone

logger = logging.get_logger(__name__)


def pretrained_image_model(
    name: str | os.PathLike, allow_random_base: bool, ignore_mismatched_sizes: bool, kwargs: dict
) -> tuple[nn.Module, dict]:
    """The image model of a checkpoint, and what transformers tells of its loading. Arguments and errors as in
    `I2VForVideoClassification.from_image_model`."""
    config = AutoConfig.from_pretrained(name, **hub_arguments(kwargs))
    config_class = type(getattr(config, "vision_config", config))
    if config_class is I2VConfig:
        raise ValueError(
            f"{name} is a finished video model, not an image model. Load it with "
            "hf_i2v.I2VForVideoClassification.from_pretrained(...)."
        )
    if config_class not in MODEL_MAPPING:
        raise ValueError(f"{name} holds a {config.model_type!r} model, which transformers has no image model for.")
    model_class = MODEL_MAPPING[config_class]
    kwargs |= pooler_argument(config_class, False)  # the published heads do not use it, and many checkpoints lack it
    image_model, info = model_class.from_pretrained(
        name, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs
    )
    check_finite(dict(image_model.named_parameters()), name)
    problems = [f"missing: {key}" for key in sorted(info["missing_keys"])]
    if not ignore_mismatched_sizes:
        problems += [f"mismatched: {key}" for key in sorted(map(str, info["mismatched_keys"]))]
    if problems and not allow_random_base:
        shown = "\n  ".join(problems[:20] + (["…"] if len(problems) > 20 else []))
        raise ValueError(
            f"{name} leaves {len(problems)} weights of its {model_class.__name__} uninitialised:\n  {shown}\n"
            "An adapter on random frozen weights is worthless. Use a complete checkpoint, or pass "
            "allow_random_base=True to go on all the same."
        )
    return image_model, info


def image_model_in_memory(model: nn.Module, kwargs: dict) -> nn.Module:
    """A vision model with the weights of `model`, or of the vision model inside it, which itself stays as it is.

    The weights are shared, unless `kwargs` have another `dtype` for them. Errors as in
    `I2VForVideoClassification.from_image_model`.
    """
    dtype, attention = kwargs.pop("dtype", None), kwargs.pop("attn_implementation", None)
    if isinstance(dtype, str):
        dtype = None if dtype == "auto" else getattr(torch, dtype)
    name = type(model).__name__
    if kwargs:
        raise ValueError(
            f"{sorted(kwargs)} are for loading a checkpoint, but the image model, a {name}, is in memory already. "
            "With it go dtype, attn_implementation and arguments of I2VConfig."
        )
    if any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        raise ValueError(f"This {name} holds an adapter of peft. Call its merge_and_unload() or unload() first.")
    vision = find_backbone(model).model
    if isinstance(vision, VideoBackbone):
        raise ValueError(f"This {name} is a video model already. Give from_image_model an image model.")
    if type(getattr(vision, "config", None)) not in MODEL_MAPPING:
        raise ValueError(f"This {name} holds a {type(vision).__name__}, which transformers has no image model for.")
    shared = {} if dtype not in (None, vision.dtype) else {id(t): t for t in (*vision.parameters(), *vision.buffers())}
    vision = copy.deepcopy(vision, shared)  # with its configuration
    if pooler_argument(type(vision.config), False):
        vision.pooler = None  # as in `pretrained_image_model`
    if dtype is not None:
        vision.to(dtype)
    if attention is not None:
        vision.set_attn_implementation(attention)
    return vision


def image_model_from_config(config: I2VConfig) -> nn.Module:
    """The image model that a video model's configuration describes, with random weights."""
    pooler = pooler_argument(type(config.image_config), config.add_pooling_layer)
    return AutoModel.from_config(config.image_config, **pooler)


def pooler_argument(config_class: type, add_pooling_layer: bool) -> dict:
    """The argument that gives ViT its pooler or leaves it out; {} for models without that choice."""
    takes_it = "add_pooling_layer" in MODEL_MAPPING[config_class].__init__.__code__.co_varnames
    return {"add_pooling_layer": add_pooling_layer} if takes_it else {}


def preprocessing_of(source: str | os.PathLike | BaseImageProcessor, **hub: Any) -> dict | None:
    """The preprocessing of an image model, from its name or its processor; None, with a warning, if hf_i2v has no
    processor for it (not a square)."""
    is_processor = isinstance(source, BaseImageProcessor)
    read = preprocessing_of_processor if is_processor else preprocessing_from_pretrained
    try:
        return asdict(read(source, **hub))
    except ValueError as error:
        logger.warning("%s: no processors will be saved with the video model.", error)
        return None


def known_preprocessing(name: str | None, **hub: Any) -> dict | None:
    """The same of the checkpoint that a model was loaded from; None if it was made in code."""
    try:
        return preprocessing_of(name, **hub) if name else None
    except OSError:  # its folder is gone
        return None


def keep_from_initialisation(module: nn.Module) -> None:
    """Mark weights as loaded, so that a new model around them does not initialise them again."""
    for child in module.modules():
        child._is_hf_initialized = True
    for parameter in module.parameters():
        parameter._is_hf_initialized = True
