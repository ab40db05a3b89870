"""Clips of a data set of videos: HF Datasets holds the references, PyAV decodes in the worker.

Shape suffixes: B clip, T frame, C channel, H height, W width.
"""

import bisect
import hashlib
import logging
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from datasets import ClassLabel, Dataset, IterableDataset
from torch.utils.data import default_collate

from .media import DEFAULT_LIMITS, ReadLimits, VideoDecodeError
from .references import Backend, open_video, version
from .sampling import ShortVideoError, ShortVideoPolicy, dense_indices, uniform_clips, uniform_indices
from .transforms import Compose, Normalize, RandomHorizontalFlip, Transform

logger = logging.getLogger(__name__)

_SIDES = re.compile(r"left|right", re.IGNORECASE)  # also in "leftwards", "turnright"
_NO_SIDES = re.compile(  # words that mean no side
    r"(?<![a-z])((al|b|birth|copy|f|forth|out|sp|up|(cart|mill|play|ship|wheel)?w)right|right(eous|ful)|cleft|leftover)",
    re.IGNORECASE,
)
_CAMEL_CASE = re.compile(r"(?<=[a-z])(?=[A-Z])")


class VideoClips(torch.utils.data.Dataset):
    """Clips of a data set of videos: decoded, sampled, transformed.

    Randomness in training depends on (seed, epoch, index) and nothing else, so that the number of workers, the order
    of the samples and the global random state do not matter.

    Args:
        dataset: rows with `video` (dict with `path` and `bytes`) and `label`, as `load_videos` gives.
        num_frames: frames per clip.
        transform: from uint8 frames (T, C, H, W) and a generator to `pixel_values`; see `train_transform` and
            `eval_transform`.
        train: random frames and a random transform; otherwise the middle of each segment and no generator.
        seed: of the randomness in training.
        policy: what to do with a video shorter than the clip, see `uniform_indices`.
        frame_stride: None spreads a clip over the whole video (`uniform_indices`), a number takes frames that far
            apart (`dense_indices`).
        num_clips: clips per video, for testing.
        flip_labels: pairs of class names that a horizontal flip swaps, e.g. {"Pushing left": "Pushing right"}. Without
            it, where names have left or right in them ("leftwards", not "bright"), clips are not flipped, which a
            warning says.
        backend: who decodes: "pyav", or "torchcodec" where that is installed.
        limits: what reading one video may take; what takes more is a bad video.

    Raises:
        ValueError: several clips for training; `flip_labels` with unknown names, or without some name that has left
            or right in it.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        num_frames: int,
        transform: Transform,
        train: bool,
        seed: int = 0,
        policy: ShortVideoPolicy = "repeat_last",
        frame_stride: int | None = None,
        num_clips: int = 1,
        flip_labels: Mapping[str, str] | None = None,
        backend: Backend = "pyav",
        limits: ReadLimits = DEFAULT_LIMITS,
    ):
        if train and num_clips > 1:
            raise ValueError(f"num_clips ({num_clips}) must be 1 for training, where each epoch takes another clip")
        if isinstance(dataset, IterableDataset):
            raise ValueError(
                "an IterableDataset cannot be read at random, shuffled evenly or resumed; load_videos(streaming=True) "
                "gives references to the same shards that can"
            )
        self.dataset = dataset
        self.num_frames = num_frames
        self.transform = transform
        parts = transform.transforms if isinstance(transform, Compose) else (transform,)
        self.normalize = parts[-1] if isinstance(parts[-1], Normalize) else None
        self._uint8_parts = parts if self.normalize is None else parts[:-1]
        self._flip = next((part for part in parts if isinstance(part, RandomHorizontalFlip)), None)
        self._flipped_labels = {}
        if self._flip is not None:
            self._flip, self._flipped_labels = _flipped_labels(dataset, self._flip, flip_labels)
        self.train = train
        self.seed = seed
        self.policy = policy
        self.frame_stride = frame_stride
        self.num_clips = num_clips
        self.backend, self.limits = backend, limits
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # persistent workers see it change
        self._said_identical = False

    def __len__(self) -> int:
        return len(self.dataset)

    def set_epoch(self, epoch: int) -> None:
        """Draw other frames and crops from now on; call it before each epoch of training."""
        self._epoch.fill_(epoch)

    def fingerprint(self) -> str:
        """Changes with the videos (path, size, time of change), the sampling and the transform.

        Raises:
            ValueError: in training, where clips are random and no two epochs see the same.
        """
        if self.train:
            raise ValueError("clips for training are random; make VideoClips(..., train=False) for fixed ones")
        sampling = (self.num_frames, self.policy, self.frame_stride, self.num_clips, self.backend, self.transform)
        digest = hashlib.sha256(repr(sampling).encode())
        for row in self.dataset:
            digest.update(repr((version(row), row.get("start"), row.get("end"), row["label"])).encode())
        return digest.hexdigest()

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The clip of video `index`, see `clip`, in the epoch that was set."""
        return self.clip(index, epoch=int(self._epoch))

    def clip(self, index: int, *, epoch: int, normalize: bool = True) -> dict[str, Any]:
        """The clip of video `index` in an epoch: `pixel_values` float32 (T, C, H, W) and `labels`, an int.

        Without `normalize` pixels stay uint8 where the transform ends with `Normalize`, a quarter of the bytes.

        With several views, clips × crops, `pixel_values` are (V, T, C, H, W), the crops of a clip next to each other.

        Raises:
            VideoDecodeError: the video cannot be read, or is too short under the policy "error".
        """
        row = self.dataset[index]
        generator = seeded_generator(self.seed, epoch, index) if self.train else None
        with open_video(row, self.backend, self.limits) as reader:
            first, num_video_frames = 0, reader.num_frames
            if row.get("start") is not None or row.get("end") is not None:
                first, num_video_frames = frames_between(reader, row["start"], row["end"])
            try:
                clips = self._sample(num_video_frames, generator)
            except ShortVideoError as error:
                raise VideoDecodeError(f"{reader.name}: {error}") from error
            frames_TCHW = reader.frames([first + index for clip in clips for index in clip])
        if self.num_clips > 1 and len({tuple(clip) for clip in clips}) < self.num_clips and not self._said_identical:
            self._said_identical = True
            logger.warning(
                "%s: too short for %s different clips, some are identical (said for the first such video)",
                self.name(index),
                self.num_clips,
            )
        # the flip is decided here, where the label can follow
        is_flipped = self._flip is not None and self._flip.draw(generator)
        label = self._flipped_labels.get(row["label"], row["label"]) if is_flipped else row["label"]
        views = [
            self._transformed(clip_TCHW, is_flipped, generator) for clip_TCHW in frames_TCHW.split(self.num_frames)
        ]
        stack = torch.stack if views[0].ndim == 4 else torch.cat
        pixels = views[0] if self.num_clips == 1 else stack(views)
        if normalize and self.normalize is not None:
            pixels = self.normalize(pixels)
        return {"pixel_values": pixels, "labels": label}

    def _transformed(self, frames_TCHW: torch.Tensor, is_flipped: bool, generator: torch.Generator | None):
        for part in self._uint8_parts:
            if not isinstance(part, RandomHorizontalFlip):
                frames_TCHW = part(frames_TCHW, generator)
            elif is_flipped:
                frames_TCHW = frames_TCHW.flip(-1)
        return frames_TCHW

    def view_plan(self) -> str:
        """What evaluating a video takes, in words."""
        num_crops = math.prod(getattr(part, "num_crops", 1) for part in self._uint8_parts)
        spread = "over the video" if self.frame_stride is None else f"of stride {self.frame_stride}"
        return (
            f"{self.num_frames} frames {spread} × {self.num_clips} clips × {num_crops} crops = "
            f"{self.num_clips * num_crops} forward passes per video"
        )

    def _sample(self, num_video_frames: int, generator: torch.Generator | None) -> list[list[int]]:
        sizes = {"num_video_frames": num_video_frames, "num_frames": self.num_frames, "policy": self.policy}
        if self.frame_stride is not None:
            sizes |= {"frame_stride": self.frame_stride, "num_clips": self.num_clips}
            return dense_indices(**sizes, generator=generator)
        if self.num_clips == 1:
            return [uniform_indices(**sizes, generator=generator)]
        return uniform_clips(**sizes, num_clips=self.num_clips)

    def name(self, index: int) -> str:
        """What to call video `index` in messages: its path, or its place in the data set."""
        return self.dataset[index]["video"]["path"] or f"row {index}"


def seeded_generator(*what: object) -> torch.Generator:
    """A generator for one purpose. Hashed, because neighbouring seeds of a generator may give related streams."""
    digest = hashlib.sha256(" ".join(map(str, what)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))


def _flipped_labels(
    dataset: Dataset, flip: RandomHorizontalFlip, pairs: Mapping[str, str] | None
) -> tuple[RandomHorizontalFlip | None, Mapping[int, int]]:
    """The flip, or None where it would make labels wrong, and what the labels that change become."""
    feature = dataset.features["label"]
    names = feature.names if isinstance(feature, ClassLabel) else []
    sided = [name for name in names if _SIDES.search(_NO_SIDES.sub("", _CAMEL_CASE.sub(" ", name)))]
    if pairs is None and sided:
        logger.warning(
            "clips are not flipped: %s classes speak of left or right (%s); give flip_labels to flip them",
            len(sided),
            ", ".join(sided[:3]),
        )
        return None, {}
    pairs = {**(pairs or {}), **{there: here for here, there in (pairs or {}).items()}}
    if unknown := [name for name in pairs if name not in names]:
        raise ValueError(f"flip_labels has {unknown}, which are not among the classes {names[:5]}…")
    if missing := [name for name in sided if name not in pairs]:
        raise ValueError(f"flip_labels must say what {missing} become; a class may become itself")
    number = {name: i for i, name in enumerate(names)}
    return flip, {number[here]: number[there] for here, there in pairs.items()}


def frames_between(reader, start: float | None, end: float | None) -> tuple[int, int]:
    """First frame and number of frames of the part of a video in the half-open range of seconds."""
    times = reader.times()
    first = bisect.bisect_left(times, start or 0.0)
    stop = len(times) if end is None else bisect.bisect_left(times, end)
    if first >= stop:
        raise VideoDecodeError(
            f"{reader.name}: no frame between {start} and {end} seconds, the last one is shown at {times[-1]:.2f}"
        )
    return first, stop - first


def collate(clips: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
    """Batch the items of `VideoClips`: `pixel_values` (B, [V,] T, C, H, W) and `labels` (B,) int64."""
    return {
        "pixel_values": default_collate([clip["pixel_values"] for clip in clips]),  # a worker's go to shared memory
        "labels": torch.tensor([clip["labels"] for clip in clips], dtype=torch.int64),
    }
