"""What a model sees in frames that come one by one, from a camera or any other source.

frame ─ every k-th ─ preprocessing ─ step ─ softmax ─ smoothing ─ threshold ─► answer
"""

import math
from collections import deque
from dataclasses import dataclass

import torch
from torch import nn

from .data import Preprocessing, eval_transform

DEFAULT_CLIP_SECONDS = 2.0


@dataclass(frozen=True)
class LiveAnswer:
    """What the model sees after a frame.

    Attributes:
        seconds: when the frame was shown.
        label: the best class, or `no_action`.
        score: of the best class, smoothed, also where it is too low for its label to show.
        number: of the best class, whether or not its label shows; None: below the threshold.
        scores_K: smoothed probabilities of all classes.
    """

    seconds: float
    label: str
    score: float
    number: int | None
    scores_K: torch.Tensor


class LiveClassifier:
    """
    ```python
    live = LiveClassifier(model, fps=4, smoothing=1.0, threshold=0.5)
    for frame in frames:                                   # of `hf_i2v.data.LiveFrames`, or of anyone
        if answer := live.see(frame.picture_Chw, frame.seconds):
            print(answer.label, answer.score)
    ```

    Args:
        model: of `hf_i2v.predict.load_model`, in eval mode.
        fps: frames per second that the model takes, as in the clips of its training; of the source's frames those
            nearest to that. None, without a `stride`: so many that the `num_frames` of a clip last 2 s.
        stride: take every frame of this distance instead, as training with a `frame_stride` does.
        smoothing: in seconds: how long it takes until a sudden change has reached 63 % of its size in the scores.
            0 shows each answer as it is.
        threshold: the score below which no class is named.
        no_action: what is named then. It may be one of the model's classes.
        sliding_clips: run a model that is not causal on its last `num_frames` frames, anew for every frame that it
            takes, at the cost of a clip instead of a frame.

    Raises:
        ValueError: a model that cannot run frame by frame, unless it may run on sliding clips; a model that does not
            say how its pixels are made; a number out of its range; `fps` together with `stride`.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        fps: float | None = None,
        stride: int | None = None,
        smoothing: float = 0.0,
        threshold: float = 0.0,
        no_action: str = "no action",
        sliding_clips: bool = False,
    ):
        if fps is not None and stride is not None:
            raise ValueError(f"fps ({fps}) and stride ({stride}) both say which frames are taken; give one of them")
        if fps is not None and not 0 < fps < math.inf:
            raise ValueError(f"fps ({fps}) must be above 0")
        if stride is not None and stride < 1:
            raise ValueError(f"stride ({stride}) must be at least 1")
        if not 0 <= smoothing < math.inf:
            raise ValueError(f"smoothing ({smoothing}) must be 0 or more seconds")
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold ({threshold}) must be between 0 and 1")
        if model.config.preprocessing is None:
            raise ValueError("the model does not say how its pixels are made (preprocessing in its config.json)")
        why_not = model.why_not_streaming()
        if why_not is not None and not sliding_clips:
            raise ValueError(
                f"The model cannot run frame by frame: {why_not}. Train it with causal=True, or choose sliding clips "
                f"(sliding_clips=True, --sliding_clips), which cost {model.config.num_frames} times as much."
            )
        num_frames = model.config.num_frames
        self.fps = fps or num_frames / DEFAULT_CLIP_SECONDS
        self.stride, self.smoothing, self.threshold, self.no_action = stride, smoothing, threshold, no_action
        self.labels = [model.config.id2label[k] for k in range(model.config.num_labels)]
        self.num_steps = 0
        self._model = model
        self._transform = eval_transform(**vars(Preprocessing(**model.config.preprocessing)))
        self._clip = None if why_not is None else deque(maxlen=num_frames)
        self._state = None if why_not is not None else model.new_stream(batch_size=1)
        self.reset()

    def reset(self) -> None:
        """Begin anew, as after a cut: forget all frames and scores."""
        self._scores_K: torch.Tensor | None = None
        self._seen, self._last, self._due, self._answered = 0, 0.0, 0.0, 0.0
        if self._state is not None:
            self._state.reset()
        else:
            self._clip.clear()

    def see(self, picture_Chw: torch.Tensor, seconds: float, *, number: int | None = None) -> LiveAnswer | None:
        """Look at one more frame.

        Args:
            picture_Chw: uint8 RGB, of any size.
            seconds: when it was shown; must not go back, except after `reset`.
            number: of the frame among those of the source, where frames are left out; only for `stride`.

        Returns:
            The answer after this frame, or None where the model does not take it.
        """
        if not self._takes(seconds, number):
            return None
        pixels_1Chw = self._transform(picture_Chw[None]).to(self._model.device, self._model.dtype)
        scores_K = self._logits(pixels_1Chw)[0].float().softmax(-1).cpu()
        if self._scores_K is not None and self.smoothing > 0:
            share = math.exp(-(seconds - self._answered) / self.smoothing)  # of what was before
            scores_K = share * self._scores_K + (1 - share) * scores_K
        self._scores_K, self._answered = scores_K, seconds
        self.num_steps += 1
        best = int(scores_K.argmax())
        score = float(scores_K[best])
        is_action = score >= self.threshold and self.labels[best] != self.no_action
        label = self.labels[best] if is_action else self.no_action
        return LiveAnswer(seconds, label, score, best if is_action else None, scores_K)

    def _takes(self, seconds: float, number: int | None) -> bool:
        """Whether the model takes the frame: those of the stride, or the nearest to the time that is due."""
        number = self._seen if number is None else number
        apart, period = seconds - self._last, 1 / self.fps
        is_first, self._seen, self._last = self._seen == 0, self._seen + 1, seconds
        if is_first:
            self._due = number + self.stride if self.stride else seconds + period
            return True
        if self.stride:
            if number < self._due:
                return False
            self._due += self.stride * ((number - self._due) // self.stride + 1)
            return True
        if seconds + min(apart, period) / 2 < self._due:
            return False
        self._due = max(self._due + period, seconds + period / 2)
        return True

    @torch.no_grad()
    def _logits(self, pixels_1Chw: torch.Tensor) -> torch.Tensor:
        if self._state is not None:
            logits_1K, self._state = self._model.step(pixels_1Chw, self._state)
            return logits_1K
        self._clip.append(pixels_1Chw)
        first = [self._clip[0]] * (self._clip.maxlen - len(self._clip))  # held until there are enough
        return self._model(torch.stack([*first, *self._clip], dim=1)).logits
