"""Mixup and cutmix: clips of a batch mixed in pairs, and their labels with them.

Papers: mixup (arXiv 1710.09412), cutmix (arXiv 1905.04899). With λ ~ Beta(α, α) and another clip y of the batch:

    mixup    x ← λ x + (1 − λ) y          cutmix   a box of share 1 − λ of every frame of x is taken from y
    target   t ← λ t + (1 − λ) t_y        (cutmix: λ is the share that x really keeps)
"""

import math

import torch


def mix(
    pixel_values: torch.Tensor, targets_BK: torch.Tensor, *, mixup_alpha: float = 0.0, cutmix_alpha: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mix each clip with the clip of the reversed batch; one λ for a batch. Uses torch's global random state.

    Args:
        pixel_values: (B, T, C, h, w).
        targets_BK: class probabilities.
        mixup_alpha: α of mixup; 0 switches it off. With both on, each batch gets one of them, by a coin.
        cutmix_alpha: the same for cutmix.
    """
    alphas = [("mixup", mixup_alpha), ("cutmix", cutmix_alpha)]
    chosen = [(kind, alpha) for kind, alpha in alphas if alpha > 0]
    if not chosen:
        return pixel_values, targets_BK
    kind, alpha = chosen[int(torch.randint(len(chosen), ()))]
    concentration = torch.tensor(float(alpha), dtype=torch.float64)
    kept = float(torch.distributions.Beta(concentration, concentration).sample())
    other = pixel_values.flip(0)
    if kind == "mixup":
        pixel_values = kept * pixel_values + (1 - kept) * other
    else:
        top, left, box_height, box_width = _box(*pixel_values.shape[-2:], share=1 - kept)
        box = (..., slice(top, top + box_height), slice(left, left + box_width))
        pixel_values = pixel_values.clone()
        pixel_values[box] = other[box]
        kept = 1 - box_height * box_width / math.prod(pixel_values.shape[-2:])
    return pixel_values, kept * targets_BK + (1 - kept) * targets_BK.flip(0)


def _box(height: int, width: int, share: float) -> tuple[int, int, int, int]:
    """Top, left, height and width of a random box inside a frame, of its shape and about `share` of its area."""
    box_height, box_width = (round(side * math.sqrt(share)) for side in (height, width))
    top = int(torch.randint(height - box_height + 1, ()))
    left = int(torch.randint(width - box_width + 1, ()))
    return top, left, box_height, box_width
