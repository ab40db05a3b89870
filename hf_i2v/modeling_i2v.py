"""The artefact that goes to the Hub: an image model's weights and what makes it a video model, in one folder."""

import os
from contextlib import suppress
from dataclasses import asdict
from typing import Literal

import torch
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import (
    MODEL_MAPPING,
    AutoConfig,
    AutoModel,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers import initialization as init
from transformers.configuration_utils import SubConfigSpec, strict
from transformers.modeling_outputs import BaseModelOutputWithPooling, ImageClassifierOutput
from transformers.utils import logging
from transformers.utils.output_capturing import maybe_install_capturing_hooks

from .backbones import Backbone, find_backbone
from .composition import config_from_dict
from .data.transforms import Preprocessing, preprocessing_from_pretrained
from .methods.stdha import STDHAConfig, check_time_offsets, trim
from .remote_code import write_remote_code
from .untrusted import (
    MAX_PARAMETERS,
    SIZE_LIMITS,
    check_finite,
    check_label,
    check_limit,
    check_method_sizes,
    check_preprocessing,
    check_sizes,
)
from .video import VideoEmbeddings, to_video

logger = logging.get_logger(__name__)


@strict
class I2VConfig(PreTrainedConfig):
    """Configuration of a video model made from an image model.

    Args:
        image_config: the image model's own configuration.
        num_frames: frames per clip T.
        time_offsets: STDHA's frame offsets per head; one list for all blocks, or a list per block. None: no shift.
        temporal_embedding: the number of frames of the temporal embedding that is added to the tokens of each frame,
            False for none; interpolated linearly for clips of another length. True means `num_frames`.
        pooling: "after_norm": final norm of each frame, then the mean over the frames; "before_norm": the other way.
        baked: configurations of the methods whose modules are part of the model.
        methods: names of all methods that it was finished with; those that were merged leave no other trace.
        add_pooling_layer: whether the image model has the pooler that ViT has as an option.
        classifier_dropout: dropout before the classifier.
        base_model: the image model's name on the Hub, if it has one.
        preprocessing: size, mean, std and interpolation of `hf_i2v.data.Preprocessing`, which the model's processors
            are made from when it is saved.
        feature_reads_prefix: whether the image model's feature depends on its CLS (and register) tokens only, so that
            the last block's MLP can leave out the patches; found by trying when the model is made.
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

    def __post_init__(self, **kwargs):
        if __package__ == "hf_i2v":  # the pipeline is registered; the code beside the weights is for those without us
            kwargs.pop("custom_pipelines", None)
        if isinstance(self.image_config, PreTrainedConfig):  # keep the kernel that the image model was loaded with
            kwargs.setdefault("attn_implementation", self.image_config._attn_implementation)
        check_limit("num_labels", kwargs.get("num_labels"), SIZE_LIMITS["num_labels"])  # each gets a name right away
        super().__post_init__(**kwargs)
        self.image_config.name_or_path = ""  # a path of the machine it was made on

    @property
    def hidden_size(self) -> int:
        return self.image_config.hidden_size

    def validate_sizes(self):
        """A configuration from anywhere must not make a machine allocate, or loop, without end."""
        check_sizes(self)
        check_sizes(self.image_config)
        for method in self.baked or []:
            check_method_sizes(method)
        if self.preprocessing is not None:
            check_preprocessing(self.preprocessing)

    def validate_labels(self):
        """A label is shown, and may be used to name a file."""
        for label in (self.id2label or {}).values():
            check_label(str(label))

    def save_pretrained(self, save_directory, **kwargs):
        """As everywhere in transformers; also saves the code that can read it, and the processors."""
        super().save_pretrained(save_directory, **kwargs)
        write_remote_code(save_directory)
        if self.preprocessing is not None:
            Preprocessing(**self.preprocessing).save_processors(save_directory, num_frames=self.num_frames)

    def describe_time(self, model: nn.Module) -> None:
        """Take over how the video backbone inside `model` is made and what it does in time."""
        backbone = find_backbone(model)
        self.pooling = backbone.model.pooling
        self.baked = list(backbone.model.baked_methods) or None
        self.add_pooling_layer = getattr(backbone.model, "pooler", None) is not None
        offsets = [list(block.time_offsets) for block in backbone.blocks.values()]
        self.time_offsets = offsets if any(offsets) else None
        if all(block == offsets[0] for block in offsets):
            self.time_offsets = offsets[0] or None
        embedding_TD = backbone.embeddings.temporal_embedding
        self.temporal_embedding = False if embedding_TD is None else len(embedding_TD)

    def around_the_image_model(self) -> dict:
        """What it takes, beside the image model, to build this model again: labels, frames, native time offsets."""
        return {
            "id2label": dict(self.id2label),
            "num_frames": self.num_frames,
            "classifier_dropout": self.classifier_dropout,
            "time_offsets": self.time_offsets,
            "pooling": self.pooling,
            "finished_in_memory": bool(self.temporal_embedding or self.baked or self.pooling != "after_norm"),
        }

    def block_time_offsets(self, num_blocks: int) -> list[tuple[int, ...]]:
        """STDHA's offsets for each block."""
        offsets = self.time_offsets or []
        if offsets and all(isinstance(block, (list, tuple)) for block in offsets):
            if len(offsets) != num_blocks:
                raise ValueError(f"time_offsets has {len(offsets)} lists, but the model has {num_blocks} blocks.")
            return [trim(block) for block in offsets]
        return [trim(offsets)] * num_blocks


class I2VPreTrainedModel(PreTrainedModel):
    config: I2VConfig
    base_model_prefix = "i2v"
    main_input_name = "pixel_values"
    input_modalities = ("video",)
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    @property
    def is_gradient_checkpointing(self) -> bool:
        """peft asks for it under this name, of which transformers' own warns."""
        return self.is_activation_checkpointing

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, use_safetensors: bool = True, **kwargs):
        """As everywhere in transformers, but from safetensors only.

        Raises:
            ValueError: it is no video model of hf_i2v, or a weight is not finite.
            OSError: there are no weights in safetensors.
        """
        if kwargs.get("config") is None:
            _check_is_video_model(pretrained_model_name_or_path, cls.__name__, kwargs)
        kwargs["use_safetensors"] = use_safetensors
        loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        check_finite(dict(model.named_parameters()), pretrained_model_name_or_path)
        return loaded

    def save_pretrained(self, save_directory, *args, **kwargs):
        """As everywhere in transformers.

        Raises:
            ValueError: an adapter that was attached with peft is still in the model; its weights would be lost.
        """
        if not getattr(self, "_hf_peft_config_loaded", False) and any(
            isinstance(m, BaseTunerLayer) for m in self.modules()
        ):
            raise ValueError(
                f"This {type(self).__name__} still holds an adapter, which would not load again with it. Save the "
                "PeftModel around it, or call merge_and_unload(), bake() or unload() first."
            )
        super().save_pretrained(save_directory, *args, **kwargs)

    def _upload_modified_files(self, working_dir, repo_id, *args, **kwargs):
        from .cards import write_card  # transformers has just put its own, empty card there

        write_card(self, working_dir, repo_id=repo_id)
        return super()._upload_modified_files(working_dir, repo_id, *args, **kwargs)

    def get_input_embeddings(self) -> nn.Module:
        """The image model's patch embedding, whose output gradient checkpointing makes require a gradient."""
        return find_backbone(self).model.get_input_embeddings()

    def with_stdha(self, time_offsets: list[int] | dict[int, int] | None = None):
        """Shift heads in time natively (STDHA, arXiv 2310.01324), so that any tuner of peft can ride on it.

        Args:
            time_offsets: as in `STDHAConfig`; None: the paper's for the backbone and the number of frames.

        Returns:
            This model, which now shifts and says so in its configuration.
        """
        backbone = find_backbone(self)
        stdha = STDHAConfig(num_frames=self.config.num_frames, time_offsets=time_offsets)
        stdha.resolve(backbone)
        for layer, block in enumerate(backbone.blocks.values()):
            block.time_offsets = stdha.head_time_offsets(layer)
        self.config.describe_time(self)
        return self

    def shift_as_configured(self) -> None:
        """Give every block the time offsets of the configuration.

        Raises:
            ValueError: they do not fit the blocks, the heads or the number of frames.
        """
        backbone = find_backbone(self)
        per_block = self.config.block_time_offsets(len(backbone.blocks))
        for block, offsets in zip(backbone.blocks.values(), per_block, strict=True):
            check_time_offsets(list(offsets), backbone.num_heads, self.config.num_frames)
            block.time_offsets = offsets

    @torch.no_grad()
    def _init_weights(self, module):
        if isinstance(module, VideoEmbeddings):
            if module.temporal_embedding is not None:
                init.zeros_(module.temporal_embedding)
        elif isinstance(module, nn.Linear):  # the classifier; the image model initialises itself
            init.trunc_normal_(module.weight, std=0.02)
            init.zeros_(module.bias)


class I2VModel(I2VPreTrainedModel):
    """A video model without a head: (B, T, C, h, w) → a clip feature (B, D)."""

    def __init__(self, config: I2VConfig, image_model: nn.Module | None = None):
        super().__init__(config)
        self.image_model = _image_model(config) if image_model is None else image_model
        backbone = find_backbone(self.image_model)
        to_video(backbone)
        self.image_model.pooling = config.pooling
        config.feature_reads_prefix |= self.image_model.feature_reads_prefix  # nothing can try it on the meta device
        self.image_model.feature_reads_prefix = config.feature_reads_prefix
        self.shift_as_configured()
        if config.temporal_embedding and backbone.embeddings.temporal_embedding is None:
            length = config.num_frames if config.temporal_embedding is True else config.temporal_embedding
            backbone.embeddings.temporal_embedding = nn.Parameter(torch.zeros(length, backbone.hidden_size))
        if not self.image_model.baked_methods:
            _add_baked_modules(config, backbone)
        check_limit("number of parameters", sum(p.numel() for p in self.parameters()), MAX_PARAMETERS)
        self._no_split_modules = list(getattr(self.image_model, "_no_split_modules", None) or [])
        self.post_init()

    @classmethod
    def from_video_backbone(cls, image_model: nn.Module, *, num_frames: int, methods: list[str]) -> "I2VModel":
        """Wrap a backbone that was adapted and merged, so that it saves and loads as the video model it is."""
        name = image_model.name_or_path  # before the configuration, which has it too, is rid of it
        config = I2VConfig(image_config=image_model.config, num_frames=num_frames, methods=methods)
        config.base_model = hub_name(name)
        with suppress(OSError):  # made in code, or its folder is gone
            config.preprocessing = _preprocessing(name) if name else None
        config.describe_time(image_model)
        keep_from_initialisation(image_model)
        return cls(config, image_model).train(image_model.training)

    def forward(
        self, pixel_values: torch.Tensor | None = None, num_frames: int | None = None, **kwargs
    ) -> BaseModelOutputWithPooling | tuple:
        """
        Args:
            pixel_values: (B, T, C, h, w), or (B·T, C, h, w) together with `num_frames`.
            frozen_features: in their place, what a side branch (M-adapter) needs of the frozen model.

        Returns:
            `pooler_output` (B, D), `last_hidden_state` (B, T, N, D), and (B, T, …) for what else is asked for.
        """
        return self.image_model(pixel_values, num_frames=num_frames, **kwargs)


class I2VForVideoClassification(I2VPreTrainedModel):
    """A video model with a classifier: clip feature → dropout → linear → logits (B, num_labels)."""

    def __init__(self, config: I2VConfig, image_model: nn.Module | None = None):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.i2v = I2VModel(config, image_model)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self._no_split_modules = self.i2v._no_split_modules
        self.post_init()

    @classmethod
    def from_image_model(
        cls,
        pretrained_model_name_or_path: str,
        *,
        num_frames: int = 8,
        num_labels: int | None = None,
        id2label: dict[int, str] | None = None,
        label2id: dict[str, int] | None = None,
        allow_random_base: bool = False,
        classifier_dropout: float = 0.5,
        **kwargs,
    ) -> "I2VForVideoClassification":
        """A video model from an image checkpoint, ready to be adapted. Its classifier is new.

        Args:
            pretrained_model_name_or_path: a folder or a Hub repository with a vision transformer, or with a model
                that holds one (CLIP, an image classifier).
            num_frames: frames per clip T.
            num_labels, id2label, label2id: as everywhere in transformers.
            allow_random_base: go on although the checkpoint leaves weights of the backbone uninitialised.
            classifier_dropout: dropout before the classifier.
            kwargs: for the image model's `from_pretrained` (`dtype`, `attn_implementation`, `revision`, …).

        Raises:
            ValueError: the checkpoint has no or misshapen weights for a part of the backbone, or arguments that do
                not agree.
            UnsupportedBackboneError: it is no vision transformer that can be adapted.
        """
        if num_frames < 1:
            raise ValueError(f"num_frames ({num_frames}) must be >= 1")
        if id2label is not None and not isinstance(id2label, dict):
            raise ValueError(f"id2label ({id2label!r:.80}) must be a dictionary, {{0: 'first', 1: 'second', …}}.")
        if id2label is not None and num_labels not in (None, len(id2label)):
            raise ValueError(f"num_labels is {num_labels}, but id2label names {len(id2label)} classes.")
        image_model = _pretrained_image_model(pretrained_model_name_or_path, allow_random_base, kwargs)
        if id2label is not None and label2id is None:
            label2id = {name: i for i, name in id2label.items()}
        labels = {"id2label": id2label, "label2id": label2id}
        labels = {key: value for key, value in labels.items() if value is not None}
        if id2label is None and num_labels is not None:
            labels["num_labels"] = num_labels
        config = I2VConfig(
            image_config=image_model.config,
            num_frames=num_frames,
            classifier_dropout=classifier_dropout,
            base_model=hub_name(pretrained_model_name_or_path),
            preprocessing=_preprocessing(pretrained_model_name_or_path, **hub_arguments(kwargs)),
            **labels,
        )
        keep_from_initialisation(image_model)
        model = cls(config, image_model).to(image_model.dtype).eval()
        model.config.name_or_path = model.name_or_path = str(pretrained_model_name_or_path)
        return model

    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        num_frames: int | None = None,
        return_dict: bool | None = None,
        **kwargs,
    ) -> ImageClassifierOutput | tuple:
        """
        Args:
            pixel_values: (B, T, C, h, w), or (B·T, C, h, w) together with `num_frames`.
            frozen_features: in their place, what a side branch (M-adapter) needs of the frozen model.
            labels: (B,) class indices; for other problem types as in transformers' sequence classification.

        Returns:
            `logits` (B, num_labels), and `loss` when `labels` are given.
        """
        outputs = self.i2v(pixel_values, num_frames=num_frames, feature_only=True, return_dict=True, **kwargs)
        feature_BD = outputs.pooler_output
        logits = self.classifier(self.dropout(feature_BD.to(self.classifier.weight.dtype)))
        loss = None if labels is None else self.loss_function(labels, logits, self.config)
        outputs = ImageClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )
        return_dict = self.config.return_dict if return_dict is None else return_dict
        return outputs if return_dict else outputs.to_tuple()


def _check_is_video_model(name: str, wanted: str, kwargs: dict) -> None:
    """Raise ValueError, with the call that was meant, where an adapter or an image model lies."""
    if os.path.isfile(os.path.join(name, "adapter_config.json")) and not os.path.isfile(
        os.path.join(name, "config.json")
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


def keep_from_initialisation(module: nn.Module) -> None:
    """Mark weights as loaded, so that a new model around them does not initialise them again."""
    for child in module.modules():
        child._is_hf_initialized = True
    for parameter in module.parameters():
        parameter._is_hf_initialized = True


def _add_baked_modules(config: I2VConfig, backbone: Backbone) -> None:
    """Build the modules of baked methods; their weights come with the checkpoint."""
    for method in config.baked or []:
        part = config_from_dict(method)
        for layer, block in enumerate(backbone.blocks.values()):
            for site, name, module in part.block_modules(backbone, layer):
                block.add_baked(site, name, module)
        if (branch := part.branch_module(backbone)) is not None:
            backbone.model.baked_branch = branch
            maybe_install_capturing_hooks(backbone.model)
    backbone.model.baked_methods = list(config.baked or [])


def _image_model(config: I2VConfig) -> nn.Module:
    pooler = pooler_argument(type(config.image_config), config.add_pooling_layer)
    return AutoModel.from_config(config.image_config, **pooler)


def pooler_argument(config_class: type, add_pooling_layer: bool) -> dict:
    """The argument by which ViT takes or leaves its pooler; {} for models that have no such choice."""
    takes_it = "add_pooling_layer" in MODEL_MAPPING[config_class].__init__.__code__.co_varnames
    return {"add_pooling_layer": add_pooling_layer} if takes_it else {}


def _pretrained_image_model(name: str, allow_random_base: bool, kwargs: dict) -> nn.Module:
    config = AutoConfig.from_pretrained(name, **{k: kwargs[k] for k in ("revision", "token") if k in kwargs})
    config_class = type(getattr(config, "vision_config", config))
    if config_class is I2VConfig:
        raise ValueError(
            f"{name} is a finished video model, not an image model. Load it with "
            "hf_i2v.I2VForVideoClassification.from_pretrained(...)."
        )
    if config_class not in MODEL_MAPPING:
        raise ValueError(f"{name} holds a {config.model_type!r} model, which transformers has no image model for.")
    model_class = MODEL_MAPPING[config_class]
    kwargs |= pooler_argument(config_class, False)  # no part of the published heads, nor of many checkpoints
    image_model, info = model_class.from_pretrained(
        name, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs
    )
    check_finite(dict(image_model.named_parameters()), name)
    problems = [f"missing: {key}" for key in sorted(info["missing_keys"])]
    problems += [f"mismatched: {key}" for key in sorted(map(str, info["mismatched_keys"]))]
    if problems and not allow_random_base:
        shown = "\n  ".join(problems[:20] + (["…"] if len(problems) > 20 else []))
        raise ValueError(
            f"{name} leaves {len(problems)} weights of its {model_class.__name__} uninitialised:\n  {shown}\n"
            "An adapter on random frozen weights is worthless. Use a complete checkpoint, or say "
            "allow_random_base=True if that is what you want."
        )
    return image_model


def _preprocessing(name: str, **hub) -> dict | None:
    """How the image model wants its pixels; None where our processors cannot do it (an input that is not square)."""
    try:
        return asdict(preprocessing_from_pretrained(name, **hub))
    except ValueError as error:
        logger.warning("%s: no processors will be saved with the video model.", error)
        return None


def hub_arguments(kwargs: dict) -> dict:
    """Those of a `from_pretrained`'s arguments that say where a file comes from, for what else is read there."""
    return {key: kwargs[key] for key in ("revision", "token", "cache_dir", "local_files_only") if key in kwargs}


def hub_name(name: str | None) -> str | None:
    """`name` if it can be a repository on the Hub; None for a local path, which nothing that is published may show."""
    if not name or os.path.exists(name):
        return None
    try:
        validate_repo_id(str(name))
    except HFValidationError:
        return None
    return str(name)
