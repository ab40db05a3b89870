"""Clips of a data set of videos: HF Datasets holds the references, PyAV decodes in the worker.

Shape suffixes: B clip, T frame, C channel, h height, w width.
"""

import bisect
import dataclasses
import hashlib
import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from datasets import ClassLabel, Dataset, IterableDataset
from torch.utils.data import default_collate

from .decode import VideoReader
from .fingerprints import video_version
from .frame_folder import FrameFolder
from .media import DEFAULT_LIMITS, ReadLimits, VideoDecodeError
from .order import seeded_generator
from .references import Backend, open_video
from .sampling import ShortVideoError, ShortVideoPolicy, dense_indices, uniform_clips, uniform_indices
from .transforms import ClipTransform, Compose, Transform

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
        transform: see `train_transform` and `eval_transform`; or a callable of your own, from uint8 frames
            (T, C, h, w) and a generator to `pixel_values`. Labels do not follow a flip that such a callable makes.
        train: random frames and a random transform; otherwise the middle of each segment and no generator.
        seed: of the randomness in training.
        policy: what to do with a video shorter than the clip, see `uniform_indices`.
        frame_stride: None spreads a clip over the whole video (`uniform_indices`), a number takes frames that far
            apart (`dense_indices`).
        num_clips: clips per video, for testing.
        flip_labels: pairs of class names that a horizontal flip swaps, e.g. {"Pushing left": "Pushing right"}. Without
            it, where names have left or right in them ("leftwards", not "bright"), clips are not flipped, and a
            warning says so. It needs a `ClipTransform`, whose flip is known.
        backend: who decodes: "pyav", or "torchcodec" where that is installed.
        limits: what reading one video may take; what takes more is a bad video.

    Raises:
        ValueError: several clips for training; `flip_labels` with unknown names, without some name that has left or
            right in it, or with a callable of your own.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        num_frames: int,
        transform: ClipTransform | Transform,
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
        if not isinstance(transform, ClipTransform):
            transform = Compose((transform,))
            if flip_labels and transform.flip is None:
                raise ValueError(
                    f"flip_labels ({dict(flip_labels)}) cannot follow the flips of {transform.pixels[0]!r}; give "
                    "ClipTransform(pixels=(...,), flip=RandomHorizontalFlip(0.5), normalize=...), or leave it out"
                )
        self._flipped_labels: Mapping[int, int] = {}
        if transform.flip is not None:
            flipped_labels = _flipped_labels(dataset, flip_labels)
            if flipped_labels is None:
                transform = dataclasses.replace(transform, flip=None)
            self._flipped_labels = flipped_labels or {}
        self.transform = transform
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

    def fingerprint(self, *, of_epochs: bool = False) -> str:
        """Changes with the videos (path, size, time of change), the sampling and the transform.

        Args:
            of_epochs: of the clips of all epochs. In training it then changes with the seed too.

        Raises:
            ValueError: in training without `of_epochs`: clips are random and no two epochs see the same.
        """
        if self.train and not of_epochs:
            raise ValueError("clips for training are random; make VideoClips(..., train=False) for fixed ones")
        sampling = (self.num_frames, self.policy, self.frame_stride, self.num_clips, self.backend, self.transform)
        if self.train:
            sampling = (*sampling, self.seed, sorted(self._flipped_labels.items()))
        digest = hashlib.sha256(repr(sampling).encode())
        for row in self.dataset:
            digest.update(repr((video_version(row), row.get("start"), row.get("end"), row["label"])).encode())
        return digest.hexdigest()

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The clip of video `index`, see `clip`, in the epoch that was set."""
        return self.clip(index, epoch=int(self._epoch))

    def clip(self, index: int, *, epoch: int, normalize: bool = True) -> dict[str, Any]:
        """The clip of video `index` in an epoch: `pixel_values` float32 (T, C, h, w) and `labels`, an int.

        Without `normalize` pixels stay uint8, a quarter of the bytes, where the transform has that part.

        With several views, clips × crops, `pixel_values` are (V, T, C, h, w), the crops of a clip next to each other.

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
            frames_TChw = reader.frames([first + index for clip in clips for index in clip])
        if self.num_clips > 1 and len({tuple(clip) for clip in clips}) < self.num_clips and not self._said_identical:
            self._said_identical = True
            logger.warning(
                "%s: too short for %s different clips, some are identical (said for the first such video)",
                self.name(index),
                self.num_clips,
            )
        is_flipped = self.transform.draw_flip(generator)
        label = self._flipped_labels.get(row["label"], row["label"]) if is_flipped else row["label"]
        views = [
            self.transform.uint8(clip_TChw, generator, is_flipped=is_flipped)
            for clip_TChw in frames_TChw.split(self.num_frames)
        ]
        stack = torch.stack if views[0].ndim == 4 else torch.cat
        pixels = views[0] if self.num_clips == 1 else stack(views)
        if normalize and self.transform.normalize is not None:
            pixels = self.transform.normalize(pixels)
        return {"pixel_values": pixels, "labels": label}

    def view_plan(self) -> str:
        """What evaluating a video takes, in words."""
        num_crops = self.transform.num_crops
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


def _flipped_labels(dataset: Dataset, pairs: Mapping[str, str] | None) -> Mapping[int, int] | None:
    """What a flip makes of the labels that it changes; None where it would make labels wrong."""
    feature = dataset.features["label"]
    names = feature.names if isinstance(feature, ClassLabel) else []
    sided = [name for name in names if _SIDES.search(_NO_SIDES.sub("", _CAMEL_CASE.sub(" ", name)))]
    if pairs is None and sided:
        logger.warning(
            "clips are not flipped: %s classes speak of left or right (%s); give flip_labels to flip them",
            len(sided),
            ", ".join(sided[:3]),
        )
        return None
    pairs = {**(pairs or {}), **{there: here for here, there in (pairs or {}).items()}}
    if unknown := [name for name in pairs if name not in names]:
        raise ValueError(f"flip_labels has {unknown}, which are not among the classes {names[:5]}…")
    if missing := [name for name in sided if name not in pairs]:
        raise ValueError(f"flip_labels must say what {missing} become; a class may become itself")
    number = {name: i for i, name in enumerate(names)}
    return {number[here]: number[there] for here, there in pairs.items()}


def frames_between(reader: VideoReader | FrameFolder, start: float | None, end: float | None) -> tuple[int, int]:
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
    """Batch `clips`, items of `VideoClips`: `pixel_values` (B, [V,] T, C, h, w) and `labels` (B,) int64."""
    return {
        "pixel_values": default_collate([clip["pixel_values"] for clip in clips]),  # a worker's go to shared memory
        "labels": torch.tensor([clip["labels"] for clip in clips], dtype=torch.int64),
    }
