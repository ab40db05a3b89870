"""Load a trained adapter from its folder alone: the model that it was trained on is rebuilt first."""

import json
from pathlib import Path
from typing import Any

from peft import PeftConfig, PeftModel
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from transformers import AutoConfig
from transformers.utils import cached_file

from .backbones import find_backbone
from .configuration_i2v import VIDEO_MODEL_NAME, hub_arguments
from .methods.config import METHODS, I2VTunerConfig
from .modeling_i2v import I2VForVideoClassification
from .trained_on import has_other_weights
from .untrusted import check_finite, foreign_files


class AutoPeftModelForVideoClassification:
    """As peft's `AutoPeftModelFor…`: `from_pretrained(adapter)` gives the base model with the adapter on it.

    An OSError says so where the class itself is called.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        """Not to be called.

        Raises:
            OSError: always; as in peft, `from_pretrained` makes models.
        """
        raise OSError(f"Use {type(self).__name__}.from_pretrained(pretrained_model_name_or_path).")

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str,
        adapter_name: str = "default",
        is_trainable: bool = False,
        config: PeftConfig | None = None,
        revision: str | None = None,
        low_cpu_mem_usage: bool = False,
        base_model_name_or_path: str | None = None,
        **kwargs: Any,
    ) -> PeftModel:
        """The base model, rebuilt, with a trained adapter on it.

        Args:
            pretrained_model_name_or_path: folder or Hub repository of an adapter of hf_i2v; or of another tuner of
                peft (LoRA) on a video model of hf_i2v, saved by the training script or with `hf_i2v.cards.write_card`.
            adapter_name, is_trainable, revision, low_cpu_mem_usage: as in peft.
            config: used instead of the saved configuration.
            base_model_name_or_path: where the base is, if it has moved.
            kwargs: for the base model's `from_pretrained` (`dtype`, `device_map`, `quantization_config`, …; also
                `num_frames`, for clips of another length than in training), and for the download of both (`token`,
                `cache_dir`, …).

        Returns:
            The adapter on its base, with its saved classifier and label names.

        Raises:
            ValueError: not an adapter of hf_i2v, one without a classifier, one whose base cannot be rebuilt, or a
                weight that is missing, misshapen, left over or not finite.
            OSError: there are no weights in safetensors, or no such base.
        """
        where = hub_arguments(kwargs) | {"revision": revision}
        of_the_base = {key: value for key, value in kwargs.items() if key != "subfolder"}
        with foreign_files(pretrained_model_name_or_path):
            if config is None:
                config = _saved_config(pretrained_model_name_or_path, revision=revision, **kwargs)
            if base_model_name_or_path is not None:
                config.base_model_name_or_path = str(base_model_name_or_path)
            base = _base_model(config, str(pretrained_model_name_or_path), where, of_the_base)
            of_base = {id(p) for p in base.parameters()}  # checked when the base was loaded
            cached_file(pretrained_model_name_or_path, SAFETENSORS_WEIGHTS_NAME, **where)  # peft would read a pickle
            kwargs.pop("num_frames", None)
            model = PeftModel.from_pretrained(
                base,
                pretrained_model_name_or_path,
                adapter_name=adapter_name,
                is_trainable=is_trainable,
                config=config,
                revision=revision,
                low_cpu_mem_usage=low_cpu_mem_usage,
                **kwargs,
            )
        own = {name: p for name, p in model.named_parameters() if id(p) not in of_base}
        check_finite(own, pretrained_model_name_or_path)
        return model


def _saved_config(adapter: str, **kwargs: Any) -> PeftConfig:
    try:
        return PeftConfig.from_pretrained(adapter, **kwargs)
    except KeyError as error:  # peft's tables have no such type
        raise ValueError(
            f"{adapter} is of the method {str(error).lower()}, which is none of {list(METHODS)} and none of peft. If "
            "it is a method of its own, import the file that registers it first; a model finished with bake() or "
            "merge_and_unload() has that file beside its weights."
        ) from error


def _video_model(config: PeftConfig, adapter: str, where: dict) -> dict | None:
    """What an adapter tells of its video model, `I2VConfig.rebuilding_facts`; None if it was another model."""
    if isinstance(config, I2VTunerConfig):
        return (config.trained_on or {}).get("video_model")
    path = cached_file(adapter, VIDEO_MODEL_NAME, _raise_exceptions_for_missing_entries=False, **where)
    if path is None:
        raise ValueError(
            f"{adapter} is a {config.peft_type.value} adapter, not one of hf_i2v, and has no {VIDEO_MODEL_NAME} that "
            "describes its video model. Build that model again (from_image_model(...), and with_stdha(...) if it "
            "shifted heads in time), load the adapter with peft.PeftModel.from_pretrained(model, adapter), and call "
            "hf_i2v.cards.write_card(model, folder) to write that file."
        )
    return json.loads(Path(path).read_text())


def _base_model(config: PeftConfig, adapter: str, where: dict, kwargs: dict) -> I2VForVideoClassification:
    video = _video_model(config, adapter, where)
    base = config.base_model_name_or_path
    if video is None:
        raise ValueError(
            f"{adapter} was trained on a model without a classifier of hf_i2v. Load it with "
            f"peft.PeftModel.from_pretrained(model, adapter), on the vision model of {base!r}."
        )
    if base is None:
        raise ValueError(
            f"{adapter} does not name the model that it was trained on (base_model_name_or_path is None), which "
            "was made in code. Load the adapter with peft.PeftModel.from_pretrained(model, adapter)."
        )
    if config.revision is not None:
        kwargs = {**kwargs, "revision": config.revision}
    id2label = {int(i): name for i, name in video["id2label"].items()}
    labels = {"id2label": id2label, "label2id": {name: i for i, name in id2label.items()}}
    try:
        base_type = AutoConfig.from_pretrained(base, **hub_arguments(kwargs)).model_type
    except OSError as error:
        raise OSError(
            f"{adapter} was trained on {base!r}, which is not found here ({str(error).splitlines()[0]}). Say where it "
            "is now: from_pretrained(adapter, base_model_name_or_path=…)."
        ) from error
    if base_type == I2VForVideoClassification.config_class.model_type:
        model = I2VForVideoClassification.from_pretrained(base, ignore_mismatched_sizes=True, **labels, **kwargs)
        finished = video.get("pooling", model.config.pooling) != model.config.pooling
    else:
        options = {key: video[key] for key in ("num_frames", "classifier_dropout")}
        model = I2VForVideoClassification.from_image_model(base, **labels, **{**options, **kwargs})
        finished = video["finished_in_memory"]
    backbone = find_backbone(model)
    if finished or has_other_weights(getattr(config, "trained_on", None) or {}, backbone.model):
        raise ValueError(
            f"{adapter} was trained on a model that had been changed in memory (finished by merging or baking, or "
            f"trained): {base!r} has other weights. Save that model, and pass its path as base_model_name_or_path=. "
            "To move the adapter to these weights all the same, use "
            "peft.PeftModel.from_pretrained(model, adapter)."
        )
    model.config.time_offsets, model.config.causal = video["time_offsets"], video.get("causal", False)
    model.config.time_record().apply(backbone, model.config.num_frames)
    return model
