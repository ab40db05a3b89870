"""Where prepared videos go, and what lies beside them, so that the loader takes them as it took the originals.

| originals                        | prepared                                                                  |
|----------------------------------|---------------------------------------------------------------------------|
| `train_dir/<class>/…/v.avi`      | `<output_dir>/train/<class>/…/v.mp4`                                      |
| a list, of any form; a data set  | `<output_dir>/videos/…/v.mp4`, and `train.csv` with video, label, times   |
| tar or parquet shards            | a tar of the same name in `<output_dir>/train`, with a `.cls` a sample    |

`labels.json`, beside lists and tars, has the classes in the order of their numbers.
"""

import csv
import io
import json
import os
import posixpath
import shutil
import tarfile
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import pyarrow.compute as pc
from datasets import DatasetDict

from ..data.references import VIDEO_SUFFIXES
from ..whole_files import write_text_whole, write_whole

LABELS = "labels.json"


class Layout(ABC):
    """The videos of a data set, and where each goes.

    Args:
        videos: as `load_videos` gives them.
        folder: that everything goes to.

    Attributes:
        paths: of every row of every split, its prepared video.
    """

    paths: dict[str, list[Path]]

    def __init__(self, videos: DatasetDict, folder: Path):
        self.videos, self.folder = videos, folder

    def missing(self) -> list[tuple[str, int]]:
        """Split and row of each video that is not there yet, or older than its original."""
        first: dict[Path, tuple[str, int, str | None]] = {}
        for split in self.videos:
            for row, (shard, name) in enumerate(zip(self._shards(split), self._names(split), strict=True)):
                first.setdefault(self.paths[split][row], (split, row, shard or name))
        return [(split, row) for split, row, original in first.values() if not self._is_done(split, row, original)]

    def sizes(self, split: str) -> list[int | None]:
        """Bytes of the original of every row, where they are known."""
        if "size" in self.videos[split].column_names:
            return self.videos[split]["size"][:]
        return [os.path.getsize(name) if name and os.path.isfile(name) else None for name in self._names(split)]

    def _is_done(self, split: str, row: int, original: str | None) -> bool:
        return _is_newer(self.paths[split][row], original)

    @abstractmethod
    def finish(self) -> None:
        """Write what belongs beside the videos that are there."""

    @abstractmethod
    def flags(self) -> str:
        """Those of the training script, which take the prepared videos."""

    def _names(self, split: str) -> list[str | None]:
        return pc.struct_field(self.videos[split].with_format("arrow")[:]["video"], "path").to_pylist()

    def _shards(self, split: str) -> list[str | None]:
        rows = self.videos[split]
        return rows["shard"][:] if "shard" in rows.column_names else [None] * len(rows)

    def _labels(self, split: str) -> list[str]:
        """Names of the classes, or their numbers where a name would be taken for a number."""
        names = self.videos[split].features["label"].names
        if all(name.isdecimal() for name in names):
            names = [str(number) for number in range(len(names))]
        return [names[label] for label in self.videos[split]["label"][:]]

    def _write_class_names(self) -> None:
        names = self.videos["train"].features["label"].names
        write_text_whole(self.folder / LABELS, json.dumps(names, indent=1))

    def _flags(self, kind: str, suffix: str) -> str:
        places = [f"--{split}_{kind} {self.folder / split}{suffix}" for split in self.videos]
        return " ".join(places)


class ClassFolders(Layout):
    """Class folders: those of the originals.

    Args:
        folders: of the originals, by split.

    Raises:
        ValueError: the prepared videos would lie among the originals, or these among them.
    """

    def __init__(self, videos: DatasetDict, folder: Path, folders: dict[str, str]):
        super().__init__(videos, folder)
        self.paths = {}
        for split, original in folders.items():
            here, there = os.path.realpath(folder / split), os.path.realpath(original)
            if os.path.commonpath([here, there]) in (here, there):
                raise ValueError(
                    f"{folder / split} would lie among the originals of {original}, or these in it; choose another "
                    "--output_dir"
                )
            top = os.path.abspath(original)
            names = _as_mp4([os.path.relpath(name, top) for name in self._names(split)])
            self.paths[split] = [folder / split / name for name in names]

    def finish(self) -> None:
        """Nothing: the folders are the labels."""

    def flags(self) -> str:
        return self._flags("dir", "")


class Listed(Layout):
    """One folder of videos, in which each lies once, and a list of each split.

    Args:
        top: folder that names begin below; default the one that all originals are in.

    Raises:
        ValueError: a prepared video would take the place of an original.
    """

    def __init__(self, videos: DatasetDict, folder: Path, top: str | None = None):
        super().__init__(videos, folder)
        names = {split: self._names(split) for split in videos}
        keys = {
            split: [name or f"{split}-{row:08d}" for row, name in enumerate(of_split)]
            for split, of_split in names.items()
        }
        whole = sorted({key for of_split in keys.values() for key in of_split})
        place = dict(zip(whole, _as_mp4(_below(top, whole)), strict=True))
        self.paths = {split: [folder / "videos" / place[key] for key in keys[split]] for split in videos}
        originals = {os.path.realpath(name) for of_split in names.values() for name in of_split if name}
        if both := [
            path for of_split in self.paths.values() for path in of_split if os.path.realpath(path) in originals
        ]:
            raise ValueError(f"{both[0]} is one of the originals; choose another --output_dir")

    def finish(self) -> None:
        """The lists, without videos that could not be read."""
        for split, rows in self.videos.items():
            times = [name for name in ("start", "end") if name in rows.column_names]
            columns = [self.paths[split], self._labels(split), *(rows[name][:] for name in times)]
            text = io.StringIO()
            writer = csv.writer(text)
            writer.writerow(["video", "label", *times])
            for path, *others in zip(*columns, strict=True):
                if path.exists():
                    writer.writerow([path.relative_to(self.folder).as_posix(), *others])
            write_text_whole(self.folder / f"{split}.csv", text.getvalue())
        self._write_class_names()

    def flags(self) -> str:
        return f"{self._flags('file', '.csv')} --class_names_file {self.folder / LABELS}"


class Shards(Layout):
    """Tars. A tar is made at the end, of videos that lie in `.parts` until then.

    Raises:
        ValueError: a tar would take the place of an original.
    """

    def __init__(self, videos: DatasetDict, folder: Path):
        super().__init__(videos, folder)
        self.paths, self.tars = {}, {}
        for split in videos:
            shards = self._shards(split)
            whole = list(dict.fromkeys(shards))
            names = [f"{os.path.splitext(name)[0]}.tar" for name in _below(None, whole)]
            if len(set(names)) < len(names):
                names = [f"{number:06d}.tar" for number in range(len(names))]
            place = dict(zip(whole, names, strict=True))
            self.tars[split] = [folder / split / place[shard] for shard in shards]
            parts = {tar: folder / ".parts" / split / str(number) for number, tar in enumerate(self._tars(split))}
            self.paths[split] = [parts[tar] / f"{row:08d}.mp4" for row, tar in enumerate(self.tars[split])]
            if both := {os.path.realpath(tar) for tar in self._tars(split)} & {os.path.realpath(s) for s in whole}:
                raise ValueError(f"{both.pop()} is one of the originals; choose another --output_dir")

    def _tars(self, split: str) -> list[Path]:
        return list(dict.fromkeys(self.tars[split]))

    def _is_done(self, split: str, row: int, original: str | None) -> bool:
        return _is_newer(self.tars[split][row], original) or super()._is_done(split, row, original)

    def finish(self) -> None:
        """The tars of which there are videos."""
        for split in self.videos:
            names, labels = self._names(split), self._labels(split)
            members: dict[Path, list[int]] = {}
            for row, tar in enumerate(self.tars[split]):
                members.setdefault(tar, []).append(row)
            for tar, of_tar in members.items():
                there = [row for row in of_tar if self.paths[split][row].exists()]
                if there and not _is_newer(tar, str(self.paths[split][there[0]])):
                    tar.parent.mkdir(parents=True, exist_ok=True)
                    keys = _sample_keys([names[row] for row in there])
                    samples = [
                        (key, self.paths[split][row], labels[row]) for key, row in zip(keys, there, strict=True)
                    ]
                    write_whole(tar, lambda beside, samples=samples: _write_tar(beside, samples))
                shutil.rmtree(self.paths[split][of_tar[0]].parent, ignore_errors=True)
        shutil.rmtree(self.folder / ".parts", ignore_errors=True)
        self._write_class_names()

    def flags(self) -> str:
        return f"{self._flags('dir', '')} --class_names_file {self.folder / LABELS}"


def layout_of(videos: DatasetDict, folder: Path, folders: dict[str, str | None], top: str | None) -> Layout:
    """The layout for videos that `load_videos` gave.

    Args:
        videos: of all splits.
        folder: that everything goes to.
        folders: of the originals, by split, where they are in class folders or shards.
        top: folder that the paths of a list are relative to.
    """
    if "shard" in videos["train"].column_names:
        return Shards(videos, folder)
    if folders["train"] is not None:
        return ClassFolders(videos, folder, {split: folders[split] for split in videos})
    return Listed(videos, folder, top)


def _is_newer(path: Path, original: str | None) -> bool:
    """Whether a file is there, and no older than what it was made of, where that is on this machine."""
    if not path.exists():
        return False
    return not (original and os.path.exists(original)) or os.path.getmtime(path) >= os.path.getmtime(original)


def _parts(name: str) -> tuple[str, ...]:
    """Of a path or URL, without what would lead out of a folder."""
    parts = PurePosixPath(posixpath.normpath(name.rpartition("://")[2].replace(os.sep, "/"))).parts
    return tuple(part for part in parts if part not in ("/", "//", ".."))


def _below(top: str | None, names: Sequence[str]) -> list[str]:
    """Paths relative to a folder, or to the deepest one that all are in."""
    split = [_parts(name) for name in names]
    common = list(_parts(os.path.abspath(top))) if top else list(split[0][:-1])
    for parts in split:
        same = zip(common, parts[:-1], strict=False)
        common = common[: next((i for i, (one, other) in enumerate(same) if one != other), len(parts) - 1)]
    return ["/".join(parts[len(common) :]) for parts in split]


def _as_mp4(names: Sequence[str]) -> list[str]:
    """Names with the suffix .mp4; those that would become one keep the suffixes that they have."""

    def stem(name: str) -> str:
        root, suffix = os.path.splitext(name)
        return root if suffix[1:].lower() in VIDEO_SUFFIXES else name  # a folder of pictures has none

    counts = Counter(map(stem, names))
    return [f"{stem(n) if counts[stem(n)] == 1 or n.endswith('.mp4') else n}.mp4" for n in names]


def _sample_keys(names: Sequence[str]) -> list[str]:
    """What the files of a sample have in common, up to the first dot; each once."""
    keys: dict[str, None] = {}
    for name in names:
        folder, _, base = "/".join(_parts(name)).rpartition("/")
        key = whole = posixpath.join(folder, base.partition(".")[0] or "video")
        number = 1
        while key in keys:
            number += 1
            key = f"{whole}-{number}"
        keys[key] = None
    return list(keys)


def _write_tar(file: Path, samples: Sequence[tuple[str, Path, str]]) -> None:
    with tarfile.open(file, "w") as tar:
        for key, video, label in samples:
            for suffix, content in (("mp4", video.read_bytes()), ("cls", label.encode())):
                member = tarfile.TarInfo(f"{key}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
