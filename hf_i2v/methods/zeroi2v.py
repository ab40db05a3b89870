"""ZeroI2V (arXiv 2310.01324): STDHA + linear adapters + a temporal embedding. Merged, it costs nothing extra."""

from dataclasses import dataclass

from .linear_adapter import LinearAdapterConfig
from .stdha import STDHAConfig


@dataclass
class ZeroI2VConfig(LinearAdapterConfig, STDHAConfig):
    """Configuration of ZeroI2V: the options of `STDHAConfig` and of `LinearAdapterConfig`.

    Trained are the linear adapters, the temporal embedding (T, D) and the final norm; and the classifier of a model
    that has one. Its head takes the final norm of each frame, then the mean over the frames.
    """

    method_name = "zeroi2v"
    title = "ZeroI2V"
    learning_rate = 3e-4
    includes = ("stdha", "linear_adapter")
    uses_temporal_embedding = True
    trains_final_norm = True
    default_pooling = "after_norm"
    frame_wise = False
