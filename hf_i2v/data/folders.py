"""Folders of videos: `<dir>/<class>/…/<video>`, where a video is a file or a folder of frames.

The content of a folder decides which of the two it holds. A warning counts and names what is left out; an error names
what was found.
"""

import logging
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from datasets import DatasetDict

from .frame_folder import FRAME_SUFFIXES
from .lists import ListedVideo, references_of
from .references import VIDEO_SUFFIXES

logger = logging.getLogger(__name__)


def load_video_folder(train_dir: str | os.PathLike, validation_dir: str | os.PathLike | None = None) -> DatasetDict:
    """A data set from class folders, `<dir>/<class>/<video>`.

    A video is a file, or a folder of pictures. It may lie in folders below its class folder. Links are followed;
    names that begin with a dot are passed over, as are folders whose names begin with `__`.

    Args:
        train_dir: folder with one sub-folder per class; its name is the label.
        validation_dir: the same for validation. With files, both must have the same classes; with folders of frames,
            no others than `train_dir`.

    Returns:
        The splits "train" and, where asked for, "validation", sorted by path, with the columns `video`
        (`Video(decode=False)`: a dict with `path` and `bytes`) and `label` (`ClassLabel`, names sorted). Nothing is
        decoded.

    Raises:
        FileNotFoundError: a folder that is not there.
        ValueError: no class folder, a class folder without a video, files and folders of frames together, classes
            that differ between the two folders.
    """
    folders = {"train": train_dir} if validation_dir is None else {"train": train_dir, "validation": validation_dir}
    found = {split: _videos_by_class(Path(folder)) for split, folder in folders.items()}
    names = sorted(found["train"])
    if validation_dir is not None:
        only_train, only_validation = (
            sorted(set(found[one]) - set(found[other]))
            for one, other in (("train", "validation"), ("validation", "train"))
        )
        has_frames = any(content.frames for content in found["validation"].values())
        if only_validation or (only_train and not has_frames):
            raise ValueError(
                f"the class folders differ: only in {train_dir}: {only_train}; only in {validation_dir}: "
                f"{only_validation}. Both must hold the same classes: rename, add or remove folders until they do."
            )
    splits = {}
    for split, classes in found.items():
        listed = [ListedVideo(path, name) for name, content in classes.items() for path in content.all()]
        splits[split] = references_of(sorted(listed), names)
    return DatasetDict(splits)


def videos_in(folder: str | os.PathLike) -> list[str]:
    """The videos of a folder at any depth, sorted: files, and folders of pictures.

    Raises:
        FileNotFoundError: there are none.
    """
    path = os.path.abspath(folder)
    if found := _search(path, _Content(), (), is_class=False).all():
        return sorted(found)
    raise FileNotFoundError(
        f"no video in {folder}: expected files named .{', .'.join(VIDEO_SUFFIXES)} or folders of pictures"
    )


@dataclass
class _Content:
    """What is in a class folder."""

    videos: list[str] = field(default_factory=list)
    frames: list[str] = field(default_factory=list)  # folders of pictures
    ignored: Counter[str] = field(default_factory=Counter)  # kinds of other things
    lost: list[str] = field(default_factory=list)  # links that lead nowhere, or to a folder that they are in

    def all(self) -> list[str]:
        return self.videos + self.frames


def _videos_by_class(folder: Path) -> dict[str, _Content]:
    """The content of each class folder, after a check that it has videos."""
    if not folder.is_dir():
        raise FileNotFoundError(f"no such folder: {folder}")
    layout = f"expected {folder}/<class>/<video>, files named .{', .'.join(VIDEO_SUFFIXES)} or folders of pictures"
    path = os.path.abspath(folder)
    top, classes = _Content(), {}
    for entry in _folders_in(path, top, (_identity(path),)):
        classes[entry.name] = _search(entry.path, _Content(), (_identity(path),))
    if not classes:
        raise ValueError(
            f"{folder} has no class folders (it holds {_some(sorted(p.name for p in folder.iterdir()))}); {layout}"
        )
    for name, content in classes.items():
        if not content.all():
            held = sorted(p.name for p in (folder / name).iterdir() if not p.name.startswith("."))
            raise ValueError(
                f"class folder {folder / name} has no videos (it holds {_some(held)}); {layout}. Add videos or remove "
                "the folder."
            )
        if content.ignored:
            logger.warning("%s: ignoring %s; %s", folder / name, dict(content.ignored), layout)
    if lost := top.lost + [link for content in classes.values() for link in content.lost]:
        logger.warning(
            "%s: left out %s links that lead nowhere or to a folder around them: %s", folder, len(lost), _some(lost)
        )
    videos = next((content.videos[0] for content in classes.values() if content.videos), None)
    frames = next((content.frames[0] for content in classes.values() if content.frames), None)
    if videos and frames:
        raise ValueError(
            f"{folder} holds both video files ({videos}) and folders of frames ({frames}); move one kind elsewhere, "
            "or name the videos in a list"
        )
    return classes


def _search(folder: str, content: _Content, above: tuple[tuple[int, int], ...], *, is_class: bool = True) -> _Content:
    """Add what is in a folder, and in those below it, to `content`; `above` are the folders around it."""
    files = [entry.name for entry in _visible(folder) if os.path.isfile(entry.path)]  # a link may lead to itself
    suffixes = [os.path.splitext(name)[1].lower() for name in files]
    videos = [name for name, suffix in zip(files, suffixes, strict=True) if suffix[1:] in VIDEO_SUFFIXES]
    pictures = [] if is_class or videos else [suffix for suffix in suffixes if suffix in FRAME_SUFFIXES]
    content.videos += [os.path.join(folder, name) for name in videos]
    content.frames += [folder] if pictures else []
    if not pictures:
        content.ignored.update(suffix or "no suffix" for suffix in suffixes if suffix[1:] not in VIDEO_SUFFIXES)
    above = (*above, _identity(folder))
    below = _folders_in(folder, content, above)
    if not files and not below and not is_class:
        content.ignored["empty folders"] += 1
    for entry in below:
        _search(entry.path, content, above, is_class=False)
    return content


def _folders_in(folder: str, content: _Content, above: tuple[tuple[int, int], ...]) -> list[os.DirEntry]:
    """Folders in a folder; links that are lost are added to `content`."""
    found = []
    for entry in _visible(folder):
        if not os.path.exists(entry.path):
            content.lost.append(entry.path)
        elif entry.is_dir() and not entry.name.startswith("__"):
            if _identity(entry.path) in above:
                content.lost.append(entry.path)
            else:
                found.append(entry)
    return found


def _visible(folder: str) -> list[os.DirEntry]:
    with os.scandir(folder) as entries:
        return sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)


def _identity(path: str) -> tuple[int, int]:
    stat = os.stat(path)
    return stat.st_dev, stat.st_ino


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:5]) or "nothing"
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"
