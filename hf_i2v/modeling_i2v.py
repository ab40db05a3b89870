"""The video models that are saved as one folder: an image model's weights, time offsets, baked modules, classifier."""

import os
from typing import Any, Self

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import BaseImageProcessor, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling, ImageClassifierOutput

from .backbones import find_backbone
from .configuration_i2v import (
    I2VConfig,
    check_is_video_model,
    hub_arguments,
    hub_name,
    lasting_name,
    video_arguments,
)
from .image_checkpoint import (
    image_model_from_config,
    image_model_in_memory,
    keep_from_initialisation,
    known_preprocessing,
    preprocessing_of,
    pretrained_image_model,
)
from .methods.stdha import STDHAConfig
from .stream_state import Step
from .streaming import StreamingModel
from .untrusted import MAX_PARAMETERS, check_complete, check_finite, check_limit, check_weight_files, foreign_files
from .video import VideoEmbeddings, to_video


class I2VPreTrainedModel(StreamingModel, PreTrainedModel):
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
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        *args: Any,
        use_safetensors: bool = True,
        ignore_mismatched_sizes: bool = False,
        output_loading_info: bool = False,
        **kwargs: Any,
    ) -> Self:
        """As everywhere in transformers, but from safetensors only, and from all of them.

        Args:
            ignore_mismatched_sizes: take new weights for those that are misshapen, and a new classifier where there is
                none.

        Raises:
            ValueError: it is no video model of hf_i2v, its configuration or files are not those of one, weights are
                missing, misshapen or left over, or one is not finite.
            OSError: there are no weights in safetensors.
        """
        name = pretrained_model_name_or_path
        with foreign_files(name):
            if name is not None and not isinstance(kwargs.get("config"), I2VConfig):
                check_is_video_model(name, cls.__name__, kwargs)
            if name is not None and use_safetensors:
                where = hub_arguments(kwargs) | {"subfolder": kwargs.get("subfolder", "")}
                config = kwargs.get("config")
                if not isinstance(config, I2VConfig):
                    config = I2VConfig.from_pretrained(config or name, **where)
                check_weight_files(name, config, variant=kwargs.get("variant"), **where)
            model, info = super().from_pretrained(
                name,
                *args,
                use_safetensors=use_safetensors,
                ignore_mismatched_sizes=True,  # what it would raise comes without names
                output_loading_info=True,
                **kwargs,
            )
        missing, misshapen = set(info["missing_keys"]), info["mismatched_keys"]
        if ignore_mismatched_sizes:
            missing, misshapen = {key for key in missing if not key.startswith("classifier.")}, []
        check_complete(name, missing=missing, misshapen=misshapen, left_over=info["unexpected_keys"])
        check_finite(dict(model.named_parameters()), name)
        if name is not None:
            model.config.name_or_path = model.name_or_path = lasting_name(name)
        return (model, info) if output_loading_info else model

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """As everywhere in transformers.

        Raises:
            ValueError: an adapter that was attached with peft is still in the model; its weights would be lost.
        """
        if not getattr(self, "_hf_peft_config_loaded", False) and any(
            isinstance(m, BaseTunerLayer) for m in self.modules()
        ):
            raise ValueError(
                f"This {type(self).__name__} still holds an adapter, which would not load again with it. Save its "
                "PeftModel, or call merge_and_unload(), bake() or unload() first."
            )
        super().save_pretrained(save_directory, *args, **kwargs)

    def _upload_modified_files(self, working_dir, repo_id, *args, **kwargs):
        from .cards import write_card  # instead of transformers' empty card

        write_card(self, working_dir, repo_id=repo_id)
        return super()._upload_modified_files(working_dir, repo_id, *args, **kwargs)

    def get_input_embeddings(self) -> nn.Module:
        """The image model's patch embedding, whose output gradient checkpointing makes require a gradient."""
        return find_backbone(self).model.get_input_embeddings()

    def with_stdha(self, time_offsets: list[int] | dict[int, int] | None = None, *, causal: bool = False) -> Self:
        """Make STDHA (arXiv 2310.01324) a part of the model, so that any tuner of peft can be attached to it.

        Args:
            time_offsets, causal: as in `STDHAConfig`.

        Returns:
            This model. Its configuration holds the offsets.
        """
        backbone = find_backbone(self)
        stdha = STDHAConfig(num_frames=self.config.num_frames, time_offsets=time_offsets, causal=causal)
        stdha.resolve(backbone)
        for layer, block in enumerate(backbone.blocks.values()):
            block.time_offsets = stdha.head_time_offsets(layer)
        backbone.model.last_frames = self.config.num_frames if causal else None
        self.config.describe_time(self)
        return self

    @torch.no_grad()
    def _init_weights(self, module):
        if isinstance(module, VideoEmbeddings):
            if module.temporal_embedding is not None:
                init.zeros_(module.temporal_embedding)
        elif isinstance(module, nn.Linear):  # the classifier; the image model initialises itself
            init.trunc_normal_(module.weight, std=0.02)
            init.zeros_(module.bias)


class I2VModel(I2VPreTrainedModel):
    """A video model without a head: (B, T, C, h, w) → a clip feature (B, D).

    Args:
        config: of the video model.
        image_model: the image model to use, which becomes a part of this one; None: a new one as `config` says.
    """

    _keys_to_ignore_on_load_unexpected = [r"^classifier\."]  # of the model with a head that it is read from

    def __init__(self, config: I2VConfig, image_model: nn.Module | None = None):
        super().__init__(config)
        self.image_model = image_model_from_config(config) if image_model is None else image_model
        backbone = find_backbone(self.image_model)
        to_video(backbone)
        config.time_record().apply(backbone, config.num_frames)
        config.feature_reads_prefix = self.image_model.feature_reads_prefix  # no trial on the meta device
        check_limit("number of parameters", sum(p.numel() for p in self.parameters()), MAX_PARAMETERS)
        self._no_split_modules = list(getattr(self.image_model, "_no_split_modules", None) or [])
        self.post_init()

    @classmethod
    def from_video_backbone(cls, image_model: nn.Module, *, num_frames: int, methods: list[str]) -> "I2VModel":
        """Wrap an adapted and merged backbone in a model that saves and loads.

        Args:
            image_model: which takes clips by now.
            num_frames: frames per clip T.
            methods: names of those that were merged or baked in.
        """
        name = image_model.name_or_path  # read first: `I2VConfig` clears the name in the image configuration
        config = I2VConfig(image_config=image_model.config, num_frames=num_frames, methods=methods)
        config.base_model, config.preprocessing = hub_name(name), known_preprocessing(name)
        config.describe_time(image_model)
        keep_from_initialisation(image_model)
        return cls(config, image_model).train(image_model.training)

    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        num_frames: int | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPooling | tuple:
        """Clips → clip features.

        Args:
            pixel_values: (B, T, C, h, w), or (B·T, C, h, w) together with `num_frames`; normalised, floating-point.
            num_frames: T; only needed for 4-D pixels.
            return_dict: False: a tuple. None: as the configuration says.
            kwargs: `frozen_features`, which are `FrozenFeatures` instead of pixels, for a model with a side branch
                (M-adapter) or with adapters of the last blocks; and arguments of the image model
                (`output_hidden_states`, `output_attentions`, …).

        Returns:
            `pooler_output` (B, D), `last_hidden_state` (B, T, N, D), and any further output as (B, T, …).
        """
        for name in ("output_hidden_states", "output_attentions"):
            if kwargs.get(name) is None:  # None: the image model's configuration decides
                kwargs[name] = getattr(self.config, name) or None
        return_dict = self.config.return_dict if return_dict is None else return_dict
        return self.image_model(pixel_values, num_frames=num_frames, return_dict=return_dict, **kwargs)

    def _run_step(self, frames_SChw: torch.Tensor, step: Step) -> torch.Tensor:
        return self(frames_SChw, num_frames=1, step=step, return_dict=True).pooler_output


class I2VForVideoClassification(I2VPreTrainedModel):
    """A video model with a classifier: clip feature → dropout → linear → logits (B, num_labels).

    Made by `from_image_model` or `from_pretrained`.

    Args:
        config: of the video model.
        image_model: the image model to use, which becomes a part of this one; None: a new one as `config` says.
    """

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
        pretrained_model_name_or_path: str | os.PathLike | PreTrainedModel,
        *,
        num_frames: int = 8,
        num_labels: int | None = None,
        id2label: dict[int, str] | None = None,
        label2id: dict[str, int] | None = None,
        image_processor: BaseImageProcessor | str | os.PathLike | None = None,
        allow_random_base: bool = False,
        ignore_mismatched_sizes: bool = False,
        output_loading_info: bool = False,
        **kwargs: Any,
    ) -> Self:  # and the dictionary, where it is asked for; as transformers types its own
        """A video model from an image model, ready to be adapted. Its classifier is new.

        Args:
            pretrained_model_name_or_path: a folder or a Hub repository with a vision transformer, or with a model
                that holds one (CLIP, an image classifier); or such a model in memory. That stays an image model and
                shares its weights with the video model, so that merging an adapter into the one changes both.
            num_frames: frames per clip T.
            num_labels, id2label, label2id: as everywhere in transformers.
            image_processor: how the image model wants its pixels: its processor, or a folder or repository with one.
                None: as the checkpoint says.
            allow_random_base: accept a checkpoint that leaves weights of the backbone uninitialised.
            ignore_mismatched_sizes: accept weights of other shapes in the checkpoint; the model's are random then.
            output_loading_info: also return transformers' dictionary of keys that were missing and so on.
            kwargs: for the video model's configuration (`classifier_dropout`, `problem_type`, `return_dict`, …), else
                for the image model's `from_pretrained` (`dtype`, `attn_implementation`, `revision`, `subfolder`, …).

        Raises:
            ValueError: the checkpoint lacks weights of the backbone or has them in another shape, or arguments
                contradict each other.
            UnsupportedBackboneError: the model is no vision transformer that can be adapted.
        """
        if num_frames < 1:
            raise ValueError(f"num_frames ({num_frames}) must be >= 1")
        if id2label is not None and not isinstance(id2label, dict):
            raise ValueError(f"id2label ({id2label!r:.80}) must be a dictionary, {{0: 'first', 1: 'second', …}}.")
        if id2label is not None and num_labels not in (None, len(id2label)):
            raise ValueError(f"num_labels is {num_labels}, but id2label names {len(id2label)} classes.")
        options = video_arguments(kwargs)
        kwargs = {key: value for key, value in kwargs.items() if key not in options}
        name, hub, info = pretrained_model_name_or_path, hub_arguments(kwargs), {}
        if isinstance(name, nn.Module):
            image_model = image_model_in_memory(name, kwargs)
            name = getattr(name, "name_or_path", "")
        else:
            image_model, info = pretrained_image_model(name, allow_random_base, ignore_mismatched_sizes, kwargs)
        if image_processor is not None:
            preprocessing = preprocessing_of(image_processor)
        else:
            preprocessing = known_preprocessing(name, **hub)
        if id2label is not None and label2id is None:
            label2id = {name: i for i, name in id2label.items()}
        labels = {"id2label": id2label, "label2id": label2id}
        labels = {key: value for key, value in labels.items() if value is not None}
        if id2label is None and num_labels is not None:
            labels["num_labels"] = num_labels
        config = I2VConfig(
            image_config=image_model.config,
            **{"num_frames": num_frames, "base_model": hub_name(name), "preprocessing": preprocessing, **options},
            **labels,
        )
        keep_from_initialisation(image_model)
        model = cls(config, image_model).eval()
        model.classifier.to(image_model.device, image_model.dtype)
        model.config.name_or_path = model.name_or_path = lasting_name(name)
        if not output_loading_info:
            return model
        return model, info | {"missing_keys": {*info.get("missing_keys", ()), "classifier.weight", "classifier.bias"}}

    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        num_frames: int | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> ImageClassifierOutput | tuple:
        """Clips → logits, and the loss.

        Args:
            pixel_values, num_frames, return_dict, kwargs: as in `I2VModel.forward`: (B, T, C, h, w).
            labels: (B,) class indices; for other problem types as in transformers' sequence classification.

        Returns:
            `logits` (B, num_labels), and `loss` when `labels` are given.
        """
        outputs = self.i2v(pixel_values, num_frames=num_frames, prefix_only=True, return_dict=True, **kwargs)
        feature_BD = outputs.pooler_output
        logits = self.classifier(self.dropout(feature_BD.to(self.classifier.weight.dtype)))
        loss = None if labels is None else self.loss_function(labels, logits, self.config)
        outputs = ImageClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )
        return_dict = self.config.return_dict if return_dict is None else return_dict
        return outputs if return_dict else outputs.to_tuple()

    def _run_step(self, frames_SChw: torch.Tensor, step: Step) -> torch.Tensor:
        return self(frames_SChw, num_frames=1, step=step, return_dict=True).logits
