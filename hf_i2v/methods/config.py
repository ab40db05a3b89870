"""The configuration that all methods share, several of them as one (`STAdapterConfig() + InTIConfig()`), and the
table of all methods."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, fields
from typing import ClassVar, get_type_hints

from peft import PeftConfig
from peft.utils.constants import DUMMY_TARGET_MODULES
from torch import nn

from ..adapter_card import open_card_with_loading
from ..backbones import Backbone
from ..peft_type import register_peft_type
from ..trained_on import shape_of, weights_sample
from ..untrusted import SIZE_LIMITS, check_types, check_values
from .branch import Branch
from .site import SiteModule, check_site

POOLINGS = ("after_norm", "before_norm")
_OF_PEFT = {field.name for field in fields(PeftConfig)}
METHODS: dict[str, type["I2VTunerConfig"]] = {}  # every registered configuration class by its `method_name`


@dataclass
class I2VTunerConfig(PeftConfig):
    """The configuration of a method. A subclass fills some sites of a block, describes the method in the class
    attributes below, and is registered with `hf_i2v.register_method`.

    Class attributes, read by cards, composition, script and tests:
        method_name: its name in command lines and files, in lower case.
        title, paper: its name in the literature, and its paper ("arXiv 2310.01324").
        learning_rate: of AdamW, where the training script is given none; from its paper or its released recipes.
        temporal_embedding_learning_rate: then, of the temporal embedding; None: the same.
        includes: names of methods that are a part of it. It does not compose with them.
        why_alone: the reason why it composes with no other method; None: it composes.
        why_not_causal: the reason why it has no causal form; None: it has one.
        frame_wise: whether it works on each frame by itself, and so is causal as it is.
        merges: whether all of it folds into weights, time offsets and temporal embedding (`merge_and_unload`).
        merges_frames: whether later blocks work on fewer frames. Such methods act first in a composition.
        reuses_attention: whether it runs the frozen attention a second time. Merged weights would then act twice.
        has_branch: whether it is a side branch over the frozen model (`branch_module`), which runs without a graph.
        unused_parameters: whether trained parameters may get no gradient ("unused" in DDP).
        uses_temporal_embedding, trains_final_norm, default_pooling: what it has besides its modules.

    Args:
        num_frames: frames per clip T; on a model that has its own (`I2VForVideoClassification`) it may stay None.
        layers_to_transform: indices of the blocks to adapt; None adapts all.
        pooling: "after_norm" (final norm of each frame, then the mean over the frames) or "before_norm" (the other
            way round). None: the method's own, or the model's where the method has none.
        modules_to_save: further modules to train and save; the method's own choice (final norm, classifier) is
            added when the adapter is attached.
        trained_on: shape, a sample of the weights and the labels, if any, of the model that the adapter is for; filled
            in when the adapter is attached.
        causal: no frame looks at later ones, there is no temporal embedding, and the clip feature is the mean over the
            last `num_frames` frames of a clip of any length. Such a model runs frame by frame (`new_stream`, `step`).
    """

    method_name: ClassVar[str]
    title: ClassVar[str]
    paper: ClassVar[str]
    learning_rate: ClassVar[float] = 3e-4
    temporal_embedding_learning_rate: ClassVar[float | None] = None
    includes: ClassVar[tuple[str, ...]] = ()
    why_alone: ClassVar[str | None] = None
    why_not_causal: ClassVar[str | None] = "does not say that it has a causal form"
    frame_wise: ClassVar[bool] = False
    merges: ClassVar[bool] = False
    merges_frames: ClassVar[bool] = False
    reuses_attention: ClassVar[bool] = False
    has_branch: ClassVar[bool] = False
    unused_parameters: ClassVar[bool] = False
    uses_temporal_embedding: ClassVar[bool] = False
    trains_final_norm: ClassVar[bool] = False
    default_pooling: ClassVar[str | None] = None
    _video_config: ClassVar = None  # the I2VConfig of the model that it is attached to

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

    causal: bool = field(
        default=False, metadata={"help": "Look at past frames only, so that the model runs frame by frame."}
    )

    def __post_init__(self):
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in _OF_PEFT}
        check_values(values, largest=SIZE_LIMITS["hidden_size"])
        with suppress(NameError):  # hints that only a type checker can read
            check_types(type(self).__name__, values, get_type_hints(type(self)))
        super().__post_init__()
        self.peft_type = register_peft_type(self.method_name)
        if self.num_frames is not None and self.num_frames < 1:
            raise ValueError(f"num_frames ({self.num_frames}) must be >= 1")
        if self.pooling not in (None, *POOLINGS):
            raise ValueError(f"pooling {self.pooling!r} must be one of {list(POOLINGS)}")
        if isinstance(self.layers_to_transform, int):
            self.layers_to_transform = [self.layers_to_transform]
        if self.causal and self.why_not_causal:
            raise ValueError(f"{self.title} cannot be causal: it {self.why_not_causal}.")
        if self.causal:
            self.uses_temporal_embedding = False  # a stream has no numbers for its frames

    @property
    def target_modules(self) -> str | None:
        """A field that peft requires. hf_i2v finds the blocks by structure, and a side branch replaces no module."""
        return DUMMY_TARGET_MODULES if self.has_branch else None

    def resolve(self, backbone: Backbone) -> None:
        """Replace every default that depends on the model by its value, and check the values against the model.

        Called before anything is changed; `num_frames` is known by then.

        Args:
            backbone: the vision transformer that it will be attached to.

        Raises:
            ValueError: a value does not fit the model.
        """
        self.pooling = self.pooling or self.default_pooling
        num_blocks = len(backbone.blocks)
        for layer in self.layers_to_transform or []:
            if not 0 <= layer < num_blocks:
                raise ValueError(f"layers_to_transform has {layer}, but the model has blocks 0 to {num_blocks - 1}.")

    def describe_model(self, model: nn.Module, backbone: Backbone) -> None:
        """Record the model, and its `backbone`, that it is attached to. Labels may change: `to_dict` reads them."""
        self.trained_on = shape_of(backbone) | {"weights": weights_sample(backbone.model)}
        if hasattr(model, "i2v"):
            self._video_config = model.config

    def to_dict(self) -> dict:
        """As in peft, with the facts of the model that the adapter is for."""
        if self._video_config is not None:
            self.trained_on["video_model"] = self._video_config.rebuilding_facts()
        return super().to_dict()

    def save_pretrained(self, save_directory: str, **kwargs: object) -> None:
        """As in peft. The folder's README.md then opens with how to load the adapter."""
        super().save_pretrained(save_directory, **kwargs)
        open_card_with_loading(save_directory, self)

    @property
    def why_not_streaming(self) -> str | None:
        """The reason why a model with it cannot run frame by frame; None: it can."""
        if self.causal or self.frame_wise:
            return None
        return self.why_not_causal or "looks at later frames too, unless it is made with causal=True"

    def parts(self) -> list["I2VTunerConfig"]:
        """The methods that this configuration is made of, in the order in which they act."""
        return [self]

    def __add__(self, other: "I2VTunerConfig") -> "I2VTunerConfig":
        """Both methods as one adapter. At a shared site `self` acts first, unless only `other` merges frames."""
        if not isinstance(other, I2VTunerConfig):
            raise TypeError(
                f"{type(self).__name__} composes with configurations of hf_i2v, not with {type(other).__name__}. "
                "To train another tuner of peft with STDHA, attach it to a video model's with_stdha()."
            )
        return ComposedConfig(methods=[*self.parts(), *other.parts()])

    def adapts(self, layer: int) -> bool:
        """Whether block number `layer` is adapted."""
        return self.layers_to_transform is None or layer in self.layers_to_transform

    def frames_merged(self) -> int:
        """How many frames of the clip become one over all blocks. `resolve` has been called."""
        return 1

    def folding_sites(self) -> tuple[str, ...]:
        """Sites whose projections the method folds into."""
        return ()

    def site_modules(self, backbone: Backbone, layer: int) -> dict[str, SiteModule]:
        """New modules for the sites of block number `layer` of the `backbone`, by site name."""
        return {}

    def block_modules(self, backbone: Backbone, layer: int) -> Iterator[tuple[str, str, SiteModule]]:
        """Site, method name and a new module, for all that the parts place in block `layer` of the `backbone`.

        Raises:
            ValueError: a site that does not exist, or where such a module cannot stand.
            TypeError: not a `SiteModule`.
        """
        for part in self.parts():
            if part.adapts(layer):
                for site, module in part.site_modules(backbone, layer).items():
                    check_site(site, module, part.method_name)
                    yield site, part.method_name, module

    def branch_module(self, backbone: Backbone) -> Branch | None:
        """A new side branch over the whole backbone, for a method that has one."""
        return None

    def head_time_offsets(self, layer: int) -> tuple[int, ...]:
        """Frame offsets of the first heads of block number `layer`; () if none is shifted."""
        return ()


def acting_order(methods: list[I2VTunerConfig]) -> list[I2VTunerConfig]:
    """The methods in the order in which they act: those that merge frames first, the others as written."""
    return sorted(methods, key=lambda method: not method.merges_frames)


@dataclass
class ComposedConfig(I2VTunerConfig):
    """Methods that act together; made by `+`.

    Args:
        methods: their configurations. `num_frames` and `modules_to_save` hold for all of them.
    """

    method_name = "i2v_composed"
    title = "a composition"
    why_not_causal = None
    paper = "the methods' own"

    methods: list = field(default_factory=list, metadata={"help": "Configurations of the methods, in order."})

    def __post_init__(self):
        super().__post_init__()
        self.methods = acting_order([config_from_dict(m) if isinstance(m, dict) else m for m in self.methods])
        if self.layers_to_transform is not None:
            raise ValueError(
                f"layers_to_transform={self.layers_to_transform} of a composition: set it in each method's own "
                "configuration."
            )
        names = [m.method_name for m in self.methods]
        if len(names) < 2:
            raise ValueError(f"A composition needs two methods or more, found {names}.")
        for method in self.methods:
            if names.count(method.method_name) > 1:
                raise ValueError(f"{' + '.join(names)} has {method.method_name} twice; use one configuration of it.")
            if contained := sorted(set(method.includes) & set(names)):
                raise ValueError(f"{method.method_name} already includes {' and '.join(contained)}; leave that out.")
            if why := method.why_alone or ("is a side branch" if method.has_branch else None):
                raise ValueError(f"{' + '.join(names)} makes no sense: {method.title} {why}.")
        self.causal = any(method.causal for method in self.methods)
        for method in self.methods:
            if self.causal and (why := method.why_not_streaming):
                raise ValueError(f"{' + '.join(names)} is half causal: {method.title} {why}.")
        for fact in ("uses_temporal_embedding", "trains_final_norm", "unused_parameters"):
            setattr(self, fact, any(getattr(method, fact) for method in self.methods))
        frames = {m.num_frames for m in [self, *self.methods]} - {None}
        if len(frames) > 1:
            raise ValueError(f"The composed methods disagree on num_frames: {sorted(frames)}.")
        if frames:
            self.num_frames = frames.pop()
        saved = [name for m in self.methods for name in m.modules_to_save or []]
        self.modules_to_save = list(dict.fromkeys([*(self.modules_to_save or []), *saved])) or None

    def parts(self) -> list[I2VTunerConfig]:
        return self.methods

    def resolve(self, backbone: Backbone) -> None:
        remaining = self.num_frames
        for method in self.methods:
            method.num_frames = remaining
            method.resolve(backbone)
            remaining //= method.frames_merged()  # for the methods that act later
        for method in self.methods:
            method.num_frames = self.num_frames
        poolings = dict.fromkeys(m.pooling for m in self.methods if m.pooling)
        self.pooling = self.pooling or next(iter(poolings), None)

    def adapts(self, layer: int) -> bool:
        return any(m.adapts(layer) for m in self.methods)

    def head_time_offsets(self, layer: int) -> tuple[int, ...]:
        return next((offsets for m in self.methods if (offsets := m.head_time_offsets(layer))), ())


def config_from_dict(config: dict) -> I2VTunerConfig:
    """A method's configuration from its `to_dict()`, or from `method_to_dict`.

    Raises:
        ValueError: it is of no registered method.
    """
    config = dict(config)
    name = str(config.pop("peft_type", "")).lower().rpartition(".")[2]
    if name not in METHODS:
        raise ValueError(
            f"The method {name!r} is none of {list(METHODS)}. If it is not one of hf_i2v, import the file that "
            "registers it first (a finished model has that file beside its weights); else update hf_i2v."
        )
    return METHODS[name](**config)


def method_to_dict(config: I2VTunerConfig) -> dict:
    """A method's type and options, without the facts of one adapter's training."""
    training = _OF_PEFT | {"modules_to_save", "trained_on"}
    options = {key: value for key, value in config.to_dict().items() if key not in training and value is not None}
    return {"peft_type": config.peft_type.value, **options}
