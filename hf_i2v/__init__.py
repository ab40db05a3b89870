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
    AttentiveProbeConfig,
    Frame2FreqConfig,
    InTIConfig,
    LinearAdapterConfig,
    MAdapterConfig,
    STAdapterConfig,
    STDHAConfig,
    STEPConfig,
    ZeroI2VConfig,
)
from .methods.branch import Branch
from .methods.config import METHODS, ComposedConfig, I2VTunerConfig
from .methods.site import AffineMap, SiteModule
from .modeling_i2v import I2VForVideoClassification, I2VModel
from .registration import register_auto_classes, register_method, register_pipeline, register_with_peft
from .tuner import I2VTuner
from .version import __version__
from .video_processor import I2VVideoProcessor

for _config in OWN:
    register_method(_config)
register_with_peft(ComposedConfig)
register_auto_classes(I2VConfig, I2VModel, I2VForVideoClassification, I2VVideoProcessor)
register_pipeline()

__all__ = [
    "METHODS",
    "AIMConfig",
    "AffineMap",
    "AttentiveProbeConfig",
    "AutoPeftModelForVideoClassification",
    "Backbone",
    "Branch",
    "ComposedConfig",
    "Frame2FreqConfig",
    "I2VConfig",
    "I2VForVideoClassification",
    "I2VModel",
    "I2VTuner",
    "I2VTunerConfig",
    "I2VVideoProcessor",
    "InTIConfig",
    "LinearAdapterConfig",
    "MAdapterConfig",
    "STAdapterConfig",
    "STDHAConfig",
    "STEPConfig",
    "SiteModule",
    "UnsupportedBackboneError",
    "ZeroI2VConfig",
    "__version__",
    "load_released_checkpoint",
    "register_method",
    "to_released_state_dict",
]
