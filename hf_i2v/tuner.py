"""The life cycle that all methods share: attach, merge, unload. One peft tuner for every configuration."""

import copy
import difflib
import re
import warnings
from contextlib import nullcontext

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from torch import nn
from transformers.utils.output_capturing import maybe_install_capturing_hooks

from .backbones import Backbone, find_backbone, without_peft
from .block import I2VLayer, Sites
from .composition import config_from_dict, method_to_dict
from .config import SITES, I2VTunerConfig
from .methods.linear_adapter import MERGEABLE_SITES
from .quantized import dequantize, is_quantized, warn_dequantized
from .trained_on import check_trained_on
from .video import ClipHead, TemporalEmbedding, VideoBackbone, over_frames, to_image, to_video


class I2VTuner(BaseTuner):
    """Attaches a method to the vision transformer inside `model`, which then takes clips (B, T, C, h, w).

    A tuner layer is added beside the parts of each adapted block (`sites`) and of the embeddings (`temporal`); the
    model's own modules keep their names.
    """

    prefix = "i2v_"
    tuner_layer_cls = I2VLayer

    def __init__(self, model: nn.Module, *args, **kwargs):
        layers = [m for m in model.modules() if isinstance(m, (BaseTunerLayer, PeftModel))]
        if any(isinstance(layer, I2VLayer) for layer in layers):
            raise ValueError(
                "This model was adapted already. Give the PeftModel that you have another adapter of the same method "
                "with add_adapter(name, config), compose methods as ConfigA(...) + ConfigB(...), or call unload() "
                "first."
            )
        if layers:
            raise ValueError(
                f"This model was adapted already, by another tuner of peft ({type(layers[0]).__name__}): "
                "its weights would be lost in a merge or a file of this one. Call its merge_and_unload() or unload() "
                "first; to train another tuner together with STDHA, attach it to a video model with_stdha()."
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
            raise ValueError(
                f"{type(peft_config).__name__} would never learn on this model: its baked side branch (M-adapter) "
                "reads the frozen model without a graph, so no gradient comes back. Adapt the image model instead."
            )
        foreign_head = backbone.name and hasattr(model, "classifier") and not hasattr(model, "i2v")
        if foreign_head and peft_config.target_modules is not None:  # a side branch
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

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args, **kwargs) -> None:
        # what is filled in belongs to this model: the caller's configuration may serve for another
        self.peft_config[adapter_name] = copy.deepcopy(self.peft_config[adapter_name])
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        # afterwards, because the backbone may be the model itself, which peft's loop over submodules does not visit
        config, backbone = self.peft_config[adapter_name], self._backbone.model
        with torch.device("meta") if kwargs.get("low_cpu_mem_usage") else nullcontext():
            branch = config.branch_module(self._backbone)
        if branch is None and not config.pooling:
            return
        if "clip_head" not in backbone._modules:
            backbone.clip_head = ClipHead(adapter_name)
        if config.pooling:
            backbone.clip_head.pooling[adapter_name] = config.pooling
        if branch is not None:
            backbone.clip_head.i2v_branch[adapter_name] = _moved(branch, next(backbone.parameters()))
            maybe_install_capturing_hooks(backbone)  # it would at the first call, but not under torch.compile
        backbone.clip_head.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def _create_and_replace(self, peft_config, adapter_name, target, target_name, parent, current_key) -> None:
        if current_key == self._embeddings:
            self._add_temporal_embedding(peft_config, adapter_name, target)
        else:
            self._add_sites(peft_config, adapter_name, target, self._layers[current_key])

    def _add_sites(self, config: I2VTunerConfig, adapter_name: str, block: nn.Module, layer: int) -> None:
        if "sites" not in block._modules:
            block.sites = Sites(block, adapter_name)
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
            embeddings.temporal = TemporalEmbedding(adapter_name)
        zeros_TD = torch.zeros(config.num_frames, self._backbone.hidden_size)
        adapters = embeddings.temporal.i2v_embedding
        adapters[adapter_name] = nn.Parameter(_moved(zeros_TD, next(embeddings.parameters())))
        adapters[adapter_name].requires_grad_(adapter_name in self.active_adapters)

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        """`…sites.i2v_<site>.<adapter>.<method>.down.weight`: here the adapter's name does not stand at the end."""
        places = rf"(\.sites\.i2v_(?:{'|'.join(SITES)})|\.clip_head\.i2v_branch)\.{re.escape(adapter_name)}\."
        without, found = re.subn(places, r"\1.", key)
        return without if found else super()._remove_adapter_name_from_key(key, adapter_name)

    def _check_merge_allowed(self, adapter_names: list[str] | None = None) -> None:
        """Raise ValueError if an adapter has modules that do not fold into weights."""
        if unknown := sorted(set(adapter_names or []) - set(self.peft_config)):
            raise ValueError(f"There is no adapter {unknown[0]!r} to merge, only {list(self.peft_config)}.")
        for name in adapter_names or self.active_adapters:
            stuck = {m for sites in self._sites() for m in sites.methods_of(name, mergeable=False)}
            head = self._backbone.model._modules.get("clip_head")
            if head is not None and name in head.i2v_branch:
                stuck.add(self.peft_config[name].method_name)
            if stuck:
                raise ValueError(
                    f"The adapter {name!r} cannot be merged: {', '.join(sorted(stuck))} is no linear map of the "
                    "weights. Call bake() to make it a part of the model instead, which can then be saved and loaded "
                    "as one; or keep it as an adapter."
                )
        for baked in self._backbone.model.baked_methods:
            if config_from_dict(baked).reuses_attention:
                raise ValueError(
                    f"Nothing can be merged into this model: its baked {baked['peft_type']} uses the attention twice, "
                    "so merged weights would act twice. Keep the adapter as it is."
                )

    def _unload_and_optionally_merge(self, merge=True, progressbar=False, safe_merge=False, adapter_names=None):
        """Take all tuner layers out. Merged, the linear adapters are in the weights and the model keeps its time.

        A bare vision model that was merged comes back inside an `I2VModel`: as a plain image model it would run, but
        ignore time without a word.
        """
        layers = [m for m in self.model.modules() if isinstance(m, I2VLayer)]
        if merge:
            self._check_merge_allowed(adapter_names)
            if safe_merge:
                self._check_trained_copies(adapter_names or self.active_adapters)
            before = list(self.active_adapters)
            if adapter_names is not None:
                self.set_adapter(adapter_names)
            try:
                _merge_all([layer for layer in layers if not layer.merged], safe_merge)
            except BaseException:
                self.set_adapter(before)
                raise
            self._keep_time()
            return self._without_tuner_layers(progressbar, changed=True)
        for layer in layers:
            if layer.merged:
                layer.unmerge()
        for module in self.model.modules():
            if isinstance(module, ModulesToSaveWrapper):
                module.set_adapter([])  # peft would leave the trained copy in the place of the original
        return self._without_tuner_layers(progressbar, changed=False)

    def merge_adapter(self, adapter_names: list[str] | None = None, safe_merge: bool = False) -> None:
        """Merge the linear adapters of all blocks into the weights, to be unmerged again; all blocks or none.

        Raises:
            ValueError: an adapter that is unknown, cannot be merged or, with `safe_merge`, is not finite.
        """
        self._check_merge_allowed(adapter_names)
        if safe_merge:
            self._check_trained_copies(adapter_names or self.active_adapters)
        _merge_all([m for m in self.model.modules() if isinstance(m, I2VLayer)], safe_merge, adapter_names)

    def _check_trained_copies(self, adapter_names: list[str]) -> None:
        """Raise ValueError if the final norm or the classifier that was trained with an adapter is not finite."""
        for path, module in self.model.named_modules():
            if isinstance(module, ModulesToSaveWrapper):
                for name in set(adapter_names) & set(module.modules_to_save):
                    if not all(torch.isfinite(p).all() for p in module.modules_to_save[name].parameters()):
                        raise ValueError(f"NaNs detected in {path}. The adapter {name} seems to be broken")

    def bake(self) -> nn.Module:
        """Make the active adapter a part of the model, for methods that cannot be merged into its weights.

        Linear adapters are merged where that changes nothing; the other modules stay, as the model's own. The result
        saves and loads as one artefact (`I2VForVideoClassification`, or `I2VModel` for a bare vision model).

        Raises:
            ValueError: several adapters are active, or the method is in the model already.
        """
        if len(self.active_adapters) != 1:
            raise ValueError(f"bake() takes one active adapter, but {self.active_adapters} are active.")
        (name,) = self.active_adapters
        config, backbone = self.peft_config[name], self._backbone
        baked = {method["peft_type"] for method in backbone.model.baked_methods}
        if twice := sorted(baked & {part.peft_type.value for part in config.parts()}):
            raise ValueError(f"The model has a baked {' and '.join(twice)} already.")
        methods = [*config.parts(), *map(config_from_dict, backbone.model.baked_methods)]
        merge_linear = not any(method.reuses_attention for method in methods)
        kept = set()
        for block in backbone.blocks.values():
            if "sites" in block._modules:
                if merge_linear and not block.sites.merged:
                    block.sites.merge()
                kept |= block.bake(name, with_linear=not merge_linear)
        head = backbone.model._modules.get("clip_head")
        if head is not None and name in head.i2v_branch:
            backbone.model.baked_branch = head.i2v_branch[name].requires_grad_(False)
            kept.add(config.method_name)
        kept_parts = [part for part in config.parts() if part.method_name in kept]
        backbone.model.baked_methods = [*backbone.model.baked_methods, *map(method_to_dict, kept_parts)]
        self._keep_time()
        return self._without_tuner_layers(progressbar=False, changed=True)

    def _keep_time(self) -> None:
        """What the working adapters do in time becomes the model's own: offsets, temporal embedding, pooling."""
        backbone = self._backbone
        for block in backbone.blocks.values():
            shift = block.sites.shift() if "sites" in block._modules else None
            block.time_offsets = block.time_offsets if shift is None else shift
        if "temporal" in backbone.embeddings._modules:
            _keep_temporal_embedding(backbone.embeddings, self._num_frames())
        backbone.model.pooling = backbone.model.working_pooling()

    def _without_tuner_layers(self, progressbar: bool, *, changed: bool) -> nn.Module:
        from .modeling_i2v import I2VModel, I2VPreTrainedModel

        names = [part.method_name for name in self.active_adapters for part in self.peft_config[name].parts()]
        super()._unload_and_optionally_merge(merge=False, progressbar=progressbar)
        backbone = find_backbone(self.model)
        for module in (*backbone.blocks.values(), backbone.embeddings, backbone.model):
            for layer in ("sites", "temporal", "clip_head"):
                module._modules.pop(layer, None)
        if changed:
            if any(map(is_quantized, self.model.modules())):
                warn_dequantized("The finished model", backbone.first_block.dtype)
            dequantize(self.model, backbone.first_block.dtype)

        if isinstance(self.model, I2VPreTrainedModel):
            self.model.config.describe_time(self.model)
            if changed:
                self.model.config.methods = [*(self.model.config.methods or []), *names]
            return self.model
        if not changed:
            if self._was_image_model:
                to_image(backbone)
            return self.model
        if backbone.name == "":
            return I2VModel.from_video_backbone(self.model, num_frames=self._num_frames(), methods=names)
        warnings.warn(
            f"The merged {type(self.model).__name__} keeps its time offsets and temporal embedding only in memory: "
            "saved and loaded again it would be the image model. Adapt its vision model, or build an "
            "I2VForVideoClassification from it, to get a model that can be saved.",
            stacklevel=3,
        )
        return self.model

    def _num_frames(self) -> int:
        """Frames per clip of the model, or of the adapter where the model does not say."""
        own = getattr(getattr(self.model, "config", None), "num_frames", None)
        return own or self.peft_config[self.active_adapters[0]].num_frames

    def _sites(self) -> list[Sites]:
        return [m for m in self.model.modules() if isinstance(m, Sites)]


def _merge_all(layers: list[I2VLayer], safe_merge: bool, adapter_names: list[str] | None = None) -> None:
    """Merge all of them, or leave all of them as they were."""
    before = [list(layer.merged_adapters) for layer in layers]
    try:
        for layer in layers:
            layer.merge(safe_merge=safe_merge, adapter_names=adapter_names)
    except BaseException:
        for layer, merged in zip(layers, before, strict=True):
            layer.unmerge()
            if merged:
                layer.merge(adapter_names=merged)
        raise


def _moved(new, place: torch.Tensor):
    """A new module or tensor on the device of `place`, unless it is being created on the meta device."""
    tensor = new if isinstance(new, torch.Tensor) else next(new.parameters())
    return new if tensor.is_meta else new.to(place.device)


def _agreed_num_frames(config: I2VTunerConfig, model: nn.Module) -> int:
    own = getattr(getattr(model, "config", None), "num_frames", None)
    if config.num_frames is None and own is None:
        raise ValueError(
            f"{type(config).__name__} needs num_frames: {type(model).__name__} is an image model and does not say how "
            f"many frames a clip has. Use {type(config).__name__}(num_frames=8), for example."
        )
    if own is not None and config.num_frames not in (None, own) and config.trained_on is None:
        raise ValueError(
            f"{type(config).__name__} says num_frames={config.num_frames}, but the model was made for {own} frames. "
            "Leave num_frames out, or make the model for that number of frames."
        )
    return own if config.num_frames is None else config.num_frames  # an adapter from disk keeps its own


def _modules_to_save(config: I2VTunerConfig, model: nn.Module, backbone: Backbone) -> list[str] | None:
    """The user's choice, and what the method trains besides its adapter: final norm and classifier.

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
        if inside and config.target_modules is not None:
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
    """Why a module cannot be trained beside the adapter: peft would put a copy where the methods act."""
    parts, blocks = backbone.parts, list(backbone.blocks.values())
    acting = {backbone.model, backbone.embeddings, *blocks}
    acting |= {getattr(block, name) for block in blocks for name in (parts.attention, parts.mlp)}
    if acting & set(module.modules()):
        inside = sorted({name for part in {module} & acting for name, _ in part.named_children()})
        named = f" ({', '.join(inside)})" if inside else ""
        return f"holds what the methods of hf_i2v act on, and cannot be trained whole. Name layers inside it{named}."
    folded = {
        without_peft(getattr(getattr(block, owner), name))
        for part in config.parts()
        for site in set(getattr(part, "adapter_sites", ())) & set(MERGEABLE_SITES)
        for block in blocks
        for owner, name in parts.projections(site)
    }
    if without_peft(module) in folded:
        return f"is a projection that {type(config).__name__}'s linear adapters fold into. Leave one of the two out."
    return None


def _keep_temporal_embedding(embeddings: nn.Module, num_frames: int) -> None:
    """Move the working adapters' temporal embedding into the model's own."""
    parts_TD = [over_frames(e.detach(), num_frames) for e in embeddings.temporal.working_embeddings()]
    if embeddings.temporal_embedding is not None:
        parts_TD.append(embeddings.temporal_embedding.detach())
    if parts_TD:
        dtype = next(p for n, p in embeddings.named_parameters() if not n.startswith("temporal")).dtype
        total_TD = torch.stack([part.to(torch.promote_types(part.dtype, torch.float32)) for part in parts_TD]).sum(0)
        embeddings.temporal_embedding = nn.Parameter(total_TD.to(dtype), requires_grad=False)
