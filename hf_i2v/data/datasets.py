"""From a folder of videos to batches of clips: HF Datasets holds the references, PyAV decodes in the worker.

Shape suffixes: B clip, T frame, C channel, H height, W width.
"""

import glob
import hashlib
import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, DatasetDict, Video, load_dataset
from datasets.packaged_modules.videofolder.videofolder import VIDEO_EXTENSIONS

from .decode import VideoReader
from .sampling import ShortVideoPolicy, uniform_indices
from .transforms import Transform

logger = logging.getLogger(__name__)


def load_video_folder(train_dir: str | os.PathLike, validation_dir: str | os.PathLike | None = None) -> DatasetDict:
    """A data set from folders laid out as `<dir>/<class>/<video file>`, through HF Datasets' `videofolder`.

    Args:
        train_dir: folder with one sub-folder per class; its name is the label.
        validation_dir: the same for validation, with the same classes.

    Returns:
        The splits "train" and, where asked for, "validation", with the columns `video` (`Video(decode=False)`: a
        dict with `path` and `bytes`) and `label` (`ClassLabel`, names sorted). Nothing is decoded.

    Raises:
        FileNotFoundError: a folder that is not there.
        ValueError: no class folder, a class folder without a video, classes that differ between the two folders.
    """
    folders = {"train": Path(train_dir)}
    if validation_dir is not None:
        folders["validation"] = Path(validation_dir)
    classes = {split: _class_names(folder) for split, folder in folders.items()}
    if validation_dir is not None and classes["train"] != classes["validation"]:
        only_train = sorted(set(classes["train"]) - set(classes["validation"]))
        only_validation = sorted(set(classes["validation"]) - set(classes["train"]))
        raise ValueError(
            f"the class folders differ: only in {train_dir}: {only_train}; only in {validation_dir}: "
            f"{only_validation}. Both must hold the same classes: rename, add or remove folders until they do."
        )

    # Exactly <dir>/<class>/<file>: given a bare folder, HF Datasets would look for splits in the names of its files.
    data_files = {
        split: os.path.join(glob.escape(os.path.abspath(folder)), "*", "*") for split, folder in folders.items()
    }
    videos = load_dataset("videofolder", data_files=data_files, drop_labels=False, drop_metadata=True)
    for split in videos:
        names = videos[split].features["label"].names
        if names != classes["train"]:
            raise ValueError(f"HF Datasets sees the classes {names}, the folders are {classes['train']}")
    return videos.cast_column("video", Video(decode=False))


def _class_names(folder: Path) -> list[str]:
    """Names of the class folders, sorted, after a check that each holds videos."""
    if not folder.is_dir():
        raise FileNotFoundError(f"no such folder: {folder}")
    # Like HF Datasets, pass over hidden folders.
    classes = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith((".", "__")))
    layout = f"expected {folder}/<class>/<video file>, with video files named {', '.join(VIDEO_EXTENSIONS)}"
    if not classes:
        found = sorted(p.name for p in folder.iterdir())
        raise ValueError(f"{folder} has no class folders (it holds {_some(found)}); {layout}")
    for name in classes:
        files = [p for p in (folder / name).iterdir() if not p.name.startswith(".")]
        others = [p for p in files if p.is_dir() or p.suffix.lower() not in VIDEO_EXTENSIONS]
        if len(files) == len(others):
            found = sorted(p.name for p in others)
            raise ValueError(
                f"class folder {folder / name} has no videos (it holds {_some(found)}); {layout}. "
                "Add videos or remove the folder."
            )
        if others:
            kinds = Counter("folders" if p.is_dir() else p.suffix or "no suffix" for p in others)
            logger.warning("%s: ignoring %s; %s", folder / name, dict(kinds), layout)
    return classes


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:5]) or "nothing"
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"


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
            video = row["video"]
            if video["bytes"] is not None:
                digest.update(hashlib.sha256(video["bytes"]).digest())
            else:
                stat = os.stat(video["path"])
                digest.update(repr((video["path"], stat.st_size, stat.st_mtime_ns)).encode())
            digest.update(repr(row["label"]).encode())
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
        video = row["video"]
        with VideoReader(video["path"] if video["bytes"] is None else video["bytes"]) as reader:
            indices = uniform_indices(
                num_video_frames=reader.num_frames,
                num_frames=self.num_frames,
                generator=generator,
                policy=self.policy,
            )
            frames_TCHW = reader.frames(indices)
        return {"pixel_values": self.transform(frames_TCHW, generator), "labels": row["label"]}

    def name(self, index: int) -> str:
        """What to call video `index` in messages: its path, or its place in the data set."""
        return self.dataset[index]["video"]["path"] or f"row {index}"

    def _generator(self, index: int, epoch: int) -> torch.Generator:
        # Hashed, because neighbouring seeds of a generator may give related streams.
        digest = hashlib.sha256(f"{self.seed} {epoch} {index}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))


def collate(clips: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
    """Batch the items of `VideoClips`: `pixel_values` (B, T, C, H, W) float32 and `labels` (B,) int64."""
    return {
        "pixel_values": torch.stack([clip["pixel_values"] for clip in clips]),
        "labels": torch.tensor([clip["labels"] for clip in clips], dtype=torch.int64),
    }
