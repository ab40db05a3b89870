"""Lists of videos, in the forms that the well-known data sets come in, to rows of (path, label, start, end).

| form | recognised by | label |
|---|---|---|
| UCF101 `Class/v_x.avi 1` | the name `trainlist01.txt`, `testlist01.txt` | folder of the video |
| HMDB51 `x.avi 1`, a file per class | pattern `*_test_split1.txt` | name of the list file |
| Something-Something-v2 json | suffix `.json` | `template`, without its brackets |
| Kinetics csv | columns `label,youtube_id,time_start,time_end` | `label` |
| other csv, with or without header | suffix `.csv`, commas | `label_column_name`, or the second column |
| `path label` | anything else | behind the last blank |

Where labels are not asked for, a list may leave them out: a line of text is then a path where it ends as a video's
name does, or where there is something of that name.
"""

import csv
import glob
import json
import logging
import os
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from datasets import ClassLabel, Dataset, Features, Value, Video

from .frame_folder import FRAME_SUFFIXES
from .references import VIDEO_SUFFIXES, column_flags

logger = logging.getLogger(__name__)


class ListedVideo(NamedTuple):
    """A line of a list; `start` and `end` in seconds, None for the whole file."""

    path: str
    label: str
    start: float | None = None
    end: float | None = None


def references_of(listed: Sequence[ListedVideo], names: list[str] | None = None) -> Dataset:
    """Rows `video` and `label`, a string or with the `names` of all classes a `ClassLabel`; `start` and `end` in
    seconds where one of the videos has them."""
    columns = {
        "video": [{"path": video.path, "bytes": None} for video in listed],
        "label": [video.label for video in listed],
    }
    features = Features(video=Video(decode=False), label=Value("string") if names is None else ClassLabel(names=names))
    if any(video.start is not None or video.end is not None for video in listed):
        columns |= {"start": [video.start for video in listed], "end": [video.end for video in listed]}
        features |= Features(start=Value("float64"), end=Value("float64"))
    return Dataset.from_dict(columns, features=Features(features))


def read_list(
    file: str | os.PathLike,
    *,
    video_dir: str | os.PathLike | None = None,
    split: str,
    video_column_name: str = "video",
    label_column_name: str | None = "label",
) -> list[ListedVideo]:
    """Read a list of videos, see the table above for its forms.

    Args:
        file: the list; for HMDB51 a pattern such as `splits/*_test_split1.txt`.
        video_dir: folder that paths in the list are relative to; default the folder of the list.
        split: "train" or "validation", for HMDB51, whose files list both.
        video_column_name: column of the paths in a csv with header.
        label_column_name: column of the labels there, None: each label is "". Columns `start` and `end` (seconds) are
            used where they exist.

    Raises:
        FileNotFoundError: no such file, or none of its videos is there (Kinetics, Something-Something).
        ValueError: a line that does not fit the form, named with its number.
    """
    file = Path(file)
    if re.search(r"[*?\[]", file.name) and not file.exists():
        files = [Path(found) for found in sorted(glob.glob(str(file)))]
        if not files:
            raise FileNotFoundError(f"no file matches {file}")
        root = Path(video_dir or file.parent)
        refuse_column_names(file, video_column_name, label_column_name)
        return [video for found in files for video in _hmdb51(found, root, split)]
    if not file.is_file():
        raise FileNotFoundError(f"no such file: {file}")
    root = Path(video_dir or file.parent)
    if file.suffix == ".json":
        refuse_column_names(file, video_column_name, label_column_name)
        return _something_something(file, root, label_column_name is not None)
    lines = file.read_text(encoding="utf-8-sig").splitlines()
    lines = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    if not lines:
        raise ValueError(f"{file} is empty")
    delimiter = {".csv": ",", ".tsv": "\t"}.get(file.suffix)
    has_columns = delimiter is not None and (label_column_name is None or delimiter in lines[0][1])
    if not has_columns:
        refuse_column_names(file, video_column_name, label_column_name)
    if re.fullmatch(r"(train|test|val)list\d*\.txt", file.name):
        paths = [re.sub(r"\s+\d+\s*$", "", line).strip() for _, line in lines]
        return [ListedVideo(str(root / path), os.path.basename(os.path.dirname(path))) for path in paths]
    if has_columns:
        rows = list(csv.reader([line for _, line in lines], delimiter=delimiter))
        numbers = [number for number, _ in lines]
        return _csv(file, root, numbers, rows, video_column_name, label_column_name)
    has_labels = label_column_name is not None
    return [_path_and_label(file, root, number, line, has_labels) for number, line in lines]


def refuse_column_names(source: str | os.PathLike, video_column_name: str, label_column_name: str | None) -> None:
    """Say that a source has no columns, where some are named."""
    if video_column_name != "video" or label_column_name not in ("label", None):
        raise ValueError(
            f"{source} has no columns, but video_column_name is {video_column_name!r} and label_column_name "
            f"{label_column_name!r}; leave them out"
        )


def read_class_names(file: str | os.PathLike) -> list[str]:
    """Names of the classes in the order of their numbers.

    Args:
        file: a name per line; lines `1 name` as UCF101's `classInd.txt`; or json, a list or `{name: number}` as
            Something-Something's `labels.json`.
    """
    text = Path(file).read_text(encoding="utf-8-sig")
    if Path(file).suffix == ".json":
        names = json.loads(text)
        return sorted(names, key=lambda name: int(names[name])) if isinstance(names, dict) else names
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    numbered = [re.fullmatch(r"(\d+)\s+(.+)", line) for line in lines]
    if lines and all(numbered):
        return [match[2] for match in sorted(numbered, key=lambda match: int(match[1]))]
    return lines


def _path_and_label(file: Path, root: Path, number: int, line: str, has_labels: bool) -> ListedVideo:
    if not has_labels and (_suffix_of(line) in VIDEO_SUFFIXES or (root / line.strip()).exists()):
        return ListedVideo(str(root / line.strip()), "")
    parts = line.rsplit(maxsplit=1)  # paths may have blanks
    if len(parts) != 2:
        raise ValueError(f"{file}, line {number}: expected {_EXPECTED[has_labels]}, found {line!r}")
    return ListedVideo(str(root / parts[0]), parts[1] if has_labels else "")


_EXPECTED = {True: "'path label'", False: "the path of a video, or 'path label'"}


def _suffix_of(name: str) -> str:
    return os.path.splitext(name.strip())[1][1:].lower()


def _csv(file: Path, root: Path, numbers: list[int], rows: list[list[str]], video: str, label: str | None):
    first = [cell.strip() for cell in rows[0]]
    kinetics = {"label", "youtube_id", "time_start", "time_end"} <= set(first)
    usual = {"video", "path", "file", "filename", "file_name", "video_path", "label", "class", video, label}
    if kinetics:
        refuse_column_names(f"{file} is a Kinetics csv: it", video, label)
    header = kinetics or any(cell.lower() in usual for cell in first)
    columns = first if header else [video, label or "label", "start", "end"][: len(first)]
    wanted = [column for column in (video, label) if column is not None]
    if not kinetics and not set(wanted) <= set(columns):
        named = " and ".join(map(repr, wanted))
        raise ValueError(f"{file}: no columns {named}, found {columns}; see {column_flags(wanted)}")
    listed = []
    for number, row in list(zip(numbers, rows, strict=True))[header:]:
        if len(row) != len(columns):
            raise ValueError(f"{file}, line {number}: expected {len(columns)} columns {columns}, found {row}")
        cells = {column: cell.strip() for column, cell in zip(columns, row, strict=True)}
        names = ("youtube_id", "label", "time_start", "time_end") if kinetics else (video, label, "start", "end")
        path, name, start, end = (cells.get(column) or None for column in names)
        name = "" if label is None else name
        if path is None or name is None:
            raise ValueError(f"{file}, line {number}: no video{'' if label is None else ' or no label'} in {row}")
        try:
            start, end = (None if second is None else float(second) for second in (start, end))
        except ValueError:
            raise ValueError(f"{file}, line {number}: start and end must be seconds, found {row}") from None
        listed.append(ListedVideo(path if kinetics else str(root / path), name, start, end))
    return _kinetics(file, root, listed) if kinetics else listed


def _kinetics(file: Path, root: Path, listed: list[ListedVideo]) -> list[ListedVideo]:
    """`<id>_000010_000020.mp4` is cut already, of `<id>.mp4` the seconds from start to end are meant."""
    files = _files_by_stem(root)
    found, missing = [], []
    for video in listed:
        if video.start is None or video.end is None:
            raise ValueError(f"{file}: {video.path} has no time_start or time_end")
        if path := _one_of(files.get(f"{video.path}_{int(video.start):06d}_{int(video.end):06d}")):
            found.append(ListedVideo(path, video.label))
        elif path := _one_of(files.get(video.path)):
            found.append(video._replace(path=path))
        else:
            missing.append(video.path)
    return _without_missing(file, root, found, missing)


def _something_something(file: Path, root: Path, has_labels: bool) -> list[ListedVideo]:
    files = _files_by_stem(root)
    found, missing = [], []
    for entry in json.loads(file.read_text(encoding="utf-8")):
        wanted = ["id", "template"] if has_labels else ["id"]
        if not isinstance(entry, dict) or not set(wanted) <= set(entry):
            raise ValueError(f"{file}: expected entries with {' and '.join(map(repr, wanted))}, found {entry}")
        path = _one_of(files.get(str(entry["id"])))
        if path is None:
            missing.append(str(entry["id"]))
        else:
            found.append(ListedVideo(path, re.sub(r"[\[\]]", "", entry["template"]) if has_labels else ""))
    return _without_missing(file, root, found, missing)


def _hmdb51(file: Path, root: Path, split: str) -> list[ListedVideo]:
    match = re.fullmatch(r"(.+)_test_split\d+", file.stem)
    if match is None:
        raise ValueError(f"{file}: expected a name such as 'run_test_split1.txt'")
    wanted = {"train": "1", "validation": "2"}[split]
    listed = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        parts = line.split()
        if parts and (len(parts) != 2 or parts[1] not in ("0", "1", "2")):
            raise ValueError(f"{file}, line {number}: expected 'video.avi' and 0, 1 or 2, found {line!r}")
        if parts and parts[1] == wanted:
            listed.append(ListedVideo(str(root / match[1] / parts[0]), match[1]))
    return listed


def _files_by_stem(root: Path) -> dict[str, list[str]]:
    """Video files and folders of frames below a folder, by name without suffix: these lists name no folder."""
    found = defaultdict(list)
    for folder, folders, names in os.walk(root):
        folders.sort()
        suffixes = [Path(name).suffix.lower() for name in names]
        videos = [name for name, suffix in zip(names, suffixes, strict=True) if suffix[1:] in VIDEO_SUFFIXES]
        for name in sorted(videos):
            found[Path(name).stem].append(os.path.join(folder, name))
        if not videos and any(suffix in FRAME_SUFFIXES for suffix in suffixes):
            found[os.path.basename(folder)].append(folder)
    return found


def _one_of(paths: list[str] | None) -> str | None:
    if paths and len(paths) > 1:
        raise ValueError(f"which of {paths[:5]} is meant? The list names no folder and no suffix; keep one of them")
    return paths[0] if paths else None


def _without_missing(file: Path, root: Path, found: list[ListedVideo], missing: list[str]) -> list[ListedVideo]:
    if not found:
        raise FileNotFoundError(f"{file}: none of its {len(missing)} videos is in {root}; see --video_dir")
    if missing:
        share = 100 * len(missing) / (len(found) + len(missing))
        logger.warning(
            "%s: %s videos (%.1f %%) are not in %s and are left out, e.g. %s",
            file,
            len(missing),
            share,
            root,
            missing[:5],
        )
    return found
