"""Which part of a model is frozen, so that what it makes of a clip can be kept, and what that depends on."""

import hashlib
import json

import torch
from torch import nn
from torch.utils.data import Dataset

from ..backbones import Backbone, find_backbone
from ..version import __version__


def cached_part(model: nn.Module) -> int | None:
    """The first block that computes something trained: what enters it is kept. None: no block does, and it is what
    the side branch reads, or the clip feature.

    Raises:
        ValueError: something is trained that acts before the blocks.
    """
    backbone = find_backbone(model)
    numbers = []
    for name, parameter in model.named_parameters():
        if not (parameter.requires_grad and name.startswith(backbone.name)) or ".clip_head." in f".{name}":
            continue
        block = [number for number, path in enumerate(backbone.blocks) if name.startswith(f"{path}.")]
        if not (block or _acts_after_the_blocks(name, backbone)):
            raise ValueError(
                f"Nothing can be cached for this model: {name} is trained and acts before the blocks. A cache serves "
                "probes, M-adapter, and methods without a temporal embedding in the last blocks (layers_to_transform)."
            )
        numbers += block or [len(backbone.blocks) - 1]
    return min(numbers, default=None)


def _acts_after_the_blocks(name: str, backbone: Backbone) -> bool:
    prefix = f"{backbone.name}." if backbone.name else ""
    return name.startswith((f"{backbone.final_norm_path}.", f"{prefix}pooler.", f"{prefix}head."))


def fingerprints(model: nn.Module, clips: Dataset) -> dict[str, str]:
    """What a cache depends on, by what to call it.

    Raises:
        TypeError: the clips have no `fingerprint()`.
        ValueError: as `cached_part`.
    """
    if not hasattr(clips, "fingerprint"):
        raise TypeError(
            f"{type(clips).__name__} has no fingerprint(), so a stale cache could not be told from a good one."
        )
    found = find_backbone(model)
    branch, first_block = found.model.working_branch(), cached_part(model)
    if branch is not None:
        reading = json.dumps(branch.reading() | {"final norm": branch.reads_final_norm})
    else:
        reading = "clip feature" if first_block is None else f"what enters block {first_block}"
    return {
        "model weights": _frozen_weights(found),
        "levels": reading,
        "clips or preprocessing": clips.fingerprint(of_epochs=True)
        if getattr(clips, "train", False)
        else clips.fingerprint(),
        "version of hf_i2v": __version__,
    }


def _frozen_weights(backbone: Backbone) -> str:
    """Of all frozen weights of the vision model, and of what it does in time and with its pixels."""
    model = backbone.model
    digest = hashlib.sha256()
    for name, weight in sorted((*model.named_parameters(), *model.named_buffers())):
        name = name.replace("original_module.", "").replace("base_layer.", "")
        if not (weight.requires_grad or ".modules_to_save." in f".{name}" or name.startswith("clip_head.")):
            digest.update(f"{name} {weight.dtype}".encode())
            plain = weight.detach() if type(weight.data) is torch.Tensor else weight.detach().float()
            digest.update(plain.cpu().contiguous().flatten().view(torch.uint8).numpy())
    offsets = [list(block.working_time_offsets()) for block in backbone.blocks.values()]
    kind = next(model.parameters()).device.type
    autocast = str(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else None
    how = [offsets, model.working_pooling(), model.baked_methods, autocast]
    if (last_frames := model.working_last_frames()) is not None:  # of a causal model
        how.append(last_frames)
    return hashlib.sha256(digest.digest() + json.dumps(how).encode()).hexdigest()
