"""A causal model's answers to the windows of videos, read off one stream a video."""

import torch
from torch import nn

from ..data.streamed import StreamBatch
from ..stream_state import StreamState


class Streams:
    """The streams that are running: one a unit, for a unit's videos come one after the other.

    Args:
        model: has `new_stream` and `step`.
    """

    def __init__(self, model: nn.Module):
        self.model = model
        self._states: dict[int, StreamState] = {}  # by unit

    def answers(self, batch: StreamBatch, pixels_1TChw: torch.Tensor) -> torch.Tensor:
        """What the model's `step` gives after the last frame of each window that ends in the batch, (B, …)."""
        state = self.model.new_stream() if batch.is_start else self._states.pop(batch.unit)
        after_each = []
        for frame_1Chw in pixels_1TChw.unbind(1):
            answer_1X, state = self.model.step(frame_1Chw, state)
            after_each.append(answer_1X)
        if not batch.videos_done:
            self._states[batch.unit] = state
        return torch.cat(after_each)[[num_seen - 1 for num_seen in batch.num_seen]]
