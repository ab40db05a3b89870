"""Clip transforms: the same crop, flip and scale for every frame of a clip.

Each transform is a small frozen dataclass, called with a clip of shape (T, C, h, w) and, where it is random, the
generator to draw from (None: torch's global one). All but `Normalize` take and return uint8.

Shape suffixes: T frame, C channel, h height, w width.
"""

import json
import logging
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .augment import ColorJitter, RandAugment, RandomErasing
from .crops import CenterCrop, Interpolation, RandomResizedCrop, ResizeShortSide, ShortSideJitter, ThreeCrops, uniform

logger = logging.getLogger(__name__)

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

Transform = Callable[[torch.Tensor, torch.Generator | None], torch.Tensor]


@dataclass(frozen=True)
class RandomHorizontalFlip:
    """Mirror the whole clip left to right with probability `p`."""

    p: float = 0.5

    def __post_init__(self):
        # bool is an int to Python: flip=True would mirror every clip
        if isinstance(self.p, bool) or not 0 <= self.p <= 1:
            raise ValueError(f"the flip probability ({self.p}) must be a number in [0, 1], e.g. 0.5")

    def __call__(self, frames_TChw: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        return frames_TChw.flip(-1) if self.draw(generator) else frames_TChw

    def draw(self, generator: torch.Generator | None) -> bool:
        """Whether to mirror a clip, drawn from `generator`."""
        return uniform(0, 1, generator) < self.p


@dataclass(frozen=True)
class Normalize:
    """uint8 pixels to float32 `(pixel / 255 - mean) / std`, per channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self):
        if len(self.mean) != len(self.std) or min(self.std, default=0) <= 0:
            raise ValueError(f"mean ({self.mean}) and std ({self.std}) must be of one length, and std positive")

    def __call__(self, frames_TChw: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        if frames_TChw.shape[-3] != len(self.mean):
            raise ValueError(f"frames have {frames_TChw.shape[-3]} channels, mean and std have {len(self.mean)}")
        mean_C11 = torch.tensor(self.mean, device=frames_TChw.device).view(-1, 1, 1)
        std_C11 = torch.tensor(self.std, device=frames_TChw.device).view(-1, 1, 1)
        frames_TChw = frames_TChw.to(torch.float32, memory_format=torch.contiguous_format)
        return frames_TChw.sub_(mean_C11 * 255).div_(std_C11 * 255)


@dataclass(frozen=True, repr=False)
class ClipTransform:
    """From uint8 frames to `pixel_values`, in three parts that `VideoClips` and `ClipLoader` use one by one.

    Args:
        pixels: transforms on uint8 frames (T, C, h, w), one after the other: crops, colours. The last may add a
            dimension for several crops in front.
        flip: decided before the pixels' randomness and done after it, so that a label can follow. None: no flip.
        normalize: to float32, last of all; where batches have a device, there. None: pixels stay as they are.
    """

    pixels: tuple[Transform, ...] = ()
    flip: RandomHorizontalFlip | None = None
    normalize: Normalize | None = None

    def __call__(self, frames_TChw: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        frames_TChw = self.uint8(frames_TChw, generator, is_flipped=self.draw_flip(generator))
        return frames_TChw if self.normalize is None else self.normalize(frames_TChw)

    def draw_flip(self, generator: torch.Generator | None) -> bool:
        """Whether to mirror a clip, drawn from `generator`."""
        return self.flip is not None and self.flip.draw(generator)

    def uint8(self, frames_TChw: torch.Tensor, generator: torch.Generator | None, *, is_flipped: bool) -> torch.Tensor:
        """All but the normalisation, uint8 (T, C, h, w), mirrored if it `is_flipped`; drawn from `generator`."""
        for transform in self.pixels:
            frames_TChw = transform(frames_TChw, generator)
        return frames_TChw.flip(-1) if is_flipped else frames_TChw

    @property
    def num_crops(self) -> int:
        """Views that a clip becomes."""
        return math.prod(getattr(transform, "num_crops", 1) for transform in self.pixels)

    def __repr__(self) -> str:  # part of a feature cache's fingerprint
        parts = (*self.pixels, *(part for part in (self.flip, self.normalize) if part is not None))
        return f"Compose(transforms={parts!r})"


def Compose(transforms: Sequence[Transform]) -> ClipTransform:
    """A `ClipTransform` of transforms in a row. A flip may stand anywhere and is done last, before `Normalize`.

    Raises:
        ValueError: several flips, or a `Normalize` that is not the last.
    """
    flips = [part for part in transforms if isinstance(part, RandomHorizontalFlip)]
    if len(flips) > 1:
        raise ValueError(f"a clip is flipped once, but there are {len(flips)} flips: {flips}; leave one of them")
    *others, last = (part for part in (None, *transforms) if part not in flips)
    normalize = last if isinstance(last, Normalize) else None
    pixels = tuple(part for part in (*others, last) if part is not None and part is not normalize)
    if any(isinstance(part, Normalize) for part in pixels):
        raise ValueError(f"Normalize must be the last of the transforms, got {tuple(transforms)}")
    return ClipTransform(pixels, flips[0] if flips else None, normalize)


def train_transform(
    *,
    size: int,
    mean: Sequence[float],
    std: Sequence[float],
    flip: float,
    interpolation: Interpolation = "bilinear",
    scale: tuple[float, float] = (0.08, 1.0),
    short_side: tuple[int, int] | None = None,
    color_jitter: float = 0.0,
    rand_augment: tuple[int, float] | None = None,
    erase: float = 0.0,
) -> ClipTransform:
    """Random resized crop, what is asked for of colour jitter, RandAugment and erasing, horizontal flip, normalise.

    Args:
        size: side of the square result in pixels.
        mean: mean of the image model's pixels, in units of 0 to 1, per channel.
        std: their standard deviation.
        flip: probability of a horizontal flip; 0 where left and right mean something.
        interpolation: "bilinear" or "bicubic", both with antialiasing.
        scale: smallest and largest share of the frame's area that a crop covers.
        short_side: (smallest, largest) to scale the shorter side to and cut a random square out, instead of the random
            resized crop; `scale` is then without effect.
        color_jitter: range of brightness, contrast and saturation, see `ColorJitter`.
        rand_augment: number of operations and their magnitude, see `RandAugment`.
        erase: probability of erasing a box, see `RandomErasing`.

    Returns:
        A picklable callable `(frames_TChw uint8, generator) -> float32 (T, C, size, size)`.
    """
    transforms: list[Transform] = [RandomResizedCrop(size, scale=tuple(scale), interpolation=interpolation)]
    if short_side is not None:
        transforms = [ShortSideJitter(size, tuple(short_side), interpolation)]
    if color_jitter != 0:
        transforms.append(ColorJitter(color_jitter, color_jitter, color_jitter))
    if rand_augment is not None:
        transforms.append(RandAugment(*rand_augment))
    if erase != 0:
        transforms.append(RandomErasing(erase))
    return ClipTransform(
        tuple(transforms), RandomHorizontalFlip(flip) if flip != 0 else None, Normalize(tuple(mean), tuple(std))
    )


def eval_transform(
    *,
    size: int,
    mean: Sequence[float],
    std: Sequence[float],
    interpolation: Interpolation = "bilinear",
    num_crops: int = 1,
) -> ClipTransform:
    """Short side to `size`, centre crop, normalise; nothing random.

    Args:
        size, mean, std, interpolation: as in `train_transform`.
        num_crops: 3 for three crops along the longer side.

    Returns:
        A transform of uint8 frames (T, C, h, w) to float32 (T, C, size, size), or (3, T, C, size, size).

    Raises:
        ValueError: another `num_crops`.
    """
    if num_crops not in (1, 3):
        raise ValueError(f"num_crops ({num_crops}) must be 1 or 3")
    crop = CenterCrop(size) if num_crops == 1 else ThreeCrops(size)
    return ClipTransform((ResizeShortSide(size, interpolation), crop), None, Normalize(tuple(mean), tuple(std)))


@dataclass(frozen=True)
class Preprocessing:
    """How an image model wants its pixels; `eval_transform(**dataclasses.asdict(p))` makes a transform of it.

    Attributes:
        size: side of the square input in pixels.
        mean: mean per channel, in units of 0 to 1.
        std: standard deviation per channel.
        interpolation: "bilinear" or "bicubic".
    """

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: Interpolation

    def image_processor(self) -> Any:
        """The same preprocessing as a transformers image processor for lists of frames, to be saved beside a model."""
        # not VideoMAEImageProcessor, which warns where torchvision is missing; the saved file names that one
        from transformers.models.videomae.image_processing_pil_videomae import VideoMAEImageProcessorPil

        return VideoMAEImageProcessorPil(**self.processor_arguments())

    def save_processors(self, folder: str | os.PathLike, *, num_frames: int) -> None:
        """Save an image processor and a video processor, `I2VVideoProcessor`, which spreads `num_frames` frames over
        the whole video. Files that are there already are left alone.

        Args:
            folder: of the model.
            num_frames: T of its clips.
        """
        folder = Path(folder)
        if not (folder / "preprocessor_config.json").exists():
            self.image_processor().save_pretrained(folder)
        video = folder / "video_preprocessor_config.json"
        if not video.exists():
            kind = {
                "video_processor_type": "I2VVideoProcessor",
                "auto_map": {"AutoVideoProcessor": "pipeline_i2v.I2VVideoProcessor"},
                "do_sample_frames": True,
                "num_frames": num_frames,
            }
            video.write_text(json.dumps({**kind, **self.processor_arguments()}, indent=2) + "\n")

    def processor_arguments(self) -> dict:
        """The same in the words of transformers' processors."""
        return {
            "size": {"shortest_edge": self.size},
            "crop_size": {"height": self.size, "width": self.size},
            "image_mean": list(self.mean),
            "image_std": list(self.std),
            "resample": {"bilinear": 2, "bicubic": 3}[self.interpolation],  # PIL's numbers
        }


def preprocessing_from_pretrained(model_name_or_path: str | os.PathLike, **kwargs: Any) -> Preprocessing:
    """Read size, mean, std and interpolation from the `preprocessor_config.json` of an image model.

    The size is that of the crop where the model crops, else that of the resize. A folder without this file gets a
    warning and: the `image_size` of its `config.json`; for CLIP the CLIP statistics and bicubic, for DeiT and DINOv2
    the ImageNet statistics and bicubic, for all others mean and std 0.5 and bilinear, as in the original ViT.

    Args:
        model_name_or_path: folder, or name on the Hub.
        kwargs: passed to `from_pretrained` (`revision`, `cache_dir`, `token`, …).

    Raises:
        ValueError: an input that is not square, or a file that says no such thing.
        OSError: no such model.
    """
    from ..untrusted import check_preprocessing, foreign_files  # slow to import, and decoding needs none of it

    with foreign_files(model_name_or_path):
        preprocessing = _read_preprocessing(model_name_or_path, kwargs)
        check_preprocessing(vars(preprocessing))
    return preprocessing


def _read_preprocessing(model_name_or_path: str, kwargs: dict) -> Preprocessing:
    from transformers import AutoConfig, AutoImageProcessor

    try:
        processor = AutoImageProcessor.from_pretrained(model_name_or_path, **kwargs)
    except OSError:  # no preprocessor_config.json; if there is no model either, AutoConfig raises
        config = AutoConfig.from_pretrained(model_name_or_path, **kwargs)
        preprocessing = usual_preprocessing(config)
        logger.warning("%s has no preprocessor_config.json, assuming %s", model_name_or_path, preprocessing)
        return preprocessing
    return preprocessing_of_processor(processor, name=str(model_name_or_path))


def preprocessing_of_processor(processor: Any, *, name: str | None = None) -> Preprocessing:
    """What an image or video processor of transformers does to its pixels.

    Args:
        name: of the model in messages.

    Raises:
        ValueError: an input that is not square.
    """
    name = name or type(processor).__name__
    if getattr(processor, "do_normalize", False):
        mean, std = tuple(processor.image_mean), tuple(processor.image_std)
    else:
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    interpolation = {2: "bilinear", 3: "bicubic"}.get(int(processor.resample))  # PIL's numbers
    if interpolation is None:
        logger.warning(
            "%s was trained with PIL resampling %s, video frames are resized with the bicubic filter instead",
            name,
            processor.resample,
        )
        interpolation = "bicubic"
    size = processor.crop_size if getattr(processor, "do_center_crop", False) else processor.size
    return Preprocessing(_square(size, name), mean, std, interpolation)


def usual_preprocessing(config: Any) -> Preprocessing:
    """What the published image models of a kind want, as far as a configuration tells."""
    size = _square(getattr(config, "vision_config", config).image_size, config.model_type)
    if config.model_type.startswith("clip"):
        return Preprocessing(size, CLIP_MEAN, CLIP_STD, "bicubic")
    if config.model_type.startswith(("deit", "dinov2")):
        return Preprocessing(size, IMAGENET_MEAN, IMAGENET_STD, "bicubic")
    return Preprocessing(size, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bilinear")


def _square(size, name) -> int:
    """The side in pixels of a size as image processors and configs write it: number, pair, or dict of names."""
    if isinstance(size, int):
        return size
    if isinstance(size, list | tuple):
        sides = set(size)
    else:
        sides = {size[key] for key in ("shortest_edge", "height", "width") if size.get(key)}
    if len(sides) != 1:
        raise ValueError(f"{name}: input size {size} is not square, only square inputs are supported")
    return int(sides.pop())
