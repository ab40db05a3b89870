"""Folders of videos: `<dir>/<class>/<video>`, where a video is a file or a folder of frames.

Which of the layouts a folder has is found by looking, and what does not fit is an error that says what was found.
"""

import glob
import logging
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from datasets import DatasetDict, Video, load_dataset
from datasets.packaged_modules.videofolder.videofolder import VIDEO_EXTENSIONS

from .frame_folder import FRAME_SUFFIXES
from .lists import ListedVideo
from .references import VIDEO_SUFFIXES

logger = logging.getLogger(__name__)

_VIDEO_SUFFIXES = {*VIDEO_EXTENSIONS, *(f".{suffix}" for suffix in VIDEO_SUFFIXES)}


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
    classes = [path.name for path in _visible_folders(folder)]
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


def has_frame_folders(folder: str | os.PathLike) -> bool:
    """Whether the videos in class folders are folders of pictures.

    Raises:
        ValueError: some are, and others are files.
    """
    file, frames = None, None
    for class_folder in _visible_folders(Path(folder)):
        entries = sorted(p for p in class_folder.iterdir() if not p.name.startswith((".", "__")))
        file = file or next((p for p in entries if p.suffix.lower() in _VIDEO_SUFFIXES and p.is_file()), None)
        frames = frames or next((p for p in entries if p.is_dir() and _has_pictures(p)), None)
    if file and frames:
        raise ValueError(
            f"{folder} holds both video files ({file}) and folders of frames ({frames}); move one kind elsewhere, or "
            "name the videos in a list"
        )
    return frames is not None


def frame_folders(folder: str | os.PathLike) -> list[ListedVideo]:
    """The videos of `<dir>/<class>/<folder of pictures>`.

    Raises:
        ValueError: a class without any.
    """
    listed = []
    for class_folder in _visible_folders(Path(folder)):
        videos = _visible_folders(class_folder)
        if not videos:
            raise ValueError(f"class folder {class_folder} has no folders of frames; add some or remove it")
        listed += [ListedVideo(str(video.resolve()), class_folder.name) for video in videos]
    return listed


def _has_pictures(folder: Path) -> bool:
    return any(file.suffix.lower() in FRAME_SUFFIXES for file in folder.iterdir())


def _visible_folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith((".", "__")))


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:5]) or "nothing"
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"
