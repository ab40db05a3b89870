"""A stream: one frame at a time, and what a model keeps of the frames before.

A part of the model that looks back in time has, beside its forward, a `new_state` that says what it keeps and a `step`
that takes one frame of each stream. What it keeps are tensors (S, …), one row a stream, zeros for a stream without
frames; `age_S` counts the frames that each stream has seen. `S` is a stream, in the place of the clip `B`.
"""

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

Kept = dict[str, torch.Tensor]  # by name, (S, …)
OTHER_ADAPTER = (
    "The state is of this model with another adapter: only one of them keeps {} of past frames. Make a new one with "
    "new_stream(batch_size=S) after attaching, switching or finishing an adapter."
)


class Step:
    """The step that is running: what was kept of the frames before, and what is kept for the frames after.

    Args:
        age_S: frames that each stream has seen before this one.
        num_frames: of a clip; how many frames the answer is the mean of.
        before: by place in the model; None: nothing was kept yet, so each part makes its new state.
    """

    def __init__(self, age_S: torch.Tensor, num_frames: int, before: dict[str, Kept] | None = None):
        self.age_S = age_S
        self.num_frames = num_frames
        self.before = before
        self.after: dict[str, Kept] = {}

    def recall(self, place: str, new_state: Callable[[], Kept]) -> Kept:
        """What the part of the model at `place` kept.

        Raises:
            ValueError: the state is of the model as it was with other adapters.
        """
        if self.before is None:
            return new_state()
        if place not in self.before:
            raise ValueError(OTHER_ADAPTER.format(place))
        return self.before[place]

    def keep(self, place: str, kept: Kept) -> None:
        """Keep something for the next step."""
        self.after[place] = kept

    def run(self, place: str, part: Any, x: torch.Tensor, **context: object) -> torch.Tensor:
        """`part.step` on this frame."""
        kept = {} if part.frame_wise else self.recall(place, lambda: part.new_state(x))
        x, kept = part.step(x, kept, age_S=self.age_S, **context)
        if not part.frame_wise:
            self.keep(place, kept)
        return x

    def check_complete(self) -> None:
        """Raise ValueError if something of the state was not asked for: it is of the model with other adapters."""
        if self.before is not None and (left := self.before.keys() - self.after.keys()):
            raise ValueError(OTHER_ADAPTER.format(sorted(left)[0]))

    def mean_of_last(self, num_frames: int, place: str, x_SX: torch.Tensor) -> torch.Tensor:
        """The mean of x over this frame and those before it, `num_frames` in all or as many as there were."""
        past_STX = self.recall(
            place, lambda: {"frames": x_SX.new_zeros(x_SX.shape[0], num_frames - 1, *x_SX.shape[1:])}
        )
        frames_STX = torch.cat((past_STX["frames"], x_SX[:, None]), dim=1)
        self.keep(place, {"frames": frames_STX[:, 1:].clone()})
        count_S = (self.age_S + 1).clamp(max=num_frames)
        wide = torch.promote_types(x_SX.dtype, torch.float32)
        sum_SX = frames_STX.sum(1, dtype=wide)  # what was never there is zero
        return (sum_SX / count_S.view(-1, *[1] * (x_SX.ndim - 1))).to(x_SX.dtype)


@dataclass(eq=False)
class StreamState:
    """What a model keeps of the streams of a batch; made by `new_stream`, and by each `step` anew.

    Args:
        age: (S,), frames that each stream has seen.
        kept: tensors (S, …) by place in the model and by name, on the model's device and in its dtype. Their size
            does not depend on the age.
        frame_shape: (C, h, w) of the frames.
        model: the image model that it belongs to. A copy or a pickled state has none.
    """

    age: torch.Tensor
    kept: dict[str, Kept]
    frame_shape: tuple[int, int, int]
    model: weakref.ref | None = field(default=None, repr=False)

    @property
    def batch_size(self) -> int:
        """The number of streams S."""
        return self.age.shape[0]

    def tensors(self) -> Kept:
        """All tensors by name, `age` first."""
        kept = {f"{place}.{name}": x for place, part in self.kept.items() for name, x in part.items()}
        return {"age": self.age, **kept}

    def replaced(self, tensors: Sequence[torch.Tensor]) -> "StreamState":
        """A state with other tensors, in the order of `tensors()`."""
        age, *rest = tensors
        values = iter(rest)
        kept = {place: {name: next(values) for name in part} for place, part in self.kept.items()}
        return StreamState(age, kept, self.frame_shape, self.model)

    def reset(self, index: int | Sequence[int] | torch.Tensor | None = None) -> None:
        """Let streams start anew, in place: those of `index`, or all. The other streams go on undisturbed.

        Raises:
            IndexError: a stream that does not exist.
        """
        fresh = torch.ones_like(self.age, dtype=torch.bool)
        if index is not None:
            fresh = torch.zeros_like(fresh)
            fresh[self._checked(index)] = True
        cleared = self.replaced([_cleared(x, fresh) for x in self.tensors().values()])
        self.age, self.kept = cleared.age, cleared.kept

    def select(self, index: int | Sequence[int] | torch.Tensor) -> "StreamState":
        """A state of the streams `index`, in this order: the others leave.

        Raises:
            IndexError: a stream that does not exist.
        """
        rows = self._checked(index)
        return self.replaced([x.index_select(0, rows) for x in self.tensors().values()])

    def join(self, other: "StreamState") -> "StreamState":
        """A state of both states' streams, those of `other` last.

        Raises:
            ValueError: states of different models, or for frames of different sizes.
        """
        mine, others = self.tensors(), other.tensors()
        one_model = self.model is None or other.model is None or self.model == other.model
        if not one_model or self.frame_shape != other.frame_shape or mine.keys() != others.keys():
            raise ValueError(
                f"The states of {self.batch_size} and {other.batch_size} streams cannot join: they are of different "
                f"models, or for frames of different sizes ({self.frame_shape} and {other.frame_shape})."
            )
        return self.replaced([torch.cat((x, others[name])) for name, x in mine.items()])

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors; each stream has the same share."""
        return sum(x.untyped_storage().nbytes() for x in self.tensors().values())

    def print_memory(self) -> None:
        """Print how much memory the state takes."""
        each = self.nbytes / self.batch_size / 1e6
        print(f"streams: {self.batch_size} || memory of each, however long it is: {each:.3g} MB")

    def _checked(self, index: int | Sequence[int] | torch.Tensor) -> torch.Tensor:
        rows = torch.as_tensor(index, dtype=torch.long, device=self.age.device).reshape(-1)
        if outside := [row for row in rows.tolist() if not 0 <= row < self.batch_size]:
            raise IndexError(f"There is no stream {outside[0]}: the state has streams 0 to {self.batch_size - 1}.")
        return rows

    def __getstate__(self) -> dict:
        return vars(self) | {"model": None}  # a weak reference cannot be pickled


def _cleared(x: torch.Tensor, fresh_S: torch.Tensor) -> torch.Tensor:
    return x.masked_fill(fresh_S.view(-1, *[1] * (x.ndim - 1)), 0)
