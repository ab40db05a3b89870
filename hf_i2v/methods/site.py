"""The sites of a transformer block, and the interface of a module that stands at one.

    x ── before ──► norm1 ─ attention_in ─ attention ─ attention_out ─► + ── between ──►
         norm2 ─┬─ mlp_in ─ mlp ─ mlp_out ─► + ── after ──► x
                └─ parallel ───────────────► +

| site          | what `forward` gets                                | its result                     |
|---------------|----------------------------------------------------|--------------------------------|
| before        | the residual stream that enters the block          | replaces the input             |
| attention_in  | norm1(x), the input of q, k and v                  | replaces the input             |
| attention_out | the attention's output, before the residual sum    | replaces the input             |
| between       | the residual stream between attention and MLP      | replaces the input             |
| mlp_in        | norm2(x), the input of the MLP                     | replaces the input             |
| mlp_out       | the MLP's output, before the residual sum          | replaces the input             |
| parallel      | norm2(x)                                           | is added to the MLP's output   |
| after         | the residual stream that leaves the block          | replaces the input             |

In the last block of a model whose feature depends on the CLS token only, sites after `between` may get that token
alone.
"""

from collections.abc import Callable
from typing import ClassVar, NamedTuple

import torch
from torch import nn

from ..stream_state import Kept

SITE_NAMES = ("before", "attention_in", "attention_out", "between", "mlp_in", "mlp_out", "parallel", "after")
FOLDING_SITES = ("attention_in", "attention_out", "mlp_in", "mlp_out")  # next to a linear layer of the frozen model


class AffineMap(NamedTuple):
    """y = (I + up·down) x + constant, in float32 or wider."""

    up: torch.Tensor  # (D, R)
    down: torch.Tensor  # (R, D)
    constant: torch.Tensor  # (D,)


class SiteModule(nn.Module):
    """A module that a method puts at a site. A subclass writes `forward`. Parameters are optional.

    Attributes:
        frames_merged: how many neighbouring frames become one. A module with another number than 1 stands at `before`
            and returns (M / frames_merged, N, D).
        folds: whether the module is an affine map of a token that `affine()` gives, so that merging can fold it into
            the frozen weights. Such a module stands at one of `FOLDING_SITES`.
        frame_wise: whether each frame's result depends on that frame alone. Else a module that can work on a stream,
            frame by frame, writes `new_state` and `step`.
    """

    frames_merged: ClassVar[int] = 1
    folds: ClassVar[bool] = False
    frame_wise: ClassVar[bool] = False

    def forward(
        self, x_MND: torch.Tensor, *, num_frames: int, norm1: Callable, attend: Callable, **context: object
    ) -> torch.Tensor:
        """What takes the place of its input, or at `parallel` is added.

        Args:
            x_MND: (B·T, N, D), see the table of this file; frames of one clip are contiguous.
            num_frames: T at this place.
            norm1: the block's own norm before the attention, (…, D) → (…, D).
            attend: the block's own frozen attention over any sequences, (C, length, D) → (C, length, D), without
                time shift or positions. A second argument is added to the attention's logits as a mask, or changes
                keys and values (see `kernel.py`).
            context: arguments of later versions. Accept and ignore them.

        Returns:
            (B·T, N, D), or (B·T / frames_merged, N, D).
        """
        raise NotImplementedError(f"{type(self).__name__} has no forward.")

    @property
    def why_not_streaming(self) -> str | None:
        """The reason why it cannot work frame by frame; None: it can."""
        writes_step = type(self).step is not SiteModule.step
        return None if self.frame_wise or writes_step else "has no step for one frame"

    def new_state(self, x_SND: torch.Tensor) -> Kept:
        """What it keeps of streams without frames: zeros (S, …) by name, made from the S streams' first frame."""
        return {}

    def step(
        self,
        x_SND: torch.Tensor,
        kept: Kept,
        *,
        age_S: torch.Tensor,
        norm1: Callable,
        attend: Callable,
        **context: object,
    ) -> tuple[torch.Tensor, Kept]:
        """`forward` on the newest frame of each stream.

        Args:
            kept: what it kept; not to be changed in place.
            age_S: how many frames each stream had before. What is kept of a stream without frames is zero.
            norm1, attend, context: as in `forward`.

        Returns:
            What `forward` gives for this frame at the end of a clip of all frames so far, and what to keep.
        """
        return self(x_SND, num_frames=1, norm1=norm1, attend=attend, **context), kept

    def affine(self) -> AffineMap:
        """The module as an affine map, in evaluation mode. Only called if the module `folds`."""
        raise NotImplementedError(f"{type(self).__name__} folds into weights, but has no affine().")


def check_site(site: str, module: nn.Module, method: str) -> None:
    """Raise TypeError or ValueError if a method's module cannot stand at `site`."""
    if not isinstance(module, SiteModule):
        raise TypeError(f"{method} puts a {type(module).__name__} at {site!r}; it must be a hf_i2v.SiteModule.")
    allowed = ("before",) if module.frames_merged != 1 else FOLDING_SITES if module.folds else SITE_NAMES
    if site not in allowed:
        raise ValueError(f"{method} puts a {type(module).__name__} at {site!r}; it can stand at {list(allowed)}.")
