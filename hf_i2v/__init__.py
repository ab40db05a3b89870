"""hf_i2v: video recognition with any Hugging Face image transformer. Importing it registers everything with peft and
transformers."""

from . import moved  # noqa: F401
from .auto import AutoPeftModelForVideoClassification
from .backbones import Backbone, UnsupportedBackboneError
from .configuration_i2v import I2VConfig
from .convert import load_released_checkpoint, to_released_state_dict
from .methods import (
    OWN,
    AIMConfig,
    InTIConfig,
    LinearAdapterConfig,
    MAdapterConfig,
    STAdapterConfig,
    STDHAConfig,
    ZeroI2VConfig,
)
from .methods.config import METHODS, ComposedConfig, I2VTunerConfig
from .methods.site import AffineMap, SiteModule
from .modeling_i2v import I2VForVideoClassification, I2VModel
from .registration import register_auto_classes, register_method, register_pipeline, register_with_peft
from .tuner import I2VTuner
from .version import __version__

for _config in OWN:
    register_method(_config)
register_with_peft(ComposedConfig)
register_auto_classes(I2VConfig, I2VModel, I2VForVideoClassification)
register_pipeline()

__all__ = [
    "METHODS",
    "AIMConfig",
    "AffineMap",
    "AutoPeftModelForVideoClassification",
    "Backbone",
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
    "SiteModule",
    "UnsupportedBackboneError",
    "ZeroI2VConfig",
    "__version__",
    "load_released_checkpoint",
    "register_method",
    "to_released_state_dict",
]
