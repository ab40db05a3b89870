"""Makes us known: tuner types to peft (the only place that touches its enum), models and pipeline to transformers."""

from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.utils import PeftType, register_peft_method
from transformers import AutoConfig, AutoModel, AutoModelForVideoClassification
from transformers.pipelines import PIPELINE_REGISTRY


def register_peft_type(name: str) -> PeftType:
    """Add `name` to peft's `PeftType`, as if it had been written there; a second call changes nothing.

    peft insists that a method's name is a member of this enum (`register_peft_method`) and looks the string of a
    saved `adapter_config.json` up in mappings keyed by its members, and enums cannot be subclassed.
    """
    key = name.upper()
    if key in PeftType.__members__:
        return PeftType[key]
    member = str.__new__(PeftType, key)
    member._name_ = key
    member._value_ = key
    PeftType._member_names_.append(key)
    PeftType._member_map_[key] = member
    PeftType._value2member_map_[key] = member
    type.__setattr__(PeftType, key, member)
    if PeftType(key) is not member or PeftType[key] is not member or key not in list(PeftType):
        raise ImportError(
            f"hf_i2v could not add {key!r} to peft's PeftType enum; this version of Python or peft builds enums "
            "differently. Please report it with both versions."
        )
    return member


def register_method(config_cls: type, model_cls: type) -> None:
    """Register a method under its config's `method_name`; a second call changes nothing."""
    peft_type = register_peft_type(config_cls.method_name)
    if PEFT_TYPE_TO_CONFIG_MAPPING.get(peft_type) is None:
        register_peft_method(
            name=config_cls.method_name, config_cls=config_cls, model_cls=model_cls, prefix=model_cls.prefix
        )
    assert PEFT_TYPE_TO_TUNER_MAPPING[peft_type] is model_cls


def register_auto_classes(config_cls: type, model_cls: type, classifier_cls: type) -> None:
    """`AutoConfig`, `AutoModel` and `AutoModelForVideoClassification` know the video models."""
    AutoConfig.register(config_cls.model_type, config_cls, exist_ok=True)
    AutoModel.register(config_cls, model_cls, exist_ok=True)
    AutoModelForVideoClassification.register(config_cls, classifier_cls, exist_ok=True)


def register_pipeline() -> None:
    """`pipeline("video-classification")` samples I2V models' frames over the whole video."""
    task = PIPELINE_REGISTRY.supported_tasks["video-classification"]
    task["impl"] = "hf_i2v.pipeline.I2VVideoClassificationPipeline"  # imported when it is used
