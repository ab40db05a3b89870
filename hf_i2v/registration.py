"""Registers tuner types with peft, and models and pipeline with transformers."""

from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils import register_peft_method
from transformers import AutoConfig, AutoModel, AutoModelForVideoClassification
from transformers.models.auto.video_processing_auto import AutoVideoProcessor
from transformers.pipelines import PIPELINE_REGISTRY

from .methods.config import METHODS, I2VTunerConfig
from .peft_type import register_peft_type
from .tuner import I2VTuner


def register_method(config_class: type[I2VTunerConfig]) -> type[I2VTunerConfig]:
    """Register a method: a bare decorator on its configuration dataclass. A second call changes nothing.

    Args:
        config_class: a subclass of `I2VTunerConfig` with `method_name`, `title` and `paper`.

    ```python
    @hf_i2v.register_method
    @dataclass
    class TokenShiftConfig(hf_i2v.I2VTunerConfig):
        method_name, title, paper = "token_shift", "Token shift", "arXiv 2108.02432"

        def site_modules(self, backbone, layer):
            return {"attention_in": TokenShift()}
    ```

    From then on it works with `get_peft_model`, `+`, saving and loading, `--tuner token_shift`, costs and cards. A
    process that loads such an adapter imports the file first. A finished model is saved together with the file.

    Raises:
        TypeError: not a configuration class of hf_i2v.
        ValueError: `method_name`, `title` or `paper` is missing, or another method has the name.
    """
    if not (isinstance(config_class, type) and issubclass(config_class, I2VTunerConfig)):
        raise TypeError(f"register_method takes a subclass of hf_i2v.I2VTunerConfig, not {config_class!r}.")
    missing = [name for name in ("method_name", "title", "paper") if not getattr(config_class, name, None)]
    if missing:
        raise ValueError(f"{config_class.__name__} has no {', '.join(missing)}. Set them as class attributes.")
    name = config_class.method_name
    if name != name.lower() or not name.isidentifier():
        raise ValueError(f"method_name {name!r} of {config_class.__name__} must be an identifier in lower case.")
    register_with_peft(config_class)
    METHODS[name] = config_class
    return config_class


def register_with_peft(config_class: type[I2VTunerConfig]) -> None:
    """Register the configuration class with peft under its `method_name`.

    Raises:
        ValueError: another configuration class has the name.
    """
    peft_type = register_peft_type(config_class.method_name)
    known = PEFT_TYPE_TO_CONFIG_MAPPING.get(peft_type)
    if known is None:
        register_peft_method(
            name=config_class.method_name, config_cls=config_class, model_cls=I2VTuner, prefix=I2VTuner.prefix
        )
    elif (known.__module__, known.__qualname__) == (config_class.__module__, config_class.__qualname__):
        PEFT_TYPE_TO_CONFIG_MAPPING[peft_type] = config_class  # its file was run again
    else:
        raise ValueError(
            f"The method_name {config_class.method_name!r} of {config_class.__name__} is taken by {known.__name__} of "
            f"{known.__module__}. Choose another."
        )


def register_auto_classes(config_cls: type, model_cls: type, classifier_cls: type, processor_cls: type) -> None:
    """Register the video models and their processor with transformers' auto classes."""
    AutoConfig.register(config_cls.model_type, config_cls, exist_ok=True)
    AutoModel.register(config_cls, model_cls, exist_ok=True)
    AutoModelForVideoClassification.register(config_cls, classifier_cls, exist_ok=True)
    AutoVideoProcessor.register(config_cls, processor_cls, exist_ok=True)


def register_pipeline() -> None:
    """Make `pipeline("video-classification")` sample the frames of I2V models over the whole video."""
    task = PIPELINE_REGISTRY.supported_tasks["video-classification"]
    task["impl"] = "hf_i2v.pipeline.I2VVideoClassificationPipeline"  # transformers imports it on use
