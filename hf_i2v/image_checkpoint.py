"""Reads the image checkpoint that a video model is made from."""

from dataclasses import asdict

from torch import nn
from transformers import MODEL_MAPPING, AutoConfig, AutoModel
from transformers.utils import logging

from .configuration_i2v import I2VConfig, hub_arguments
from .data.transforms import preprocessing_from_pretrained
from .untrusted import check_finite

logger = logging.get_logger(__name__)


def pretrained_image_model(name: str, allow_random_base: bool, kwargs: dict) -> nn.Module:
    """The image model of a checkpoint. Arguments and errors as in `I2VForVideoClassification.from_image_model`."""
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
    problems += [f"mismatched: {key}" for key in sorted(map(str, info["mismatched_keys"]))]
    if problems and not allow_random_base:
        shown = "\n  ".join(problems[:20] + (["…"] if len(problems) > 20 else []))
        raise ValueError(
            f"{name} leaves {len(problems)} weights of its {model_class.__name__} uninitialised:\n  {shown}\n"
            "An adapter on random frozen weights is worthless. Use a complete checkpoint, or pass "
            "allow_random_base=True to go on all the same."
        )
    return image_model


def image_model_from_config(config: I2VConfig) -> nn.Module:
    """The image model that a video model's configuration describes, with random weights."""
    pooler = pooler_argument(type(config.image_config), config.add_pooling_layer)
    return AutoModel.from_config(config.image_config, **pooler)


def pooler_argument(config_class: type, add_pooling_layer: bool) -> dict:
    """The argument that gives ViT its pooler or leaves it out; {} for models without that choice."""
    takes_it = "add_pooling_layer" in MODEL_MAPPING[config_class].__init__.__code__.co_varnames
    return {"add_pooling_layer": add_pooling_layer} if takes_it else {}


def preprocessing_of(name: str, **hub) -> dict | None:
    """The image model's preprocessing; None, with a warning, if hf_i2v has no processor for it (not a square)."""
    try:
        return asdict(preprocessing_from_pretrained(name, **hub))
    except ValueError as error:
        logger.warning("%s: no processors will be saved with the video model.", error)
        return None


def keep_from_initialisation(module: nn.Module) -> None:
    """Mark weights as loaded, so that a new model around them does not initialise them again."""
    for child in module.modules():
        child._is_hf_initialized = True
    for parameter in module.parameters():
        parameter._is_hf_initialized = True
