"""A video model that answers frame by frame: the methods `new_stream` and `step`."""

import weakref

import torch
from torch import nn

from .stream_state import Step, StreamState


class StreamingModel:
    """What the video models have for streams."""

    def why_not_streaming(self) -> str | None:
        """The reason why the model cannot run frame by frame; None: `new_stream` and `step` work."""
        return self.base_model.image_model.why_not_streaming()

    @torch.no_grad()
    def new_stream(self, batch_size: int = 1, *, image_size: int | tuple[int, int] | None = None) -> StreamState:
        """The state of streams that have seen no frame yet, for `step`; on the model's device and in its dtype.

        Args:
            batch_size: number of streams S, which may start, stop and be replaced one by one (see `StreamState`).
            image_size: height and width of the frames; None: what the model's preprocessing makes.

        Raises:
            ValueError: the model cannot run frame by frame, because a frame's result depends on later ones.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size ({batch_size}) must be >= 1")
        if why := self.why_not_streaming():
            raise ValueError(
                f"This {type(self).__name__} cannot run frame by frame: {why}. Call it on clips (B, T, C, h, w) "
                "instead."
            )
        backbone = self.base_model.image_model
        *_, channels, height, width = self.config.clip_shape()
        if image_size is not None:
            height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        blank = torch.zeros(1, channels, height, width, dtype=backbone.dtype, device=backbone.device)
        started = Step(torch.zeros(1, dtype=torch.long, device=blank.device), self.config.num_frames)
        self._run_step(blank, started)  # says what each part keeps
        kept = {
            place: {name: x.new_zeros(batch_size, *x.shape[1:]) for name, x in part.items()}
            for place, part in started.after.items()
        }
        age = torch.zeros(batch_size, dtype=torch.long, device=blank.device)
        return StreamState(age, kept, (channels, height, width), weakref.ref(backbone))

    @torch.no_grad()
    def step(self, frames: torch.Tensor, state: StreamState) -> tuple[torch.Tensor, StreamState]:
        """The answer after one more frame of each stream: what the model gives for a clip of all its frames so far.

        ```python
        state = model.new_stream(batch_size=2)
        for frames_SChw in camera:
            logits_SC, state = model.step(frames_SChw, state)
        ```

        The clip feature is the mean over the last `num_frames` frames, or over as many as there were. Gradients are
        not recorded. The given state stays as it is.

        Args:
            frames: (S, C, h, w), normalised pixels as in a clip.
            state: of `new_stream`, or of the step before.

        Returns:
            Logits (S, num_labels), or the feature (S, D) of a model without a head; and the new state.

        Raises:
            ValueError: the state is of another model or batch, frames have another size, number of channels or an
                integer type, or the model is in training mode.
        """
        backbone = self.base_model.image_model
        check_step(frames, state, backbone)
        running = Step(state.age, self.config.num_frames, state.kept)
        answer = self._run_step(frames.to(backbone.dtype), running)
        running.check_complete()
        return answer, StreamState(state.age + 1, running.after, state.frame_shape, state.model)

    def _run_step(self, frames_SChw: torch.Tensor, step: Step) -> torch.Tensor:
        """The answer to one frame of each stream, (S, …)."""
        raise NotImplementedError(f"{type(self).__name__} has no step.")


def check_step(frames: torch.Tensor, state: StreamState, model: nn.Module) -> None:
    """Raise ValueError if frames or state do not fit each other or the model."""
    if not isinstance(frames, torch.Tensor):
        raise ValueError(f"step takes frames as a tensor (S, C, h, w), not a {type(frames).__name__}.")
    if not isinstance(state, StreamState):
        raise ValueError(
            f"step takes the state that new_stream or the step before gave, not a {type(state).__name__}."
        )
    if model.training:
        raise ValueError("The model is in training mode, in which dropout is random. Call model.eval() first.")
    if state.model not in (None, weakref.ref(model)):
        raise ValueError("The state is of another model. Make one with this model's new_stream(batch_size=S).")
    shape, expected = tuple(frames.shape), (state.batch_size, *state.frame_shape)
    if frames.ndim != 4 or shape[1:] != expected[1:]:
        is_other_size = frames.ndim == 4 and shape[1] == expected[1]
        advice = (
            f"For frames of another size make a state with new_stream(batch_size={shape[0]}, image_size={shape[2:]})."
            if is_other_size
            else f"The {expected[1]} channels come second; a clip (S, T, C, h, w) goes through step frame by frame."
        )
        raise ValueError(
            f"frames are {shape}, but the streams take frames (S, C, h, w) of {expected}: one frame of each stream. "
            + advice
        )
    if shape[0] != state.batch_size:
        raise ValueError(
            f"frames are {shape}, one for each of {shape[0]} streams, but the state has {state.batch_size}. Make a "
            f"state with new_stream(batch_size={shape[0]}), or use the state's select() and join()."
        )
    if not frames.is_floating_point():
        raise ValueError(
            f"frames are {frames.dtype}: a step takes normalised floating-point pixels, as the model's processor or "
            "hf_i2v.data.eval_transform makes them."
        )
