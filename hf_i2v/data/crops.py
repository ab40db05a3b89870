"""Resizing and cropping, the same for every frame of a clip, on uint8 frames (T, C, h, w) as they are decoded.

Shape suffixes: T frame, C channel, h height, w width.
"""

import functools
import logging
import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch.nn import functional as F

logger = logging.getLogger(__name__)

Interpolation = Literal["bilinear", "bicubic"]


@dataclass(frozen=True)
class ResizeShortSide:
    """Scale so that the shorter side is `size` pixels, keeping the aspect ratio (longer side rounded down).

    `interpolation` is "bilinear" or "bicubic".
    """

    size: int
    interpolation: Interpolation = "bilinear"

    def __call__(self, frames_TChw: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        height, width = frames_TChw.shape[-2:]
        short = min(height, width)
        new_size = (self.size * height // short, self.size * width // short)
        return _resize(frames_TChw, new_size, self.interpolation)


@dataclass(frozen=True)
class CenterCrop:
    """Cut the middle square of `size` pixels out; both sides must be at least that long."""

    size: int

    def __call__(self, frames_TChw: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        height, width = frames_TChw.shape[-2:]
        if min(height, width) < self.size:
            raise ValueError(f"frames of {height}x{width} (height x width) are smaller than the crop ({self.size})")
        top, left = (height - self.size) // 2, (width - self.size) // 2
        return frames_TChw[..., top : top + self.size, left : left + self.size]


@dataclass(frozen=True)
class ThreeCrops:
    """Cut three squares of `size` pixels out along the longer side: first end, middle, last end.

    Called with (T, C, h, w) it returns (3, T, C, size, size).
    """

    size: int
    num_crops: ClassVar[int] = 3

    def __call__(self, frames_TChw: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        height, width = frames_TChw.shape[-2:]
        if min(height, width) < self.size:
            raise ValueError(f"frames of {height}x{width} (height x width) are smaller than the crops ({self.size})")
        if height == width == self.size:
            _say_once("a video of %sx%s pixels is square: its three crops are identical", height, width)
        tops, lefts = ([(side - self.size) // 2] * 3 for side in (height, width))
        if height > width:
            tops = [0, (height - self.size) // 2, height - self.size]
        else:
            lefts = [0, (width - self.size) // 2, width - self.size]
        corners = zip(tops, lefts, strict=True)
        return torch.stack([frames_TChw[..., y : y + self.size, x : x + self.size] for y, x in corners])


@dataclass(frozen=True)
class ShortSideJitter:
    """Scale so that the shorter side has a random number of pixels, then cut a random square out.

    Args:
        size: side of the square.
        short_side: smallest and largest shorter side, at least `size`, e.g. (256, 320) for a size of 224.
        interpolation: how to scale.
    """

    size: int
    short_side: tuple[int, int]
    interpolation: Interpolation = "bilinear"

    def __post_init__(self):
        if not self.size <= self.short_side[0] <= self.short_side[1]:
            raise ValueError(f"short_side ({self.short_side}) must be (smallest, largest), both at least {self.size}")

    def __call__(self, frames_TChw: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        short = int(torch.randint(self.short_side[0], self.short_side[1] + 1, (), generator=generator))
        height, width = (side * short // min(frames_TChw.shape[-2:]) for side in frames_TChw.shape[-2:])
        top = int(torch.randint(height - self.size + 1, (), generator=generator))
        left = int(torch.randint(width - self.size + 1, (), generator=generator))
        frames_TChw = _resize(frames_TChw, (height, width), self.interpolation)
        return frames_TChw[..., top : top + self.size, left : left + self.size]


@dataclass(frozen=True)
class RandomResizedCrop:
    """Cut a random box out and scale it to a square of `size` pixels.

    Args:
        size: side of the result in pixels.
        scale: smallest and largest share of the frame's area.
        ratio: narrowest and widest aspect ratio (width over height) of the box.
        interpolation: how to scale.
    """

    size: int
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: Interpolation = "bilinear"

    def __post_init__(self):
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"scale ({self.scale}) must be (smallest, largest) with 0 < smallest <= largest <= 1")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"ratio ({self.ratio}) must be (narrowest, widest) with 0 < narrowest <= widest")

    def __call__(self, frames_TChw: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        top, left, height, width = self.box(*frames_TChw.shape[-2:], generator)
        crop_TChw = frames_TChw[..., top : top + height, left : left + width]
        return _resize(crop_TChw, (self.size, self.size), self.interpolation)

    def box(self, height: int, width: int, generator: torch.Generator | None) -> tuple[int, int, int, int]:
        """A (top, left, height, width) in pixels inside a frame of that height and width, drawn from `generator`."""
        log_ratio = (math.log(self.ratio[0]), math.log(self.ratio[1]))
        for _ in range(10):  # a box drawn too long for the frame is drawn again
            area = height * width * uniform(*self.scale, generator)
            ratio = math.exp(uniform(*log_ratio, generator))
            box_height, box_width = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
            if 0 < box_height <= height and 0 < box_width <= width:
                top = int(torch.randint(height - box_height + 1, (), generator=generator))
                left = int(torch.randint(width - box_width + 1, (), generator=generator))
                return top, left, box_height, box_width
        # The largest box of an allowed ratio in the middle of the frame.
        box_height = min(height, max(1, round(width / self.ratio[0])))
        box_width = min(width, max(1, round(height * self.ratio[1])))
        return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width


@functools.cache
def _say_once(message: str, *args) -> None:
    logger.warning(message, *args)


def _resize(frames_TChw: torch.Tensor, size: tuple[int, int], interpolation: Interpolation) -> torch.Tensor:
    if frames_TChw.shape[-2:] == size:
        return frames_TChw
    if frames_TChw.device.type == "cpu":
        return F.interpolate(frames_TChw, size=size, mode=interpolation, antialias=True, align_corners=False)
    return _resize_as_floats(frames_TChw, size, interpolation)


def _resize_as_floats(frames_TChw: torch.Tensor, size: tuple[int, int], interpolation: Interpolation) -> torch.Tensor:
    """At most one level apart: GPUs have no such kernel for bytes."""
    floats_TChw = F.interpolate(
        frames_TChw.float(), size=size, mode=interpolation, antialias=True, align_corners=False
    )
    return floats_TChw.round_().clamp_(0, 255).to(torch.uint8)


def uniform(low: float, high: float, generator: torch.Generator | None) -> float:
    """A random number from low to high."""
    return low + (high - low) * float(torch.rand((), dtype=torch.float64, generator=generator))
