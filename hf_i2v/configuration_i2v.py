"""The configuration of a video model, and helpers that locate a model's files."""

import json
import os
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from peft import PeftModel
from torch import nn
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec, strict

from .backbones import find_backbone
from .data.transforms import Preprocessing
from .methods.config import I2VTunerConfig, config_from_dict
from .remote_code import write_remote_code
from .untrusted import SIZE_LIMITS, check_preprocessing, check_shape, check_types, check_values
from .video import TimeRecord

VIDEO_MODEL_NAME = "video_model.json"  # beside the adapters of other tuners of peft, which have no place for it
LISTS = {  # what the lists of a configuration hold; `strict` would look at every entry before their length is known
    "image_config": dict | PreTrainedConfig | None,
    "time_offsets": list[int] | list[list[int]] | None,
    "baked": list[dict] | None,
    "methods": list[str] | None,
    "preprocessing": dict | None,
}


@strict
class I2VConfig(PreTrainedConfig):
    """Configuration of a video model made from an image model.

    Args:
        image_config: the image model's own configuration.
        num_frames: frames per clip T.
        time_offsets: STDHA's frame offsets per head; one list for all blocks, or a list per block. None: no shift.
        temporal_embedding: the number of frames of the temporal embedding that is added to the tokens of each frame,
            False for none; interpolated linearly for clips of another length. True means `num_frames`.
        pooling: "after_norm": final norm of each frame, then the mean over the frames; "before_norm": the mean first.
        baked: configurations of the methods whose modules are part of the model.
        methods: names of all methods that were merged into the model or baked.
        add_pooling_layer: whether the image model has the pooler that ViT has as an option.
        classifier_dropout: dropout before the classifier.
        base_model: the image model's name on the Hub, or None.
        preprocessing: size, mean, std and interpolation of `hf_i2v.data.Preprocessing`. The processors saved with the
            model are made from it.
        feature_reads_prefix: whether the image model's feature depends on its CLS (and register) tokens only. The
            last block's MLP can then leave out the patches. Found by a trial when the model is made.
        causal: no frame looks at later ones, by a method with `causal=True`, and the clip feature is the mean over the
            last `num_frames` frames of a clip of any length. Such a model runs frame by frame (`new_stream`, `step`).
    """

    model_type = "i2v"
    sub_configs_defaults = {"image_config": SubConfigSpec(config_class=AutoConfig, model_type="clip_vision_model")}

    image_config: dict | PreTrainedConfig | None = None
    num_frames: int = 8
    time_offsets: list | None = None
    temporal_embedding: bool | int = False
    pooling: Literal["after_norm", "before_norm"] = "after_norm"
    baked: list | None = None
    methods: list | None = None
    add_pooling_layer: bool = False
    classifier_dropout: float | int = 0.5
    base_model: str | None = None
    preprocessing: dict | None = None
    feature_reads_prefix: bool = False
    causal: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        # hf_i2v registers its own pipeline. The one named in config.json is for machines without hf_i2v.
        if __package__ == "hf_i2v":
            kwargs.pop("custom_pipelines", None)
        if isinstance(self.image_config, PreTrainedConfig):  # keep the image model's attention kernel
            kwargs.setdefault("attn_implementation", self.image_config._attn_implementation)
        self._check_values(kwargs)  # before transformers makes a name for each label
        super().__post_init__(**kwargs)
        self.image_config.name_or_path = ""  # may be a local path

    @property
    def hidden_size(self) -> int:
        """The image model's width D."""
        return self.image_config.hidden_size

    def clip_shape(self, batch_size: int = 1) -> tuple[int, int, int, int, int]:
        """The shape (B, T, C, h, w) of the pixels that the model works on, B the `batch_size`."""
        return (batch_size, self.num_frames, *image_shape(self.image_config, self.preprocessing))

    def _check_values(self, others: dict) -> None:
        """Refuse sizes that would make the machine allocate or loop without end, and unsafe labels."""
        given = {**vars(self), **others}
        image = self.image_config
        image = image.to_dict() if isinstance(image, PreTrainedConfig) else image
        if isinstance(image, dict):
            own_labels = ("id2label", "label2id")  # of an image classifier; nothing shows them
            given["image_config"] = {key: value for key, value in image.items() if key not in own_labels}
        check_values(given)
        check_types(type(self).__name__, given, LISTS)
        for method in self.baked or []:
            check_values(method, largest=SIZE_LIMITS["hidden_size"])
        if self.preprocessing is not None:
            check_preprocessing(self.preprocessing)

    def validate_sizes(self) -> None:
        """Refuse an image model that cannot be built."""
        check_shape(self.image_config)

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """As everywhere in transformers. Also saves the model's code and its processors."""
        super().save_pretrained(save_directory, **kwargs)
        write_remote_code(save_directory, [type(config_from_dict(method)) for method in self.baked or []])
        if self.preprocessing is not None:
            Preprocessing(**self.preprocessing).save_processors(save_directory, num_frames=self.num_frames)

    def time_record(self) -> TimeRecord:
        """The record of what the model does in time without an adapter."""
        return TimeRecord(**{field.name: getattr(self, field.name) for field in fields(TimeRecord)})

    def describe_time(self, model: nn.Module) -> None:
        """Read the time record and the pooler of the video backbone inside `model` into this configuration."""
        backbone = find_backbone(model)
        for name, value in vars(TimeRecord.read(backbone)).items():
            setattr(self, name, value)
        self.add_pooling_layer = getattr(backbone.model, "pooler", None) is not None

    def rebuilding_facts(self) -> dict:
        """What is needed beside the image model to build this model again: labels, frames, its own time offsets."""
        return {
            "id2label": dict(self.id2label),
            "num_frames": self.num_frames,
            "classifier_dropout": self.classifier_dropout,
            "time_offsets": self.time_offsets,
            "pooling": self.pooling,
            "causal": self.causal,
            "finished_in_memory": bool(self.temporal_embedding or self.baked or self.pooling != "after_norm"),
        }


def image_shape(image_config: PreTrainedConfig, preprocessing: dict | None) -> tuple[int, int, int]:
    """The shape (C, h, w) of the pictures that an image model works on: those that its preprocessing makes.

    `image_config.image_size` is what the position embedding was made for, 518 in every published DINOv2 whose pictures
    are of 224; it counts only where the preprocessing is unknown.
    """
    config = getattr(image_config, "vision_config", image_config)
    size = preprocessing["size"] if preprocessing else config.image_size
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    return getattr(config, "num_channels", 3), height, width


def check_is_video_model(name: str, wanted: str, kwargs: dict) -> None:
    """Raise ValueError, which names the right call, if `name` is an adapter or an image model."""
    folder = os.path.join(name, kwargs.get("subfolder") or "")
    if os.path.isfile(os.path.join(folder, "adapter_config.json")) and not os.path.isfile(
        os.path.join(folder, "config.json")
    ):
        raise ValueError(
            f"{name} holds an adapter, not a {wanted}. Load it with "
            "hf_i2v.AutoPeftModelForVideoClassification.from_pretrained(...); its merge_and_unload() or bake() gives "
            "a model that saves and loads without peft."
        )
    model_type = PreTrainedConfig.get_config_dict(name, **hub_arguments(kwargs))[0].get("model_type")
    if model_type != I2VConfig.model_type:
        raise ValueError(
            f"{name} holds a {model_type!r} model, not a {wanted}. To make a video model from an image model, use "
            "hf_i2v.I2VForVideoClassification.from_image_model(...)."
        )


def hub_arguments(kwargs: dict) -> dict:
    """The arguments of a `from_pretrained` call that locate a file, for reading further files of the same model."""
    names = ("revision", "token", "cache_dir", "local_files_only", "subfolder")
    return {key: kwargs[key] for key in names if key in kwargs}


def video_arguments(kwargs: dict) -> dict:
    """Those of `from_image_model`'s arguments that `I2VConfig` takes; the others are for the image model."""
    own = {field.name for field in fields(I2VConfig)} - {"image_config", "dtype"} | {"output_attentions"}
    return {key: value for key, value in kwargs.items() if key in own}


def lasting_name(name: str | os.PathLike) -> str:
    """A name on the Hub as it is, a folder with its whole path: an adapter's base is then found from anywhere."""
    return os.path.abspath(name) if os.path.isdir(name) else str(name)


def hub_name(name: str | None) -> str | None:
    """`name` if it can be a repository on the Hub; None for a local path, which must not be published."""
    if not name or os.path.exists(name):
        return None
    try:
        validate_repo_id(str(name))
    except HFValidationError:
        return None
    return str(name)


def write_video_model(model: PeftModel, folder: str | os.PathLike) -> None:
    """Note beside a saved adapter of another tuner of peft (LoRA) which video model it belongs to."""
    base = model.get_base_model()
    has_own_place = isinstance(model.active_peft_config, I2VTunerConfig)
    if isinstance(base.config, I2VConfig) and hasattr(base, "classifier") and not has_own_place:
        facts = json.dumps(base.config.rebuilding_facts(), indent=2, ensure_ascii=False)
        (Path(folder) / VIDEO_MODEL_NAME).write_text(facts + "\n")
