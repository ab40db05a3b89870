"""Several methods as one adapter: `STAdapterConfig() + InTIConfig()`."""

from dataclasses import dataclass, field, fields

from peft import PeftConfig

from .backbones import Backbone
from .config import I2VTunerConfig
from .methods import METHODS


@dataclass
class ComposedConfig(I2VTunerConfig):
    """Methods that act together; made by `+`.

    Args:
        methods: their configurations. `num_frames` and `modules_to_save` are said once, for all of them.
    """

    method_name = "i2v_composed"

    methods: list = field(default_factory=list, metadata={"help": "Configurations of the methods, in order."})

    def __post_init__(self):
        super().__post_init__()
        self.methods = [config_from_dict(m) if isinstance(m, dict) else m for m in self.methods]
        if self.layers_to_transform is not None:
            raise ValueError(
                f"layers_to_transform={self.layers_to_transform} of a composition: say it in each method's own "
                "configuration."
            )
        names = [m.method_name for m in self.methods]
        if len(names) < 2:
            raise ValueError(f"A composition needs two methods or more, found {names}.")
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"{' + '.join(names)} has {name} twice; one configuration of it can say all.")
        halves = {"stdha", "linear_adapter"} & set(names)
        if "zeroi2v" in names and halves:
            raise ValueError(f"zeroi2v already is STDHA with linear adapters; leave {sorted(halves)} out.")
        if "m_adapter" in names:
            raise ValueError(
                f"{' + '.join(names)} makes no sense: the M-adapter reads an unchanged frozen model, which the others "
                "change."
            )
        frames = {m.num_frames for m in [self, *self.methods]} - {None}
        if len(frames) > 1:
            raise ValueError(f"The composed methods disagree on num_frames: {sorted(frames)}.")
        if frames:
            self.num_frames = frames.pop()
        saved = [name for m in self.methods for name in m.modules_to_save or []]
        self.modules_to_save = list(dict.fromkeys([*(self.modules_to_save or []), *saved])) or None

    @property
    def uses_temporal_embedding(self) -> bool:
        return any(m.uses_temporal_embedding for m in self.methods)

    @property
    def trains_final_norm(self) -> bool:
        return any(m.trains_final_norm for m in self.methods)

    def parts(self) -> list[I2VTunerConfig]:
        return self.methods

    def resolve(self, backbone: Backbone) -> None:
        num_frames = self.num_frames
        for method in sorted(self.methods, key=lambda m: m.method_name != "inti"):
            method.num_frames = num_frames
            method.resolve(backbone)
            num_frames //= 2 ** len(getattr(method, "insert_before", ()))  # what the others find at the end
        for method in self.methods:
            method.num_frames = self.num_frames
        poolings = dict.fromkeys(m.pooling for m in self.methods if m.pooling)
        self.pooling = self.pooling or next(iter(poolings), None)

    def adapts(self, layer: int) -> bool:
        return any(m.adapts(layer) for m in self.methods)

    def head_time_offsets(self, layer: int) -> tuple[int, ...]:
        return next((offsets for m in self.methods if (offsets := m.head_time_offsets(layer))), ())


def compose(first: I2VTunerConfig, second: I2VTunerConfig) -> ComposedConfig:
    """The methods of both; one that shortens the clip acts before all others of its block."""
    if not isinstance(second, I2VTunerConfig):
        raise TypeError(
            f"{type(first).__name__} can be composed with configurations of hf_i2v, not with {type(second).__name__}. "
            "For other tuners of peft, merge STDHA into the model first and attach them to that."
        )
    methods = sorted([*first.parts(), *second.parts()], key=lambda m: m.method_name != "inti")
    return ComposedConfig(methods=methods)


def config_from_dict(config: dict) -> I2VTunerConfig:
    """A method's configuration from its `to_dict()`, or from `method_to_dict`.

    Raises:
        ValueError: it is of no method that we know.
    """
    config = dict(config)
    name = str(config.pop("peft_type", "")).lower().rpartition(".")[2]
    if name not in METHODS:
        raise ValueError(f"The method {name!r} is none of {list(METHODS)}; a newer version of hf_i2v may know it.")
    return METHODS[name](**config)


def method_to_dict(config: I2VTunerConfig) -> dict:
    """What makes the method: its options and type, without where and how an adapter was trained."""
    training = {f.name for f in fields(PeftConfig)} | {"modules_to_save", "trained_on"}
    options = {key: value for key, value in config.to_dict().items() if key not in training and value is not None}
    return {"peft_type": config.peft_type.value, **options}
