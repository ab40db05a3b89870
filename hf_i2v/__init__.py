"""hf_i2v: any Hugging Face image transformer becomes a video model. Importing it registers everything with peft and
transformers."""

from . import moved  # noqa: F401
from .auto import AutoPeftModelForVideoClassification
from .backbones import UnsupportedBackboneError
from .composition import ComposedConfig
from .config import I2VTunerConfig
from .convert import load_released_checkpoint, to_released_state_dict
from .methods import (
    METHODS,
    AIMConfig,
    InTIConfig,
    LinearAdapterConfig,
    MAdapterConfig,
    STAdapterConfig,
    STDHAConfig,
    ZeroI2VConfig,
)
from .modeling_i2v import I2VConfig, I2VForVideoClassification, I2VModel
from .registration import register_auto_classes, register_method, register_pipeline
from .tuner import I2VTuner
from .version import __version__

for _config in (*METHODS.values(), ComposedConfig):
    register_method(_config, I2VTuner)
register_auto_classes(I2VConfig, I2VModel, I2VForVideoClassification)
register_pipeline()

__all__ = [
    "METHODS",
    "AIMConfig",
    "AutoPeftModelForVideoClassification",
    "ComposedConfig",
    "I2VConfig",
    "I2VForVideoClassification",
    "I2VModel",
    "I2VTuner",
    "I2VTunerConfig",
    "InTIConfig",
    "LinearAdapterConfig",
    "MAdapterConfig",
    "STAdapterConfig",
    "STDHAConfig",
    "UnsupportedBackboneError",
    "ZeroI2VConfig",
    "__version__",
    "load_released_checkpoint",
    "to_released_state_dict",
]
