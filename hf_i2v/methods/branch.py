"""A side branch: a method that reads a frozen model and leaves it as it is.

The frozen model runs without a graph. What the branch reads of it depends on the clip alone, so it can be computed
once and come from a cache ever after (`hf_i2v.feature_cache`).
"""

from typing import Any, ClassVar, NamedTuple

import torch
from torch import nn

from ..stream_state import Kept


class FrozenFeatures(NamedTuple):
    """What the frozen part of a model makes of clips, in the place of their pixels. Unused fields are None."""

    levels: torch.Tensor | None = None  # what a side branch reads, (L, B, T, P, D)
    feature: torch.Tensor | None = None  # the frozen model's clip feature, (B, D)
    entering: torch.Tensor | None = None  # what enters the block `first_block`, (B, T, N, D)
    first_block: int | None = None
    image_size: tuple[int, int] | None = None  # height and width of the frames that `entering` was made from

    def to(self, *args: Any, **kwargs: Any) -> "FrozenFeatures":
        """As `torch.Tensor.to`, for all tensors."""
        return FrozenFeatures(*(x.to(*args, **kwargs) if isinstance(x, torch.Tensor) else x for x in self))


class Branch(nn.Module):
    """The module of a method with `has_branch`. Subclass it and write `forward`, and `read` if it keeps less.

    Attributes:
        levels: indices of the blocks whose outputs it reads.
        reads_final_norm: whether all that it reads goes through the model's final norm first.
        num_prefix_tokens: CLS and register tokens, which stand before the patches.
    """

    reads_final_norm: ClassVar[bool] = False
    frame_wise: ClassVar[bool] = False
    levels: list[int]
    num_prefix_tokens: int

    def read(self, x_MND: torch.Tensor) -> torch.Tensor:
        """One level's tokens → what the branch needs of them, (M, P, D); no gradient, no parameter of the branch."""
        return x_MND

    def reading(self) -> dict:
        """What `read` depends on besides the tokens: a cache made with other values is not the branch's."""
        return {"levels": self.levels}

    def forward(self, levels_LBTPD: torch.Tensor, feature_BD: torch.Tensor) -> torch.Tensor:
        """The clip feature.

        Args:
            levels_LBTPD: what was read of each level, maybe in a cache's dtype.
            feature_BD: the frozen model's clip feature.

        Returns:
            The clip feature that takes its place, (B, D).
        """
        raise NotImplementedError(f"{type(self).__name__} has no forward.")

    @property
    def why_not_streaming(self) -> str | None:
        """The reason why it cannot work frame by frame; None: it can, and writes `new_state` and `step`."""
        return "reads whole clips"

    def new_state(self, levels_LSTPD: torch.Tensor) -> Kept:
        """What it keeps of streams without frames, zeros (S, …) by name, made from their first frame (T = 1)."""
        raise NotImplementedError(f"{type(self).__name__} has no new_state.")

    def step(
        self, levels_LSTPD: torch.Tensor, kept: Kept, *, age_S: torch.Tensor, feature_SD: torch.Tensor
    ) -> tuple[torch.Tensor, Kept]:
        """`forward` on one more frame of each stream: feature (S, D) and what is `kept`, see `SiteModule.step`."""
        raise NotImplementedError(f"{type(self).__name__} has no step.")
