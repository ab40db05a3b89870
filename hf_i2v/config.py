"""The configuration that all methods share."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

from peft import PeftConfig
from torch import nn

from .adapter_card import open_card_with_loading
from .backbones import Backbone
from .registration import register_peft_type
from .trained_on import shape_of, weights_sample

SITES = ("before", "attention_in", "attention_out", "between", "mlp_in", "mlp_out", "parallel", "after")
POOLINGS = ("after_norm", "before_norm")


@dataclass
class I2VTunerConfig(PeftConfig):
    """What every method's configuration has. A method subclasses it and fills some sites of a block.

    Args:
        num_frames: frames per clip T; on a model that has its own (`I2VForVideoClassification`) it may stay None.
        layers_to_transform: indices of the blocks to adapt; None adapts all.
        pooling: "after_norm" (final norm of each frame, then the mean over the frames) or "before_norm" (the other
            way round). None: the method's own, or the model's where the method has none.
        modules_to_save: further modules to train and save; the method's own choice (final norm, classifier) is
            added when the adapter is attached.
        trained_on: shape, a sample of the weights and, where it has a classifier, labels of the model that the adapter
            is for; filled in when it is attached.
    """

    method_name: ClassVar[str]
    target_modules: ClassVar[None] = None  # the blocks are found by structure; peft asks for the attribute
    uses_temporal_embedding: ClassVar[bool] = False
    trains_final_norm: ClassVar[bool] = False
    default_pooling: ClassVar[str | None] = None
    reuses_attention: ClassVar[bool] = False  # so what is merged into the attention would act twice
    _video_config: ClassVar = None  # the live configuration of the model it is attached to

    num_frames: int | None = field(default=None, metadata={"help": "Number of frames per clip."})
    layers_to_transform: list[int] | int | None = field(
        default=None, metadata={"help": "Indices of the blocks to adapt. All if None."}
    )
    pooling: str | None = field(default=None, metadata={"help": "after_norm or before_norm; None: the method's own."})
    modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "Modules apart from the adapter to be trained and saved with it."}
    )
    trained_on: dict | None = field(
        default=None, metadata={"help": "Shape and labels of the model that the adapter is for; filled in."}
    )

    def __post_init__(self):
        super().__post_init__()
        self.peft_type = register_peft_type(self.method_name)
        if self.num_frames is not None and self.num_frames < 1:
            raise ValueError(f"num_frames ({self.num_frames}) must be >= 1")
        if self.pooling not in (None, *POOLINGS):
            raise ValueError(f"pooling {self.pooling!r} must be one of {list(POOLINGS)}")
        if isinstance(self.layers_to_transform, int):
            self.layers_to_transform = [self.layers_to_transform]

    def resolve(self, backbone: Backbone) -> None:
        """Replace every default that depends on the model by its value, and check the values against the model.

        Called before anything is changed; `num_frames` is known by then.
        """
        self.pooling = self.pooling or self.default_pooling
        num_blocks = len(backbone.blocks)
        for layer in self.layers_to_transform or []:
            if not 0 <= layer < num_blocks:
                raise ValueError(f"layers_to_transform has {layer}, but the model has blocks 0 to {num_blocks - 1}.")

    def describe_model(self, model: nn.Module, backbone: Backbone) -> None:
        """Note what the adapter is attached to. Its labels may still change: they are read when it is saved."""
        self.trained_on = shape_of(backbone) | {"weights": weights_sample(backbone.model)}
        if hasattr(model, "i2v"):
            self._video_config = model.config

    def to_dict(self) -> dict:
        if self._video_config is not None:
            self.trained_on["video_model"] = self._video_config.around_the_image_model()
        return super().to_dict()

    def save_pretrained(self, save_directory: str, **kwargs) -> None:
        """Also lets the folder's README.md open with how to load the adapter."""
        super().save_pretrained(save_directory, **kwargs)
        open_card_with_loading(save_directory, self)

    def parts(self) -> list["I2VTunerConfig"]:
        """The methods that this configuration is made of, in the order in which they act."""
        return [self]

    def __add__(self, other: "I2VTunerConfig") -> "I2VTunerConfig":
        """Both methods as one adapter; `self` acts first where they meet at a site."""
        from .composition import compose

        return compose(self, other)

    def adapts(self, layer: int) -> bool:
        """Whether block number `layer` is adapted."""
        return self.layers_to_transform is None or layer in self.layers_to_transform

    def site_modules(self, backbone: Backbone, layer: int) -> dict[str, nn.Module]:
        """New modules for the sites of block number `layer`, by site name."""
        return {}

    def block_modules(self, backbone: Backbone, layer: int) -> Iterator[tuple[str, str, nn.Module]]:
        """Site, method name and a new module, for all that the parts place in block number `layer`."""
        for part in self.parts():
            if part.adapts(layer):
                for site, module in part.site_modules(backbone, layer).items():
                    yield site, part.method_name, module

    def branch_module(self, backbone: Backbone) -> nn.Module | None:
        """A new side branch over the whole backbone, for a method that has one."""
        return None

    def head_time_offsets(self, layer: int) -> tuple[int, ...]:
        """Frame offsets of the first heads of block number `layer`; () if none is shifted."""
        return ()
