"""Augmentations of a clip's pixels, the same for all its frames: RandAugment, colour jitter, random erasing.

Pillow does the work: it is fast on uint8, and its operations are those that RandAugment was defined with. Operations
on colours see the clip as one tall picture, so that the mean and other statistics are the clip's and do not flicker.

Shape suffixes: T frame, C channel, h height, w width.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps, ImageStat

_MAX_MAGNITUDE = 10
_GREY = (124, 116, 104)  # ImageNet's mean, where a geometric operation uncovers nothing


@dataclass(frozen=True)
class RandAugment:
    """RandAugment (Cubuk et al., arXiv:1909.13719): some operations of 14, drawn anew for each clip.

    Args:
        num_ops: operations per clip, drawn with repetition; "do nothing" is one of the 14.
        magnitude: strength in [0, 10].
        magnitude_std: standard deviation of the strength, which is drawn for each operation.
    """

    num_ops: int = 2
    magnitude: float = 9.0
    magnitude_std: float = 0.5

    def __post_init__(self):
        if self.num_ops < 1:
            raise ValueError(f"num_ops ({self.num_ops}) must be at least 1")
        if not 0 <= self.magnitude <= _MAX_MAGNITUDE:
            raise ValueError(f"magnitude ({self.magnitude}) must be in [0, {_MAX_MAGNITUDE}]")

    def __call__(self, frames_TChw: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        num_frames = len(frames_TChw)
        tall = _to_tall(frames_TChw)
        for _ in range(self.num_ops):
            operation = _OPERATIONS[int(torch.randint(len(_OPERATIONS), (), generator=generator))]
            noise, sign = torch.randn(2, dtype=torch.float64, generator=generator).tolist()
            strength = min(max(self.magnitude + self.magnitude_std * noise, 0), _MAX_MAGNITUDE) / _MAX_MAGNITUDE
            tall = operation(tall, num_frames, strength, math.copysign(1, sign))
        return _from_tall(tall, num_frames)


@dataclass(frozen=True)
class ColorJitter:
    """Change brightness, contrast, saturation and hue, in this order.

    Args:
        brightness: factors are drawn from `[1 - brightness, 1 + brightness]`, likewise for the next two.
        contrast: see above.
        saturation: see above.
        hue: shift, drawn from `[-hue, hue]`, in turns of the colour wheel; at most 0.5.
    """

    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.0

    def __post_init__(self):
        for name, largest in (("brightness", 1), ("contrast", 1), ("saturation", 1), ("hue", 0.5)):
            if not 0 <= getattr(self, name) <= largest:
                raise ValueError(f"{name} ({getattr(self, name)}) must be in [0, {largest}]")

    def __call__(self, frames_TChw: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        drawn = (2 * torch.rand(4, dtype=torch.float64, generator=generator) - 1).tolist()
        tall = _to_tall(frames_TChw)
        widths = (self.brightness, self.contrast, self.saturation)
        for change, width, draw in zip((_brightness, _contrast, _saturation), widths, drawn, strict=False):
            if width > 0:
                tall = change(tall, 1 + width * draw)
        if self.hue > 0:
            hue, saturation, value = tall.convert("HSV").split()
            shift = round(255 * self.hue * drawn[3])
            hue = hue.point([(level + shift) % 256 for level in range(256)])
            tall = Image.merge("HSV", (hue, saturation, value)).convert("RGB")
        return _from_tall(tall, len(frames_TChw))


@dataclass(frozen=True)
class RandomErasing:
    """Fill a random box of the clip with noise (Zhong et al., arXiv:1708.04896), the same box and noise in all frames.

    Args:
        p: probability.
        scale: smallest and largest share of the area.
        ratio: narrowest and widest aspect ratio (height over width).
    """

    p: float = 0.25
    scale: tuple[float, float] = (0.02, 1 / 3)
    ratio: tuple[float, float] = (0.3, 10 / 3)

    def __post_init__(self):
        if not 0 <= self.p <= 1:
            raise ValueError(f"the probability of erasing ({self.p}) must be in [0, 1]")

    def __call__(self, frames_TChw: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        def draw(low, high):
            return low + (high - low) * float(torch.rand((), dtype=torch.float64, generator=generator))

        if draw(0, 1) >= self.p:
            return frames_TChw
        height, width = frames_TChw.shape[-2:]
        area = height * width * draw(*self.scale)
        ratio = math.exp(draw(math.log(self.ratio[0]), math.log(self.ratio[1])))
        box_height = min(height, max(1, round(math.sqrt(area * ratio))))
        box_width = min(width, max(1, round(math.sqrt(area / ratio))))
        top = int(torch.randint(height - box_height + 1, (), generator=generator))
        left = int(torch.randint(width - box_width + 1, (), generator=generator))
        noise_Chw = torch.randint(0, 256, (3, box_height, box_width), dtype=torch.uint8, generator=generator)
        frames_TChw = frames_TChw.clone()
        frames_TChw[..., top : top + box_height, left : left + box_width] = noise_Chw
        return frames_TChw


def _to_tall(frames_TChw: torch.Tensor) -> Image.Image:
    num_frames, channels, height, width = frames_TChw.shape
    rows_hwC = frames_TChw.permute(0, 2, 3, 1).reshape(num_frames * height, width, channels)
    return Image.fromarray(rows_hwC.numpy())


def _from_tall(tall: Image.Image, num_frames: int) -> torch.Tensor:
    rows_hwC = torch.from_numpy(np.array(tall))
    return rows_hwC.reshape(num_frames, tall.height // num_frames, tall.width, -1).permute(0, 3, 1, 2)


def _brightness(tall: Image.Image, factor: float) -> Image.Image:
    return _from_grey(tall, factor, 0)


def _contrast(tall: Image.Image, factor: float) -> Image.Image:
    return _from_grey(tall, factor, int(ImageStat.Stat(tall.convert("L")).mean[0] + 0.5))


def _saturation(tall: Image.Image, factor: float) -> Image.Image:
    return ImageEnhance.Color(tall).enhance(factor)


def _from_grey(tall: Image.Image, factor: float, grey: int) -> Image.Image:
    """What `ImageEnhance` does, blending with a grey picture, but of the 256 levels only: a table is faster."""
    levels = Image.frombytes("L", (256, 1), bytes(range(256)))
    return tall.point(3 * list(Image.blend(Image.new("L", levels.size, grey), levels, factor).tobytes()))


def _each_frame(tall: Image.Image, num_frames: int, change: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """For operations that look at neighbouring pixels, which must not be those of the next frame."""
    height = tall.height // num_frames
    changed = Image.new("RGB", tall.size)
    for number in range(num_frames):
        frame = tall.crop((0, number * height, tall.width, (number + 1) * height))
        changed.paste(change(frame), (0, number * height))
    return changed


def _affine(tall, num_frames, matrix) -> Image.Image:
    def change(frame):
        return frame.transform(frame.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=_GREY)

    return _each_frame(tall, num_frames, change)


def _enhance(change):
    return lambda tall, num_frames, strength, sign: change(tall, 1 + sign * 0.9 * strength)


def _sharpness(tall, num_frames, strength, sign):
    factor = 1 + sign * 0.9 * strength
    return _each_frame(tall, num_frames, lambda frame: ImageEnhance.Sharpness(frame).enhance(factor))


def _rotate(tall, num_frames, strength, sign):
    degrees = sign * 30 * strength
    return _each_frame(
        tall, num_frames, lambda frame: frame.rotate(degrees, Image.Resampling.BILINEAR, fillcolor=_GREY)
    )


# (tall picture, frames in it, strength in [0, 1], sign) -> tall picture
_OPERATIONS = (
    lambda tall, num_frames, strength, sign: tall,
    lambda tall, num_frames, strength, sign: ImageOps.autocontrast(tall),
    lambda tall, num_frames, strength, sign: ImageOps.equalize(tall),
    _rotate,
    lambda tall, num_frames, strength, sign: ImageOps.solarize(tall, round(256 * (1 - strength))),
    lambda tall, num_frames, strength, sign: ImageOps.posterize(tall, 8 - round(4 * strength)),
    _enhance(_saturation),
    _enhance(_contrast),
    _enhance(_brightness),
    _sharpness,
    lambda tall, num_frames, strength, sign: _affine(tall, num_frames, (1, sign * 0.3 * strength, 0, 0, 1, 0)),
    lambda tall, num_frames, strength, sign: _affine(tall, num_frames, (1, 0, 0, sign * 0.3 * strength, 1, 0)),
    lambda tall, num_frames, strength, sign: _affine(
        tall, num_frames, (1, 0, sign * 0.45 * strength * tall.width, 0, 1, 0)
    ),
    lambda tall, num_frames, strength, sign: _affine(
        tall, num_frames, (1, 0, 0, 0, 1, sign * 0.45 * strength * tall.height / num_frames)
    ),
)
