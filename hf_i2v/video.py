"""An image model that takes clips: the video counterparts of the backbone's embeddings and of the whole, and the
record of what such a model does in time."""

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .backbones import Backbone, UnsupportedBackboneError
from .block import I2VLayer, VideoBlock, to_image_block, to_video_block
from .frames import (
    Passage,
    fold,
    frames_in_flight,
    mean_of_last,
    mean_over_frames,
    over_frames,
    passage_in_flight,
    pooling_in_flight,
    unfold,
    working_on,
)
from .methods.branch import Branch, FrozenFeatures
from .methods.config import config_from_dict
from .methods.stdha import check_time_offsets, trim
from .quantized import is_quantized
from .stream_state import Step
from .swapped import Swapped, swap_in, swap_out


class EmbeddingsLayer(I2VLayer):
    """The tuner layer of the embeddings: one temporal embedding (T, D) per adapter that has one."""

    adapter_layer_names = ("i2v_embedding",)

    def __init__(self, adapter_name: str):
        super().__init__(adapter_name)
        self.i2v_embedding = nn.ParameterDict()

    def working_embeddings(self) -> list[torch.Tensor]:
        return [self.i2v_embedding[n] for n in self.working_adapters() if n in self.i2v_embedding]

    # Merging changes no weight here. Finishing a model adds the embedding to the model's own.
    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        for name in adapter_names or self.active_adapters:
            embedding = self.i2v_embedding.get(name, None)
            if safe_merge and embedding is not None and not torch.isfinite(embedding).all():
                raise ValueError(f"NaNs detected in the merged weights. The adapter {name} seems to be broken")
        super().merge(safe_merge, adapter_names)


class VideoEmbeddings(Swapped):
    """Embeddings that add a temporal embedding (T, D) to all tokens of each frame."""

    temporal_embedding: nn.Parameter | None  # the model's own

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        passage = passage_in_flight()
        if passage is not None and passage.entering is not None:
            return passage.entering  # only its shape is read, by what stands before the blocks
        x_MND = super().forward(*args, **kwargs)
        for embedding_TD in self.working_embeddings():
            embedding_TD = over_frames(embedding_TD, frames_in_flight()).to(x_MND.dtype)
            x_MND = (x_MND.unflatten(0, (-1, embedding_TD.shape[0])) + embedding_TD[:, None]).flatten(0, 1)
        return x_MND

    def working_embeddings(self) -> list[torch.Tensor]:
        """The model's own temporal embedding and those of the working adapters."""
        adapters = self._modules.get("temporal")
        own = [] if self.temporal_embedding is None else [self.temporal_embedding]
        return own + (adapters.working_embeddings() if adapters is not None else [])


class BackboneLayer(I2VLayer):
    """The tuner layer of the whole backbone: each adapter's side branch and pooling."""

    adapter_layer_names = ("i2v_branch",)
    other_param_names = ("pooling", "last_frames")

    def __init__(self, adapter_name: str):
        super().__init__(adapter_name)
        self.i2v_branch = nn.ModuleDict()
        self.pooling: dict[str, str] = {}
        self.last_frames: dict[str, int] = {}  # of causal adapters

    def working_branches(self) -> list[Branch]:
        return [self.i2v_branch[name] for name in self.working_adapters() if name in self.i2v_branch]

    def working_pooling(self) -> str | None:
        """The working adapters' pooling, or None if they have none of their own."""
        wanted = {self.pooling[name] for name in self.working_adapters() if name in self.pooling}
        if len(wanted) > 1:
            raise ValueError(f"The active adapters {self.working_adapters()} pool differently. Activate one of them.")
        return wanted.pop() if wanted else None

    def working_last_frames(self) -> int | None:
        """How many of the last frames the working adapters pool, or None if they are not causal."""
        found = [self.last_frames[n] for n in self.working_adapters() if n in self.last_frames]
        return max(found) if found else None  # torch.compile knows no max() with a default


class VideoNorm(Swapped):
    """The final norm. With the pooling "before_norm" it takes the mean over the frames."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if pooling_in_flight() == "before_norm":
            x = mean_over_frames(x)
        return super().forward(x)


AFTER_THE_BLOCKS = ("clip_head", "pooler", "head")  # besides the final norm; a vision model has some of them


class VideoBackbone(Swapped):
    """A vision transformer that takes (B, T, C, h, w) and gives clip-level features.

    Its output is the image model's own. `pooler_output` (B, D) is the mean over the frames of the image model's
    feature, and every other tensor is unfolded to (B, T, …). With `prefix_only`, the last block's MLP computes only
    the CLS (and register) tokens if the feature depends on no others. Inside a model with a head of its own
    (`CLIPModel`, `ViTForImageClassification`), `last_hidden_state` is the mean over the frames too, (B, N, D).
    """

    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        *args: Any,
        num_frames: int | None = None,
        frozen_features: FrozenFeatures | None = None,
        prefix_only: bool = False,
        step: Step | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPooling | tuple:
        branch = self.working_branch()
        inner = {name: self._wants(name, kwargs) for name in ("output_hidden_states", "output_attentions")}
        prefix_only = prefix_only and self.feature_reads_prefix and branch is None and not any(inner.values())
        kwargs |= inner
        if frozen_features is None:
            outputs, levels = self._run(
                pixel_values, num_frames, branch, prefix_only, None, *args, step=step, **kwargs
            )
        elif frozen_features.entering is not None:
            outputs, levels = self._go_on(frozen_features, branch, prefix_only, *args, **kwargs)
        else:
            outputs = BaseModelOutputWithPooling(pooler_output=frozen_features.feature.to(self.dtype))
            levels = frozen_features.levels
            if (branch is None) != (levels is None):
                raise ValueError(
                    "frozen_features have levels, but no active adapter has a side branch that reads them."
                    if branch is None
                    else "The active side branch reads levels of the frozen model; these frozen_features have none."
                )
        if branch is not None:
            feature = outputs.pooler_output
            if step is None:
                outputs.pooler_output = branch(levels, feature)
            else:
                outputs.pooler_output = step.run("branch", branch, levels, feature_SD=feature)
        return_dict = self.config.return_dict if return_dict is None else return_dict
        return outputs if return_dict else outputs.to_tuple()

    @torch.no_grad()
    def frozen_features(
        self, pixel_values: torch.Tensor, num_frames: int | None = None, *, first_block: int | None = None
    ) -> FrozenFeatures:
        """What `forward` takes in the place of pixels: what enters block `first_block`, from which on it then
        computes; without one the clip feature, and what the active side branch reads."""
        if first_block is None:
            branch = self.working_branch()
            prefix_only = self.feature_reads_prefix and branch is None
            outputs, levels = self._run(pixel_values, num_frames, branch, prefix_only, None)
            return FrozenFeatures(levels, outputs.pooler_output)
        passage = Passage(keep=frozenset({first_block}), stop_before=first_block)
        self._run(pixel_values, num_frames, None, False, passage)
        num_clips = len(pixel_values) if num_frames is None else len(pixel_values) // num_frames
        entering_BTND = unfold(passage.states[first_block], num_clips)
        return FrozenFeatures(
            entering=entering_BTND, first_block=first_block, image_size=tuple(pixel_values.shape[-2:])
        )

    def _go_on(
        self, given: FrozenFeatures, branch: Branch | None, prefix_only: bool, *args, **kwargs
    ) -> tuple[BaseModelOutputWithPooling, None]:
        """The image model from one of its blocks on."""
        if branch is not None or kwargs["output_hidden_states"]:
            raise ValueError("From what enters a block on, there is no side branch and are no output_hidden_states.")
        x_BTND = given.entering.to(self.dtype)
        passage = Passage(first_block=given.first_block, entering=x_BTND.flatten(0, 1))
        # without memory: only the size is read, as by rotary embeddings
        pixels = x_BTND.new_empty(()).expand(*x_BTND.shape[:2], self.config.num_channels, *given.image_size)
        return self._run(pixels, None, None, prefix_only, passage, *args, **kwargs)

    def _wants(self, name: str, kwargs: dict) -> bool:
        """Whether an output besides the feature is wanted: the caller's argument, or else the configuration's."""
        return getattr(self.config, name) if kwargs.get(name) is None else kwargs[name]

    def _run(
        self, pixel_values, num_frames, branch, prefix_only, passage, *args, step=None, **kwargs
    ) -> tuple[BaseModelOutputWithPooling, torch.Tensor | None]:
        """The image model on all frames, its outputs unfolded; for a branch without a graph, and with its levels."""
        pixel_values, num_frames = fold(pixel_values, num_frames, getattr(self.config, "num_channels", None))
        num_clips = pixel_values.shape[0] // num_frames
        if branch is not None:
            passage = Passage(keep=frozenset(level + 1 for level in branch.levels))
        pooling, last_frames = self.working_pooling(), self.working_last_frames()
        if step is not None:
            last_frames = last_frames or step.num_frames
        frozen_blocks = self._frozen_blocks(pixel_values)
        with working_on(num_frames, pooling, prefix_only, passage, last_frames, step, frozen_blocks):
            run = super().forward if branch is None else self._forward_without_graph
            outputs = run(pixel_values, *args, **kwargs, return_dict=True)
            feature_BD = frame_feature(outputs, has_cls=self.num_prefix_tokens > 0)
            if pooling == "after_norm":  # otherwise the final norm has taken the mean
                feature_BD = mean_over_frames(feature_BD)
        levels = None
        if branch is not None:
            levels_LMPD = self._read(branch, passage)
            levels = levels_LMPD.unflatten(1, (num_clips, -1))
        values = {
            key: tuple(None if x is None else unfold(x, num_clips) for x in value)
            if isinstance(value, tuple)
            else unfold(value, num_clips)
            for key, value in outputs.items()
        }
        outputs = BaseModelOutputWithPooling(**values)
        outputs.pooler_output = feature_BD
        if self.nested:  # a head around the vision model reads tokens as those of an image, (B, N, D)
            outputs.last_hidden_state = mean_of_last(outputs.last_hidden_state, last_frames)
        return outputs, levels

    def _frozen_blocks(self, pixel_values: torch.Tensor) -> int:
        """How many of the first blocks gradient checkpointing must leave alone: nothing in them or before them is
        trained, but to find its way it makes their input require a gradient. Elsewhere autograd sees that itself."""
        if torch.compiler.is_compiling() or not self.training or not self.is_activation_checkpointing:
            return 0
        blocks = [module for module in self.modules() if isinstance(module, VideoBlock)]
        trained = {p for p in self.parameters() if p.requires_grad}
        parts = (self._modules.get(name) for name in (self.final_norm_name, *AFTER_THE_BLOCKS))
        after = {p for part in parts if part is not None for p in part.parameters()}
        before = trained - after - {p for block in blocks for p in block.parameters()}
        if before or pixel_values.requires_grad:
            return 0
        return next((block.number for block in blocks if trained & set(block.parameters())), len(blocks))

    @torch.no_grad()
    def _forward_without_graph(self, *args, **kwargs):
        return super().forward(*args, **kwargs)

    @torch.no_grad()
    def _read(self, branch: Branch, passage: Passage) -> torch.Tensor:
        """What a branch reads of its levels, (L, M, P, D)."""
        read = []
        for level in branch.levels:
            x_MND = passage.states[level + 1]
            if branch.reads_final_norm:
                with working_on(1, "after_norm"):
                    x_MND = getattr(self, self.final_norm_name)(x_MND)
            read.append(branch.read(x_MND))
        return torch.stack(read)

    def working_branch(self) -> Branch | None:
        """The side branch of the active adapter, else the model's own."""
        head = self._modules.get("clip_head")
        branches = head.working_branches() if head is not None else []
        if len(branches) > 1:
            raise ValueError(f"{len(branches)} active adapters have a side branch. Activate one of them.")
        return branches[0] if branches else self._modules.get("baked_branch")

    def working_pooling(self) -> str:
        """How the frames are pooled: the active adapter's pooling if it has one, else the model's."""
        head = self._modules.get("clip_head")
        return (head.working_pooling() if head is not None else None) or self.pooling

    def working_last_frames(self) -> int | None:
        """How many of a clip's last frames are pooled, in a causal model; None: all."""
        head = self._modules.get("clip_head")
        return (head.working_last_frames() if head is not None else None) or self.last_frames

    def why_not_streaming(self) -> str | None:
        """The reason why the model cannot run frame by frame; None: it can."""
        for module in self.modules():
            if isinstance(module, VideoEmbeddings) and module.working_embeddings():
                return "its temporal embedding numbers the frames of a clip; causal=True leaves that out"
            if isinstance(module, VideoBlock) and (why := module.why_not_streaming()):
                return why
        branch = self.working_branch()
        why = None if branch is None else branch.why_not_streaming
        return f"its {type(branch).__name__} {why}" if why else None


def frame_feature(outputs: BaseModelOutputWithPooling, *, has_cls: bool) -> torch.Tensor:
    """The image model's feature of a frame, (M, D): the pooler's output, else the normalised CLS or mean token."""
    if outputs.get("pooler_output") is not None:
        return outputs.pooler_output
    return outputs.last_hidden_state[:, 0] if has_cls else outputs.last_hidden_state.mean(1)


def to_video(backbone: Backbone) -> None:
    """Turn the backbone into one that takes clips, in place. Weights and their names stay.

    Raises:
        UnsupportedBackboneError: a block does not compute what its structure suggests; nothing is changed.
    """
    if isinstance(backbone.model, VideoBackbone):
        return
    check_block(backbone)
    feature_reads_prefix = reads_prefix(backbone)
    for number, block in enumerate(backbone.blocks.values()):
        to_video_block(block, backbone.parts, number)
    block.num_prefix_tokens = backbone.num_prefix_tokens
    swap_in(backbone.embeddings, VideoEmbeddings)
    backbone.embeddings.register_parameter("temporal_embedding", None)
    swap_in(backbone.model, VideoBackbone)
    backbone.model.nested = backbone.name != ""
    backbone.model.final_norm_name = backbone.final_norm_path.rpartition(".")[2]
    backbone.model.num_prefix_tokens = backbone.num_prefix_tokens
    TimeRecord(feature_reads_prefix=feature_reads_prefix).apply(backbone, num_frames=None)
    swap_in(backbone.final_norm, VideoNorm)


def to_image(backbone: Backbone) -> None:
    """Undo `to_video`."""
    for block in backbone.blocks.values():
        to_image_block(block)
    del backbone.embeddings.temporal_embedding
    swap_out(backbone.embeddings)
    swap_out(backbone.final_norm)
    for name in (
        "num_prefix_tokens",
        "nested",
        "final_norm_name",
        "feature_reads_prefix",
        "pooling",
        "last_frames",
        "baked_methods",
    ):
        delattr(backbone.model, name)
    swap_out(backbone.model)


@dataclass
class TimeRecord:
    """What a video model does in time without an adapter. `I2VConfig` has the same fields and explains them. A
    finished model is its weights and this record."""

    time_offsets: list | None = None
    temporal_embedding: bool | int = False
    pooling: str = "after_norm"
    baked: list[dict] | None = None
    feature_reads_prefix: bool = False
    causal: bool = False

    @classmethod
    def read(cls, backbone: Backbone) -> "TimeRecord":
        """The record of a video backbone."""
        per_block = [list(block.time_offsets) for block in backbone.blocks.values()]
        same = all(block == per_block[0] for block in per_block)
        embedding_TD = backbone.embeddings.temporal_embedding
        return cls(
            time_offsets=(per_block[0] or None) if same else per_block,
            temporal_embedding=False if embedding_TD is None else len(embedding_TD),
            pooling=backbone.model.pooling,
            baked=list(backbone.model.baked_methods) or None,
            feature_reads_prefix=backbone.model.feature_reads_prefix,
            causal=backbone.model.last_frames is not None,
        )

    def apply(self, backbone: Backbone, num_frames: int | None) -> None:
        """Give a video backbone the record's properties, in place. New modules get random weights.

        Raises:
            ValueError: offsets that do not fit the blocks, the heads or the number of frames; an unknown method.
        """
        model, embeddings = backbone.model, backbone.embeddings
        model.pooling = self.pooling
        model.last_frames = num_frames if self.causal else None
        model.feature_reads_prefix = getattr(model, "feature_reads_prefix", False) or self.feature_reads_prefix
        blocks = list(backbone.blocks.values())
        for block, offsets in zip(blocks, self.block_time_offsets(len(blocks)), strict=True):
            if offsets:
                check_time_offsets(list(offsets), backbone.num_heads, num_frames)
            block.time_offsets = offsets
        if self.temporal_embedding and embeddings.temporal_embedding is None:
            length = num_frames if self.temporal_embedding is True else self.temporal_embedding
            embeddings.temporal_embedding = nn.Parameter(torch.zeros(length, backbone.hidden_size))
        if not getattr(model, "baked_methods", None):
            self._add_baked_modules(backbone)

    def block_time_offsets(self, num_blocks: int) -> list[tuple[int, ...]]:
        """STDHA's offsets for each block."""
        offsets = self.time_offsets or []
        if offsets and all(isinstance(block, (list, tuple)) for block in offsets):
            if len(offsets) != num_blocks:
                raise ValueError(f"time_offsets has {len(offsets)} lists, but the model has {num_blocks} blocks.")
            return [trim(block) for block in offsets]
        return [trim(offsets)] * num_blocks

    def _add_baked_modules(self, backbone: Backbone) -> None:
        """Build the modules of baked methods. `from_pretrained` loads their weights later."""
        for method in self.baked or []:
            part = config_from_dict(method)
            for layer, block in enumerate(backbone.blocks.values()):
                for site, name, module in part.block_modules(backbone, layer):
                    block.add_baked(site, name, module)
            if (branch := part.branch_module(backbone)) is not None:
                backbone.model.baked_branch = branch
        backbone.model.baked_methods = list(self.baked or [])


class _FirstBlockDone(Exception):
    pass


@torch.no_grad()
def check_block(backbone: Backbone) -> None:
    """Run the first block as the image model's own and as a `VideoBlock`, and compare the results.

    Raises:
        UnsupportedBackboneError: they differ, or one of them failed.
    """
    if any(p.is_meta for p in backbone.model.parameters()):
        return  # it cannot compute; `find_backbone` has checked the structure
    model, block = backbone.model, backbone.first_block
    seen = {}

    def keep(module, args, kwargs, output):
        seen.update(args=args, kwargs=kwargs, output=output)
        raise _FirstBlockDone

    def keep_embeddings(module, args, output):
        seen.update(embeddings=output)

    modes = [(module, module.training) for module in model.modules()]
    handles = [
        block.register_forward_hook(keep, with_kwargs=True),
        backbone.embeddings.register_forward_hook(keep_embeddings),
    ]
    problem = None
    try:
        model.eval()
        for module in filter(is_quantized, model.modules()):
            module.train()  # in eval mode bitsandbytes repacks 4-bit weights, which then cannot train
        with suppress(_FirstBlockDone):
            model(_blank_image(model))
        to_video_block(block, backbone.parts, 0)
        output = VideoBlock.forward(block, *seen["args"], num_frames=1, **seen["kwargs"])
        if not isinstance(seen["embeddings"], torch.Tensor):
            problem = f"its embeddings give a {type(seen['embeddings']).__name__}"
        elif not torch.allclose(output, seen["output"], rtol=1e-3, atol=1e-3):
            problem = "its result differs"
    except Exception as error:  # any error of a foreign block means that it cannot be adapted
        problem = f"{type(error).__name__}: {error}"
    finally:
        for handle in handles:
            handle.remove()
        if isinstance(block, VideoBlock):
            to_image_block(block)
        for module, training in modes:
            module.training = training
    if problem:
        raise UnsupportedBackboneError(
            f"A {type(block).__name__} of {type(model).__name__} cannot be adapted: it does not compute what hf_i2v "
            f"expects of a pre-norm transformer block made of {backbone.parts} ({problem})."
        )


@torch.no_grad()
def reads_prefix(backbone: Backbone) -> bool:
    """Whether the image model's feature depends on the CLS (and register) tokens only, not on the patches.

    The blocks are replaced by identities, then the last one by one that zeroes the patches. The feature must not
    change.
    """
    model, blocks = backbone.model, list(backbone.blocks.values())
    if not backbone.num_prefix_tokens or any(p.is_meta for p in model.parameters()):
        return False
    replaced = [block.__dict__.get("forward") for block in blocks]

    def without_patches(x_MND, *args, **kwargs):
        x_MND = x_MND.clone()
        x_MND[:, backbone.num_prefix_tokens :] = 0
        return x_MND

    features = []
    try:
        for last in (lambda x_MND, *args, **kwargs: x_MND, without_patches):
            for block in blocks:
                block.forward = lambda x_MND, *args, **kwargs: x_MND
            blocks[-1].forward = last
            features.append(frame_feature(model(_blank_image(model), return_dict=True), has_cls=True))
    finally:
        for block, forward in zip(blocks, replaced, strict=True):
            del block.forward
            if forward is not None:
                block.forward = forward
    return torch.equal(*features)


def _blank_image(model: nn.Module) -> torch.Tensor:
    conv = next(m for m in model.modules() if isinstance(m, nn.Conv2d))
    size = model.config.image_size
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    ramp = torch.linspace(-1, 1, conv.in_channels * height * width)
    return ramp.view(1, conv.in_channels, height, width).to(conv.weight)
