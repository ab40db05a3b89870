"""What a trained model looks at: its accuracy on validation videos as they are, and in forms without time.

| form      | frames of a clip                                             |
|-----------|--------------------------------------------------------------|
| reversed  | last to first                                                |
| shuffled  | in a random order, another for each clip                     |
| middle    | the middle frame, repeated                                   |
| unshifted | as they are, but the model's heads read their own frame only |
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest import mock

import numpy as np
import torch
from torch import nn
from transformers.modeling_utils import PreTrainedModel

from hf_i2v.block import VideoBlock

FORMS = ("as_it_is", "reversed", "shuffled", "middle", "unshifted")


def in_form(pixel_values: torch.Tensor, form: str, generator: torch.Generator) -> torch.Tensor:
    """Clips (B, T, C, h, w) in one of the forms."""
    num_frames = pixel_values.shape[1]
    if form == "reversed":
        return pixel_values.flip(1)
    if form == "shuffled":
        order_BT = torch.stack([torch.randperm(num_frames, generator=generator) for _ in pixel_values])
        return torch.stack([clip[order] for clip, order in zip(pixel_values, order_BT, strict=True)])
    if form == "middle":
        return pixel_values[:, num_frames // 2 : num_frames // 2 + 1].expand_as(pixel_values)
    return pixel_values


@torch.no_grad()
def accuracies(
    model: PreTrainedModel | nn.Module, batches: list[tuple[torch.Tensor, torch.Tensor]]
) -> dict[str, float | list[float]]:
    """Share of right answers in every form that changes something, and of each class as it is.

    Args:
        model: gives `logits`; the batches go to its device.
        batches: (pixel_values (B, T, C, h, w), labels (B,)) of the validation videos.
    """
    model.eval()
    device = next(model.parameters()).device
    blocks = [module for module in model.modules() if isinstance(module, VideoBlock)]
    shifts = any(block.working_time_offsets() for block in blocks)
    labels_N = np.concatenate([labels.numpy() for _, labels in batches])
    result = {}
    for form in FORMS if shifts else FORMS[:-1]:
        generator = torch.Generator().manual_seed(0)
        with _without_offsets(blocks if form == "unshifted" else []):
            right = [
                model(pixel_values=in_form(clips, form, generator).to(device)).logits.argmax(-1).cpu() == labels
                for clips, labels in batches
            ]
        right_N = torch.cat(right).numpy()
        result[form] = float(right_N.mean())
        if form == "as_it_is":
            result["per_class"] = [float(right_N[labels_N == k].mean()) for k in range(labels_N.max() + 1)]
    return result


@contextmanager
def _without_offsets(blocks: list[VideoBlock]) -> Iterator[None]:
    """Inside, every block's heads read their own frame."""
    with ExitStack() as stack:
        for block in blocks:
            stack.enter_context(mock.patch.object(block, "working_time_offsets", tuple))
        yield


def batches_of(clips, size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """All items of a data set of clips, in order."""
    for first in range(0, len(clips), size):
        items = [clips[i] for i in range(first, min(first + size, len(clips)))]
        yield torch.stack([i["pixel_values"] for i in items]), torch.tensor([i["labels"] for i in items])
