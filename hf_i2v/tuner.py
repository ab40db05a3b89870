"""The life cycle that all methods share: attach, merge, unload. One peft tuner for every configuration."""

import re
import warnings

import torch
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import ModulesToSaveWrapper
from torch import nn

from .backbones import Backbone, find_backbone
from .block import I2VLayer, Sites
from .config import SITES, I2VTunerConfig
from .video import ClipHead, TemporalEmbedding, to_image, to_video


class I2VTuner(BaseTuner):
    """Attaches a method to the vision transformer inside `model`, which then takes clips (B, T, C, h, w).

    A tuner layer is added beside the parts of each adapted block (`sites`) and of the embeddings (`temporal`); the
    model's own modules keep their names.
    """

    prefix = "i2v_"
    tuner_layer_cls = I2VLayer

    def _prepare_adapter_config(self, peft_config: I2VTunerConfig, model_config: dict) -> I2VTunerConfig:
        return peft_config

    def _prepare_model(self, peft_config: I2VTunerConfig, model: nn.Module) -> None:
        """Resolve and check the configuration against the model, before anything is changed."""
        backbone = find_backbone(model)
        peft_config.num_frames = _agreed_num_frames(peft_config, model)
        peft_config.resolve(backbone)
        peft_config.modules_to_save = _modules_to_save(peft_config, model, backbone)

        to_video(backbone)
        self._layers = {name: i for i, name in enumerate(backbone.blocks) if peft_config.adapts(i)}
        self._embeddings = backbone.embeddings_path if peft_config.uses_temporal_embedding else None
        self._backbone = backbone

    def inject_adapter(self, model, adapter_name, *args, **kwargs) -> None:
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        if pooling := self.peft_config[adapter_name].pooling:
            backbone = self._backbone.model
            if "clip_head" not in backbone._modules:
                backbone.clip_head = ClipHead(adapter_name)
                backbone.clip_head.set_adapter(self.active_adapters)
            backbone.clip_head.pooling[adapter_name] = pooling

    def _check_target_module_exists(self, peft_config: I2VTunerConfig, key: str) -> bool:
        return key in self._layers or key == self._embeddings

    def _create_and_replace(self, peft_config, adapter_name, target, target_name, parent, current_key) -> None:
        if current_key == self._embeddings:
            self._add_temporal_embedding(peft_config, adapter_name, target)
        else:
            self._add_sites(peft_config, adapter_name, target, self._layers[current_key])

    def _add_sites(self, config: I2VTunerConfig, adapter_name: str, block: nn.Module, layer: int) -> None:
        if "sites" not in block._modules:
            block.sites = Sites(block, adapter_name)
        place = next(block.parameters())
        for part in config.parts():
            for site, module in part.site_modules(self._backbone, layer).items() if part.adapts(layer) else ():
                adapters = getattr(block.sites, site)
                if adapter_name not in adapters:
                    adapters[adapter_name] = nn.ModuleDict()
                adapters[adapter_name][part.method_name] = _moved(module, place)
                adapters[adapter_name].requires_grad_(adapter_name in self.active_adapters)
        if offsets := config.head_time_offsets(layer):
            block.sites.time_offsets[adapter_name] = offsets

    def _add_temporal_embedding(self, config: I2VTunerConfig, adapter_name: str, embeddings: nn.Module) -> None:
        if "temporal" not in embeddings._modules:
            embeddings.temporal = TemporalEmbedding(adapter_name)
        zeros_TD = torch.zeros(config.num_frames, self._backbone.hidden_size)
        adapters = embeddings.temporal.temporal_embedding
        adapters[adapter_name] = nn.Parameter(_moved(zeros_TD, next(embeddings.parameters())))
        adapters[adapter_name].requires_grad_(adapter_name in self.active_adapters)

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        """`…sites.<site>.<adapter>.<method>.down.weight`: here the adapter's name does not stand at the end."""
        site = rf"(\.sites\.(?:{'|'.join(SITES)}))\.{re.escape(adapter_name)}\."
        without, found = re.subn(site, r"\1.", key)
        return without if found else super()._remove_adapter_name_from_key(key, adapter_name)

    def _check_merge_allowed(self) -> None:
        """Raise ValueError if an active adapter has modules that do not fold into weights."""
        for layer in self._sites():
            for site in SITES:
                for name, methods in getattr(layer, site).items():
                    stuck = [m for m, module in methods.items() if not hasattr(module, "affine")]
                    if name in layer.active_adapters and stuck:
                        raise ValueError(
                            f"The adapter {name!r} cannot be merged: {stuck[0]} is no linear map of the weights. "
                            "Keep it as an adapter (save_pretrained), and use unload() to get the image model back."
                        )

    def _unload_and_optionally_merge(self, merge=True, progressbar=False, safe_merge=False, adapter_names=None):
        """Take all tuner layers out. Merged, the linear adapters are in the weights and the model keeps its time.

        A bare vision model that was merged comes back inside an `I2VModel`: as a plain image model it would run, but
        ignore time without a word.
        """
        model = self.model
        backbone = find_backbone(model)
        embeddings = backbone.embeddings
        layers = [m for m in model.modules() if isinstance(m, I2VLayer)]
        if merge:
            self._check_merge_allowed()
            if adapter_names is not None:
                self.set_adapter(adapter_names)
            if safe_merge:
                for layer in layers:  # nothing is changed unless all can be
                    if not layer.merged:
                        layer.merge(safe_merge=True)
                        layer.unmerge()
            for layer in layers:
                if not layer.merged:
                    layer.merge()
            for block in backbone.blocks.values():
                shift = block.sites.shift() if "sites" in block._modules else None
                block.time_offsets = block.time_offsets if shift is None else shift
            if "temporal" in embeddings._modules:
                _keep_temporal_embedding(embeddings)
            backbone.model.pooling = backbone.model.working_pooling()
        else:
            for layer in layers:
                if layer.merged:
                    layer.unmerge()
            for module in model.modules():
                if isinstance(module, ModulesToSaveWrapper):
                    module.set_adapter([])  # peft would leave the trained copy in the place of the original
        super()._unload_and_optionally_merge(merge=False, progressbar=progressbar, adapter_names=adapter_names)

        for module in (*backbone.blocks.values(), embeddings, backbone.model):
            for layer in ("sites", "temporal", "clip_head"):
                module._modules.pop(layer, None)
        return self._standalone(backbone, merge)

    def _standalone(self, backbone: Backbone, merge: bool) -> nn.Module:
        from .modeling_i2v import I2VModel, I2VPreTrainedModel

        if isinstance(self.model, I2VPreTrainedModel):
            self.model.config.describe_time(self.model)
            return self.model
        if not merge:
            to_image(backbone)
            return self.model
        num_frames = self.peft_config[self.active_adapters[0]].num_frames
        if backbone.name == "":
            return I2VModel.from_video_backbone(self.model, num_frames=num_frames)
        warnings.warn(
            f"The merged {type(self.model).__name__} keeps its time offsets and temporal embedding only in memory: "
            "saved and loaded again it would be the image model. Adapt its vision model, or build an "
            "I2VForVideoClassification from it, to get a model that can be saved.",
            stacklevel=2,
        )
        return self.model

    def _sites(self) -> list[Sites]:
        return [m for m in self.model.modules() if isinstance(m, Sites)]


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
    if own is not None and config.num_frames not in (None, own):
        raise ValueError(
            f"{type(config).__name__} says num_frames={config.num_frames}, but the model was made for {own} frames. "
            "Leave num_frames out, or make the model for that number of frames."
        )
    return own if config.num_frames is None else config.num_frames


def _modules_to_save(config: I2VTunerConfig, model: nn.Module, backbone: Backbone) -> list[str] | None:
    """The user's choice, and what the method trains besides its adapter: final norm and classifier."""
    names = list(config.modules_to_save or [])
    if config.trains_final_norm:
        names.append(backbone.final_norm_path)
    if hasattr(model, "classifier"):
        names.append("classifier")
    return list(dict.fromkeys(names)) or None


def _keep_temporal_embedding(embeddings: nn.Module) -> None:
    """Move the working adapters' temporal embedding into the model's own."""
    parts_TD = [e.detach() for e in embeddings.temporal.working_embeddings()]
    if embeddings.temporal_embedding is not None:
        parts_TD.append(embeddings.temporal_embedding.detach())
    if parts_TD:
        dtype = next(p for n, p in embeddings.named_parameters() if not n.startswith("temporal")).dtype
        total_TD = torch.stack([part.to(torch.promote_types(part.dtype, torch.float32)) for part in parts_TD]).sum(0)
        embeddings.temporal_embedding = nn.Parameter(total_TD.to(dtype), requires_grad=False)
