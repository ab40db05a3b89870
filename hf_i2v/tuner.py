"""The life cycle that all methods share: attach, merge, unload. One peft tuner for every configuration."""

import copy
import difflib
import re
import warnings
from contextlib import nullcontext
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from torch import nn

from .backbones import Backbone, find_backbone, without_peft
from .block import BlockLayer, I2VLayer
from .merging import keep_as_own, merge_layers
from .methods.config import I2VTunerConfig, config_from_dict, method_to_dict
from .methods.site import SITE_NAMES
from .modeling_i2v import I2VModel, I2VPreTrainedModel
from .quantized import dequantize, is_quantized, warn_dequantized
from .trained_on import check_trained_on
from .untrusted import check_complete
from .video import BackboneLayer, EmbeddingsLayer, VideoBackbone, to_image, to_video


class I2VTuner(BaseTuner):
    """Attaches a method to the vision transformer inside `model`, which then takes clips (B, T, C, h, w).

    A tuner layer is added beside the parts of each adapted block (`sites`), of the embeddings (`temporal`) and of the
    whole backbone (`clip_head`). The model's own modules keep their names.

    Made by `get_peft_model`, which passes `args` and `kwargs`. Raises ValueError where the model holds a tuner
    already, or cannot take the method.
    """

    prefix = "i2v_"
    tuner_layer_cls = I2VLayer

    def __init__(self, model: nn.Module, *args: Any, **kwargs: Any):
        layers = [m for m in model.modules() if isinstance(m, (BaseTunerLayer, PeftModel))]
        if any(isinstance(layer, I2VLayer) for layer in layers):
            raise ValueError(
                "This model was adapted already. To add an adapter of the same method, call add_adapter(name, config) "
                "on its PeftModel; compose methods as ConfigA(...) + ConfigB(...); or call unload() first."
            )
        if layers:
            raise ValueError(
                f"This model was adapted already, by another tuner of peft ({type(layers[0]).__name__}). "
                "A merge or a saved adapter of hf_i2v would lose that tuner's weights. Call its merge_and_unload() or "
                "unload() first. To train another tuner together with STDHA, attach it to model.with_stdha()."
            )
        super().__init__(model, *args, **kwargs)

    def _prepare_adapter_config(self, peft_config: I2VTunerConfig, model_config: dict) -> I2VTunerConfig:
        return peft_config

    def _prepare_model(self, peft_config: I2VTunerConfig, model: nn.Module) -> None:
        """Resolve and check the configuration against the model, before anything is changed."""
        backbone = find_backbone(model)
        check_trained_on(peft_config, model, backbone)
        peft_config.num_frames = _agreed_num_frames(peft_config, model)
        peft_config.resolve(backbone)
        if backbone.model._modules.get("baked_branch") is not None:
            baked = map(config_from_dict, backbone.model.baked_methods)
            branch = next(method.title for method in baked if method.has_branch)
            raise ValueError(
                f"{type(peft_config).__name__} would never learn on this model: its baked side branch ({branch}) "
                "runs the frozen model without a graph, so no gradient reaches an adapter. Adapt the image model "
                "instead."
            )
        foreign_head = backbone.name and hasattr(model, "classifier") and not hasattr(model, "i2v")
        if foreign_head and peft_config.has_branch:
            raise ValueError(
                f"{type(peft_config).__name__} changes the clip feature only, which {type(model).__name__} does not "
                "read. Use I2VForVideoClassification.from_image_model(...) with it."
            )
        peft_config.modules_to_save = _modules_to_save(peft_config, model, backbone)
        peft_config.describe_model(model, backbone)

        if "_was_image_model" not in self.__dict__:
            self._was_image_model = not isinstance(backbone.model, VideoBackbone)
        to_video(backbone)
        self._layers = {name: i for i, name in enumerate(backbone.blocks) if peft_config.adapts(i)}
        self._embeddings = backbone.embeddings_path if peft_config.uses_temporal_embedding else None
        self._backbone = backbone

    def _check_target_module_exists(self, peft_config: I2VTunerConfig, key: str) -> bool:
        return key in self._layers or key == self._embeddings

    def _enable_peft_forward_hooks(self, *args, adapter_names: list[str] | None = None, **kwargs):
        if adapter_names is not None:
            raise ValueError(
                f"adapter_names={adapter_names} in a forward pass: mixed batches are not supported. Call "
                "set_adapter(name) and run the clips of each adapter by themselves."
            )
        return nullcontext()

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        """As in peft: to float32, or to the model's dtype."""
        super()._cast_adapter_dtype(adapter_name, autocast_adapter_dtype)
        if not autocast_adapter_dtype:
            for name, parameter in self.model.named_parameters():
                if _is_of(name, adapter_name) and parameter.is_floating_point():
                    parameter.data = parameter.data.to(self._backbone.first_block.dtype)

    def inject_adapter(
        self,
        model: nn.Module,
        adapter_name: str,
        *args: Any,
        state_dict: dict[str, torch.Tensor] | None = None,
        **kwargs: Any,
    ) -> None:
        """As in peft. The configuration alone says where the modules go; a `state_dict` must agree with it."""
        # `resolve` fills in values of this model. The caller may use the configuration for another model.
        self.peft_config[adapter_name] = copy.deepcopy(self.peft_config[adapter_name])
        self._inject(model, adapter_name, *args, **kwargs)
        if state_dict is not None:
            self._check_state_dict(model, adapter_name, state_dict)

    def _check_state_dict(self, model: nn.Module, adapter_name: str, state_dict: dict[str, torch.Tensor]) -> None:
        """Raise ValueError if weights, named as peft saves them, are not those of the injected modules."""
        keys = {key.removeprefix("base_model.model.") for key in state_dict if self.prefix in key}
        own = {
            self._remove_adapter_name_from_key(key, adapter_name)
            for key in model.state_dict()
            if _is_of(key, adapter_name)
        }
        if keys != own:
            raise ValueError(
                f"The state_dict does not belong to this {type(self.peft_config[adapter_name]).__name__}: it lacks "
                f"{sorted(own - keys)[:3]}, and {sorted(keys - own)[:3]} have no place. Give the configuration that "
                "the weights were saved with."
            )

    def _inject(self, model: nn.Module, adapter_name: str, *args, **kwargs) -> None:
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        # The backbone may be the model itself, and peft's loop visits submodules only: so it gets its layer here.
        config, backbone = self.peft_config[adapter_name], self._backbone.model
        with torch.device("meta") if kwargs.get("low_cpu_mem_usage") else nullcontext():
            branch = config.branch_module(self._backbone)
        if branch is None and not config.pooling and not config.causal:
            return
        if "clip_head" not in backbone._modules:
            backbone.clip_head = BackboneLayer(adapter_name)
        if config.pooling:
            backbone.clip_head.pooling[adapter_name] = config.pooling
        if config.causal:
            own = getattr(getattr(model, "config", None), "num_frames", None)
            backbone.clip_head.last_frames[adapter_name] = own or config.num_frames
        if branch is not None:
            backbone.clip_head.i2v_branch[adapter_name] = _moved(branch, next(backbone.parameters()))
        backbone.clip_head.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def _create_and_replace(self, peft_config, adapter_name, target, target_name, parent, current_key) -> None:
        if current_key == self._embeddings:
            self._add_temporal_embedding(peft_config, adapter_name, target)
        else:
            self._add_sites(peft_config, adapter_name, target, self._layers[current_key])

    def _add_sites(self, config: I2VTunerConfig, adapter_name: str, block: nn.Module, layer: int) -> None:
        if "sites" not in block._modules:
            block.sites = BlockLayer(block, adapter_name)
        place = next(block.parameters())
        for site, method, module in config.block_modules(self._backbone, layer):
            adapters = block.sites.adapters_at(site)
            if adapter_name not in adapters:
                adapters[adapter_name] = nn.ModuleDict()
            adapters[adapter_name][method] = _moved(module, place)
            adapters[adapter_name].requires_grad_(adapter_name in self.active_adapters)
        if offsets := config.head_time_offsets(layer):
            block.sites.time_offsets[adapter_name] = offsets

    def _add_temporal_embedding(self, config: I2VTunerConfig, adapter_name: str, embeddings: nn.Module) -> None:
        if "temporal" not in embeddings._modules:
            embeddings.temporal = EmbeddingsLayer(adapter_name)
        zeros_TD = torch.zeros(config.num_frames, self._backbone.hidden_size)
        adapters = embeddings.temporal.i2v_embedding
        adapters[adapter_name] = nn.Parameter(_moved(zeros_TD, next(embeddings.parameters())))
        adapters[adapter_name].requires_grad_(adapter_name in self.active_adapters)

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        """`…sites.i2v_<site>.<adapter>.<method>.down.weight`: the adapter's name is not the last part of the key."""
        places = rf"(\bsites\.i2v_(?:{'|'.join(SITE_NAMES)})|\bclip_head\.i2v_branch)\.{re.escape(adapter_name)}\."
        without, found = re.subn(places, r"\1.", key)
        return without if found else super()._remove_adapter_name_from_key(key, adapter_name)

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: I2VTunerConfig, adapter_name: str, state_dict: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Raise ValueError if tensors of the adapter are missing or left over: peft would go on."""
        state_dict = super()._remap_adapter_state_dict_for_load(model, config, adapter_name, state_dict)
        own = model.state_dict().keys()
        of_adapter = re.compile(rf"\.{cls.prefix}\w+\.{re.escape(adapter_name)}(\.|$)")
        missing = {key for key in own - state_dict.keys() if of_adapter.search(key)}
        check_complete(f"the adapter {adapter_name!r}", missing=missing, left_over=state_dict.keys() - own)
        return state_dict

    def merge_adapter(self, adapter_names: list[str] | None = None, safe_merge: bool = False) -> None:
        """Merge the linear adapters of all blocks into the weights. `unmerge_adapter` undoes it, and so does an error.

        Args:
            adapter_names: those to merge; None: the active ones.
            safe_merge: refuse weights that are not finite.

        Raises:
            ValueError: an adapter that is unknown, cannot be merged or, with `safe_merge`, is not finite.
        """
        self._check_mergeable(adapter_names or self.active_adapters, safe_merge)
        merge_layers(self._tuner_layers(), check=safe_merge, adapter_names=adapter_names)

    def _unload_and_optionally_merge(self, merge=True, progressbar=False, safe_merge=False, adapter_names=None):
        """Take all tuner layers out. After a merge the model computes the same as with the adapter.

        A bare vision model that was merged is returned inside an `I2VModel`. As a plain image model it would run and
        silently ignore time.
        """
        if merge:
            self._check_mergeable(adapter_names or self.active_adapters, safe_merge)
            return self._finish(adapter_names or self.active_adapters, safe_merge)
        for layer in self._tuner_layers():
            layer.unmerge()
        for module in self.model.modules():
            if isinstance(module, ModulesToSaveWrapper):
                module.set_adapter([])  # else peft leaves the trained copy in place of the original
        self._remove_tuner_layers()
        if isinstance(self.model, I2VPreTrainedModel):
            self.model.config.describe_time(self.model)
        elif self._was_image_model:
            to_image(self._backbone)
        return self.model

    def bake(self) -> nn.Module:
        """Make the active adapter a part of the model, for methods that cannot be merged into its weights.

        Linear adapters are merged, unless a method uses the attention twice. The other modules become the model's own.
        The result saves and loads as one model (`I2VForVideoClassification`, or `I2VModel` for a bare vision model).

        Raises:
            ValueError: several adapters are active, or the method is in the model already.
        """
        if len(self.active_adapters) != 1:
            raise ValueError(f"bake() takes one active adapter, but {self.active_adapters} are active.")
        baked = {method["peft_type"] for method in self._backbone.model.baked_methods}
        if twice := sorted(baked & {part.peft_type.value for part in self._parts(self.active_adapters)}):
            raise ValueError(f"The model has a baked {' and '.join(twice)} already.")
        return self._finish(self.active_adapters)

    def _parts(self, adapter_names: list[str]) -> list[I2VTunerConfig]:
        """The methods of the adapters."""
        return [part for name in adapter_names for part in self.peft_config[name].parts()]

    def _check_mergeable(self, adapter_names: list[str], safe_merge: bool) -> None:
        """Raise ValueError if an adapter is unknown, does not fold or, with `safe_merge`, is not finite."""
        if unknown := sorted(set(adapter_names) - set(self.peft_config)):
            raise ValueError(f"There is no adapter {unknown[0]!r} to merge, only {list(self.peft_config)}.")
        for name in adapter_names:
            if stuck := sorted(part.method_name for part in self._parts([name]) if not part.merges):
                raise ValueError(
                    f"The adapter {name!r} cannot be merged: {', '.join(stuck)} is no linear map of the "
                    "weights. Call bake() instead: it makes the adapter a part of the model, which saves and loads as "
                    "one. Or keep the adapter."
                )
        for baked in self._backbone.model.baked_methods:
            if config_from_dict(baked).reuses_attention:
                raise ValueError(
                    f"Nothing can be merged into this model: its baked {baked['peft_type']} uses the attention twice, "
                    "so merged weights would act twice. Keep the adapter as it is."
                )
        if not safe_merge:
            return
        for path, module in self.model.named_modules():  # final norm and classifier
            if isinstance(module, ModulesToSaveWrapper):
                for name in set(adapter_names) & set(module.modules_to_save):
                    if not all(torch.isfinite(p).all() for p in module.modules_to_save[name].parameters()):
                        raise ValueError(f"NaNs detected in {path}. The adapter {name} seems to be broken")

    def _finish(self, adapter_names: list[str], safe_merge: bool = False) -> nn.Module:
        """Fold linear adapters into the weights, make all else the model's own, and take the tuner layers out."""
        backbone, before = self._backbone, list(self.active_adapters)
        parts = self._parts(adapter_names)
        methods = [*parts, *map(config_from_dict, backbone.model.baked_methods)]
        if list(adapter_names) != before:
            self.set_adapter(adapter_names)
        if not any(method.reuses_attention for method in methods):  # folded weights would act twice
            try:
                merge_layers([layer for layer in self._tuner_layers() if not layer.merged], check=safe_merge)
            except BaseException:
                self.set_adapter(before)
                raise
        num_frames = self._num_frames()
        kept = keep_as_own(backbone, num_frames)
        own = [method_to_dict(part) for part in parts if part.has_branch or part.method_name in kept]
        backbone.model.baked_methods = [*backbone.model.baked_methods, *own]
        self._remove_tuner_layers()
        if any(map(is_quantized, self.model.modules())):
            warn_dequantized("The finished model", backbone.first_block.dtype)
        dequantize(self.model, backbone.first_block.dtype)

        names = [part.method_name for part in parts]
        if isinstance(self.model, I2VPreTrainedModel):
            self.model.config.describe_time(self.model)
            self.model.config.methods = [*(self.model.config.methods or []), *names]
        elif backbone.name == "":
            return I2VModel.from_video_backbone(self.model, num_frames=num_frames, methods=names)
        else:
            warnings.warn(
                f"The merged {type(self.model).__name__} has its time offsets and temporal embedding in memory only. "
                "Saved and loaded again it would be the image model. For a model that can be saved, adapt its vision "
                "model or build an I2VForVideoClassification from it.",
                stacklevel=3,
            )
        return self.model

    def _remove_tuner_layers(self) -> None:
        """Take the tuner layers and the copies of `modules_to_save` out of the model."""
        super()._unload_and_optionally_merge(merge=False, progressbar=False)
        for module in (*self._backbone.blocks.values(), self._backbone.embeddings, self._backbone.model):
            for layer in ("sites", "temporal", "clip_head"):
                module._modules.pop(layer, None)

    def _tuner_layers(self) -> list[I2VLayer]:
        return [module for module in self.model.modules() if isinstance(module, I2VLayer)]

    def _num_frames(self) -> int:
        """Frames per clip: the model's `num_frames`, else the adapter's."""
        own = getattr(getattr(self.model, "config", None), "num_frames", None)
        return own or self.peft_config[self.active_adapters[0]].num_frames


def _is_of(key: str, adapter_name: str) -> bool:
    """Whether a parameter of the adapted model belongs to the adapter."""
    return I2VTuner.prefix in key and f".{adapter_name}." in f"{key}."


def _moved(new: nn.Module | torch.Tensor, place: torch.Tensor) -> nn.Module | torch.Tensor:
    """A new module or tensor on the device of `place`, unless it is being created on the meta device."""
    tensors = [new] if isinstance(new, torch.Tensor) else new.parameters()
    return new if any(tensor.is_meta for tensor in tensors) else new.to(place.device)


def _agreed_num_frames(config: I2VTunerConfig, model: nn.Module) -> int:
    own = getattr(getattr(model, "config", None), "num_frames", None)
    if config.num_frames is None and own is None:
        raise ValueError(
            f"{type(config).__name__} needs num_frames: {type(model).__name__} is an image model without a number of "
            f"frames. Use {type(config).__name__}(num_frames=8), for example."
        )
    if own is not None and config.num_frames not in (None, own) and config.trained_on is None:
        raise ValueError(
            f"{type(config).__name__} has num_frames={config.num_frames}, but the model was made for {own} frames. "
            "Leave num_frames out, or make the model for that number of frames."
        )
    return own if config.num_frames is None else config.num_frames  # an adapter from disk keeps its own


def _modules_to_save(config: I2VTunerConfig, model: nn.Module, backbone: Backbone) -> list[str] | None:
    """The caller's modules_to_save, and the final norm and classifier that the method trains.

    Raises:
        ValueError: a name that the model does not have, or a module that cannot train.
    """
    names = list(config.modules_to_save or [])
    modules = dict(model.named_modules())
    for name in names:
        chosen = {key: module for key, module in modules.items() if key.endswith(name)}  # as peft matches them
        if not chosen:
            known = sorted({key.rpartition(".")[2] for key in modules if key})
            near = difflib.get_close_matches(name, known) or [name for name, _ in model.named_children()]
            raise ValueError(
                f"modules_to_save has {name!r}, but {type(model).__name__} has no such module. Did you mean one of "
                f"{near}?"
            )
        for key, module in chosen.items():
            if reason := _why_not_trainable(module, config, backbone):
                raise ValueError(f"modules_to_save has {name!r}, but {key} {reason}")
        inside = [key for key in chosen if key.startswith(backbone.name)]
        if inside and config.has_branch:
            raise ValueError(
                f"modules_to_save has {inside[0]!r}, which would never learn: {type(config).__name__} runs the frozen "
                "model without a graph, so no gradient reaches it. Leave it out."
            )
        if any(is_quantized(part) for module in chosen.values() for part in module.modules()):
            raise ValueError(f"modules_to_save has {name!r}, which is quantised and cannot train. Leave it out.")
    if config.trains_final_norm:
        names.append(backbone.final_norm_path)
    if hasattr(model, "classifier"):
        names.append("classifier")
    return list(dict.fromkeys(names)) or None


def _why_not_trainable(module: nn.Module, config: I2VTunerConfig, backbone: Backbone) -> str | None:
    """Why a module cannot be trained beside the adapter, or None. peft runs a copy of it, on which no method acts."""
    parts, blocks = backbone.parts, list(backbone.blocks.values())
    acting = {backbone.model, backbone.embeddings, *blocks}
    acting |= {getattr(block, name) for block in blocks for name in (parts.attention, parts.mlp)}
    if acting & set(module.modules()):
        inside = sorted({name for part in {module} & acting for name, _ in part.named_children()})
        named = f" ({', '.join(inside)})" if inside else ""
        return f"holds modules that hf_i2v changes, and cannot be trained whole. Name layers inside it{named}."
    folded = {
        without_peft(getattr(getattr(block, owner), name))
        for part in config.parts()
        for site in part.folding_sites()
        for block in blocks
        for owner, name in parts.projections(site)
    }
    if without_peft(module) in folded:
        return f"is a projection that {type(config).__name__}'s linear adapters fold into. Leave one of the two out."
    return None
