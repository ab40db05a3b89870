"""Frames of a clip: folding them into the batch, unfolding them, and the number of frames in a running forward pass.

Legend for shapes in this package: `B` clip, `T` frame, `N` token of a frame, `D` width, `H` head, `K` head width,
`R` bottleneck, `M = B·T` frame of the batch; pixels are `C`, `h`, `w`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from transformers.utils import logging

# A ContextVar while Python runs, a plain global while torch.compile traces, because it cannot trace a ContextVar.
from transformers.utils.output_capturing import CompileableContextVar

from .stream_state import Step

_in_flight = CompileableContextVar("hf_i2v_in_flight")

logger = logging.get_logger(__name__)


@dataclass
class Passage:
    """Which blocks a forward pass goes through, and what it keeps of them. State i is what enters block i; the last
    block leaves state L.

    Args:
        keep: numbers of the states to keep, in `states`.
        first_block, entering: go on at this block, with this state (M, N, D) in the place of what the model computes;
            at block L: after the last one.
        stop_before: pass over the blocks from this one on.
    """

    keep: frozenset[int] = frozenset()
    first_block: int = 0
    entering: torch.Tensor | None = None
    stop_before: int | None = None
    states: dict[int, torch.Tensor] = field(default_factory=dict)

    def note(self, number: int, x_MND: torch.Tensor) -> None:
        """Keep a state, if it is to be kept."""
        if number in self.keep:
            self.states[number] = x_MND

    def skips(self, block: int) -> bool:
        """Whether a block is passed over."""
        return block < self.first_block or (self.stop_before is not None and block >= self.stop_before)


class InFlight(NamedTuple):
    """The state of a running forward pass."""

    num_frames: int
    pooling: str
    prefix_only: bool
    passage: Passage | None
    last_frames: int | None
    step: Step | None
    frozen_blocks: int


def frames_in_flight() -> int:
    """Number of frames T per clip at this point of the running forward pass."""
    return _state().num_frames


def pooling_in_flight() -> str:
    """How the running forward pass pools the frames: "after_norm" or "before_norm"."""
    return _state().pooling


def prefix_only_in_flight() -> bool:
    """Whether only the CLS and register tokens are read after the last block, so that it may skip the patches."""
    return _state().prefix_only


def passage_in_flight() -> Passage | None:
    """Which blocks the running forward pass goes through; None: all, and it keeps nothing of them."""
    return _state().passage


def frozen_blocks_in_flight() -> int:
    """How many of the first blocks need no graph, whatever their input says."""
    return _state().frozen_blocks


def step_in_flight() -> Step | None:
    """The step of a stream that is running; None in a clip."""
    return _state().step


def continue_with(num_frames: int) -> None:
    """From here on the clip has `num_frames` frames."""
    _in_flight.set(_state()._replace(num_frames=num_frames))


@contextmanager
def working_on(
    num_frames: int,
    pooling: str,
    prefix_only: bool = False,
    passage: Passage | None = None,
    last_frames: int | None = None,
    step: Step | None = None,
    frozen_blocks: int = 0,
) -> Iterator[None]:
    """Set the number of frames, the pooling and how many of the last frames it takes (None: all), whether only prefix
    tokens are read, the passage, the step, and how many blocks need no graph, for everything called inside."""
    token = _in_flight.set(InFlight(num_frames, pooling, prefix_only, passage, last_frames, step, frozen_blocks))
    try:
        yield
    finally:
        _in_flight.reset(token)


def _state() -> InFlight:
    state = _in_flight.get()
    if state is None:
        raise RuntimeError(
            "A part of a video model was called on its own, so the number of frames is unknown. "
            "Call the whole model with `pixel_values` of shape (B, T, C, h, w)."
        )
    return state


def fold(
    pixel_values: torch.Tensor, num_frames: int | None = None, num_channels: int | None = None
) -> tuple[torch.Tensor, int]:
    """Put the frames of all clips one after another into the batch dimension, for an image model.

    Args:
        pixel_values: (B, T, C, h, w); or (B·T, C, h, w), frames of one clip contiguous, together with `num_frames`.
        num_frames: T. Needed for 4-D pixels; for 5-D pixels it must agree with them if given.
        num_channels: C, to be checked if given.

    Returns:
        (B·T, C, h, w) and T.

    Raises:
        ValueError: pixels of another layout or of an integer type, 4-D pixels without `num_frames`, or a batch that T
            does not divide.
    """
    if pixel_values is None:
        raise ValueError("pixel_values is missing: a video model takes clips of shape (B, T, C, h, w).")
    shape = tuple(pixel_values.shape)
    if not pixel_values.is_floating_point():
        raise ValueError(
            f"pixel_values is {pixel_values.dtype}: a video model takes normalised floating-point pixels, as the "
            "model's processor or hf_i2v.data.eval_transform makes them."
        )
    if len(shape) in (4, 5) and num_channels not in (None, shape[-3]):
        raise ValueError(
            f"pixel_values is {shape}, but its third dimension from the end must be the {num_channels} channels: "
            "(B, T, C, h, w). Clips of (B, C, T, h, w) need .transpose(1, 2), those of (B, T, h, w, C) "
            ".permute(0, 1, 4, 2, 3)."
        )
    if pixel_values.ndim == 5:
        if num_frames is not None and num_frames != shape[1]:
            raise ValueError(f"num_frames ({num_frames}) does not agree with pixel_values (B, T, C, h, w) of {shape}.")
        return pixel_values.flatten(0, 1), shape[1]
    if pixel_values.ndim != 4:
        raise ValueError(
            f"pixel_values must be (B, T, C, h, w), or (B*T, C, h, w) together with num_frames, but is {shape}."
        )
    if num_frames is None:
        raise ValueError(
            f"pixel_values is 4-D {shape}, so it is unclear which frames belong to one clip. Pass clips as "
            "(B, T, C, h, w), or say num_frames=T in the call for frames as (B*T, C, h, w)."
        )
    if num_frames < 1 or shape[0] % num_frames:
        raise ValueError(
            f"A batch of {shape[0]} frames {shape} cannot be split into clips of num_frames={num_frames} frames."
        )
    return pixel_values, num_frames


def convolve_over_time(
    x_BTPR: torch.Tensor, weight_RK: torch.Tensor, bias_R: torch.Tensor, *, causal: bool = False
) -> torch.Tensor:
    """A depth-wise convolution along T with K taps and zero padding, as shifted multiply-adds in the given layout.

    A cross-correlation, as in torch: the middle tap reads the frame itself, the one before it the previous frame. With
    `causal` the last tap reads the frame itself, and all others frames before it.
    """
    T, K = x_BTPR.shape[1], weight_RK.shape[1]
    own = K - 1 if causal else K // 2
    out = torch.addcmul(bias_R, x_BTPR, weight_RK[:, own])
    for offset in range(1, min(own, T - 1) + 1):
        out[:, offset:].addcmul_(x_BTPR[:, :-offset], weight_RK[:, own - offset])
        if not causal:
            out[:, :-offset].addcmul_(x_BTPR[:, offset:], weight_RK[:, own + offset])
    return out


def mean_over_frames(x_MX: torch.Tensor) -> torch.Tensor:
    """The pooling of the running forward pass, (B·T, …) → (B, …): the mean over the frames, or over the last ones."""
    state = _state()
    if state.step is not None:
        return state.step.mean_of_last(state.last_frames, "pooling", x_MX)
    return mean_of_last(unfold(x_MX, x_MX.shape[0] // state.num_frames), state.last_frames)


def mean_of_last(x_BTX: torch.Tensor, last_frames: int | None) -> torch.Tensor:
    """(B, T, …) → (B, …): the mean over the last frames; None: over all."""
    return x_BTX.mean(1) if last_frames is None else x_BTX[:, -last_frames:].mean(1)


def unfold(x: torch.Tensor, num_clips: int) -> torch.Tensor:
    """(B·T, …) → (B, T, …)."""
    return x.unflatten(0, (num_clips, -1))


def over_frames(embedding_TD: torch.Tensor, num_frames: int) -> torch.Tensor:
    """The temporal embedding for `num_frames` frames: interpolated linearly along T, the ends kept."""
    if embedding_TD.shape[0] == num_frames:
        return embedding_TD
    if not torch.compiler.is_compiling():  # a logger would break the graph
        logger.warning_once(
            f"The temporal embedding was made for {embedding_TD.shape[0]} frames and is interpolated linearly to the "
            f"{num_frames} frames of this clip."
        )
    as_image_1DT = embedding_TD.T[None]
    return torch.nn.functional.interpolate(as_image_1DT, size=num_frames, mode="linear", align_corners=True)[0].T
