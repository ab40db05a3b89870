"""The methods, one file each."""

from .aim import AIMConfig
from .inti import InTIConfig
from .linear_adapter import LinearAdapterConfig
from .m_adapter import MAdapterConfig
from .st_adapter import STAdapterConfig
from .stdha import STDHAConfig
from .zeroi2v import ZeroI2VConfig

OWN = (ZeroI2VConfig, STDHAConfig, LinearAdapterConfig, STAdapterConfig, AIMConfig, InTIConfig, MAdapterConfig)
