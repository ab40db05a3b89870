"""The methods, one file each."""

from .aim import AIMConfig
from .attentive_probe import AttentiveProbeConfig
from .frame2freq import Frame2FreqConfig
from .inti import InTIConfig
from .linear_adapter import LinearAdapterConfig
from .m_adapter import MAdapterConfig
from .st_adapter import STAdapterConfig
from .stdha import STDHAConfig
from .step import STEPConfig
from .zeroi2v import ZeroI2VConfig

OWN = (
    ZeroI2VConfig,
    STDHAConfig,
    LinearAdapterConfig,
    STAdapterConfig,
    AIMConfig,
    InTIConfig,
    MAdapterConfig,
    AttentiveProbeConfig,
    STEPConfig,
    Frame2FreqConfig,
)
