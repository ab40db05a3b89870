"""Clips of a data set of videos: HF Datasets holds the references, PyAV decodes in the worker.

Shape suffixes: B clip, T frame, C channel, H height, W width.
"""

import bisect
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from datasets import Dataset

from .decode import VideoDecodeError
from .references import open_video, version
from .sampling import ShortVideoPolicy, uniform_indices
from .transforms import Transform


class VideoClips(torch.utils.data.Dataset):
    """Clips of a data set of videos: decoded, sampled, transformed; one clip per video.

    Randomness in training depends on (seed, epoch, index) and nothing else, so that the number of workers, the order
    of the samples and the global random state do not matter.

    Args:
        dataset: rows with `video` (dict with `path` and `bytes`) and `label`, as `load_video_folder` gives.
        num_frames: frames per clip.
        transform: from uint8 frames (T, C, H, W) and a generator to `pixel_values`; see `train_transform` and
            `eval_transform`.
        train: random frames and a random transform; otherwise the middle of each segment and no generator.
        seed: of the randomness in training.
        policy: what to do with a video shorter than the clip, see `uniform_indices`.
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
    ):
        self.dataset = dataset
        self.num_frames = num_frames
        self.transform = transform
        self.train = train
        self.seed = seed
        self.policy = policy
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # persistent workers see it change

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
        digest = hashlib.sha256(repr((self.num_frames, self.policy, self.transform)).encode())
        for row in self.dataset:
            digest.update(repr((version(row), row.get("start"), row.get("end"), row["label"])).encode())
        return digest.hexdigest()

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The clip of video `index`, see `clip`, in the epoch that was set."""
        return self.clip(index, epoch=int(self._epoch))

    def clip(self, index: int, *, epoch: int) -> dict[str, Any]:
        """The clip of video `index` in an epoch: `pixel_values` float32 (T, C, H, W) and `labels`, an int.

        Raises:
            VideoDecodeError: the video cannot be read.
        """
        row = self.dataset[index]
        generator = self._generator(index, epoch) if self.train else None
        with open_video(row) as reader:
            first, num_video_frames = 0, reader.num_frames
            if row.get("start") is not None or row.get("end") is not None:
                first, num_video_frames = _frames_between(reader, row["start"], row["end"])
            indices = uniform_indices(
                num_video_frames=num_video_frames,
                num_frames=self.num_frames,
                generator=generator,
                policy=self.policy,
            )
            frames_TCHW = reader.frames([first + index for index in indices])
        return {"pixel_values": self.transform(frames_TCHW, generator), "labels": row["label"]}

    def name(self, index: int) -> str:
        """What to call video `index` in messages: its path, or its place in the data set."""
        return self.dataset[index]["video"]["path"] or f"row {index}"

    def _generator(self, index: int, epoch: int) -> torch.Generator:
        # Hashed, because neighbouring seeds of a generator may give related streams.
        digest = hashlib.sha256(f"{self.seed} {epoch} {index}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))


def _frames_between(reader, start: float | None, end: float | None) -> tuple[int, int]:
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
    """Batch the items of `VideoClips`: `pixel_values` (B, T, C, H, W) float32 and `labels` (B,) int64."""
    return {
        "pixel_values": torch.stack([clip["pixel_values"] for clip in clips]),
        "labels": torch.tensor([clip["labels"] for clip in clips], dtype=torch.int64),
    }
