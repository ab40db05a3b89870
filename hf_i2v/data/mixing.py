"""Mixup and CutMix: each clip of a batch is mixed with another one, and so are their labels.

Shape suffixes: B clip, K class; `...` stands for views, frames and channels.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Mix:
    """Mixup (Zhang et al., arXiv:1710.09412) or CutMix (Yun et al., arXiv:1905.04899) on a batch, the same for all
    frames of a clip. Where both are on, each batch gets one of them.

    Args:
        num_classes: K.
        mixup_alpha: parameter of the Beta distribution that the shares are drawn from; 0 switches mixup off.
        cutmix_alpha: the same for CutMix.
        label_smoothing: what the labels give to all classes together.
    """

    num_classes: int
    mixup_alpha: float = 0.8
    cutmix_alpha: float = 1.0
    label_smoothing: float = 0.0

    def __post_init__(self):
        for name in ("mixup_alpha", "cutmix_alpha"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} ({getattr(self, name)}) must not be negative")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing ({self.label_smoothing}) must be in [0, 1)")

    def __call__(
        self, pixels: torch.Tensor, labels_B: torch.Tensor, generator: torch.Generator | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mix a batch.

        Args:
            pixels: (B, ..., h, w).
            labels_B: (B,) int64.
            generator: source of randomness.

        Returns:
            Pixels of the same shape, and labels (B, K) float32 whose rows add up to 1.

        Raises:
            ValueError: a label out of range.
        """
        if not 0 <= int(labels_B.min()) <= int(labels_B.max()) < self.num_classes:
            raise ValueError(f"labels ({labels_B.tolist()}) must be in [0, num_classes), it is {self.num_classes}")
        labels_BK = torch.nn.functional.one_hot(labels_B, self.num_classes).float()
        labels_BK = labels_BK * (1 - self.label_smoothing) + self.label_smoothing / self.num_classes
        on = [alpha for alpha in (self.mixup_alpha, self.cutmix_alpha) if alpha > 0]
        if not on:
            return pixels, labels_BK
        cut = self.cutmix_alpha > 0 and (self.mixup_alpha == 0 or float(torch.rand((), generator=generator)) < 0.5)
        share = _beta(self.cutmix_alpha if cut else self.mixup_alpha, generator)  # of the clip itself
        others = pixels.flip(0)
        if cut:
            height, width = pixels.shape[-2:]
            box_height, box_width = (round(side * (1 - share) ** 0.5) for side in (height, width))
            top = int(torch.randint(height - box_height + 1, (), generator=generator))
            left = int(torch.randint(width - box_width + 1, (), generator=generator))
            rows, columns = slice(top, top + box_height), slice(left, left + box_width)
            pixels = pixels.clone()
            pixels[..., rows, columns] = others[..., rows, columns]
            share = 1 - box_height * box_width / (height * width)
        else:
            pixels = pixels * share + others * (1 - share)
        return pixels, labels_BK * share + labels_BK.flip(0) * (1 - share)


def _beta(alpha: float, generator: torch.Generator | None) -> float:
    """A draw from Beta(alpha, alpha), from uniform ones (Jöhnk): torch's own Beta takes no generator."""
    while True:
        x, y = (torch.rand(2, dtype=torch.float64, generator=generator) ** (1 / alpha)).tolist()
        if 0 < x + y <= 1:
            return x / (x + y)
