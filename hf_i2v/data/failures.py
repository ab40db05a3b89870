"""Videos that cannot be read: counted and listed; too many of them stop the run; listed ones can be left out."""

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pyarrow.compute as pc
from datasets import DatasetDict

from .fingerprints import video_fingerprint

logger = logging.getLogger(__name__)

OnBadVideo = Literal["error", "skip", "substitute"]

_PLACE = ("shard", "position", "row_group")  # of a video in a shard, where its path alone may not be the only one


def bad_video(row: Mapping[str, Any], index: int, reason: str, root: str) -> dict[str, Any]:
    """A line of a list of bad videos: row, path, place in a shard, reason, and fingerprint.

    Args:
        row: of the data set.
        index: number of the row.
        reason: why the video cannot be read.
        root: folder that all videos of the data set are in, see `common_folder`.
    """
    place = {name: row[name] for name in _PLACE if row.get(name) is not None}
    return {
        "id": index,
        "path": row["video"]["path"] or f"row {index}",
        **place,
        "reason": reason,
        "fingerprint": video_fingerprint(row, root),
    }


def without_bad_videos(videos: DatasetDict, file: str | os.PathLike) -> DatasetDict:
    """Leave out the videos that a list names, in every split.

    Args:
        videos: as `load_videos` gives them.
        file: JSON lines with at least `path`, as `examples/check_videos.py` and a run's `bad_videos.jsonl` have them.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a line that is none of such a list, a split without a video left.
    """
    listed = set()
    for number, line in enumerate(Path(file).read_text(encoding="utf-8").splitlines(), start=1):
        try:
            bad = json.loads(line)
            listed.add((bad["path"], *map(bad.get, _PLACE)))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{file}, line {number}: expected an object with 'path', as examples/check_videos.py writes it, found "
                f"{line[:100]!r}"
            ) from error
    left, found = {}, set()
    for split, rows in videos.items():
        table = rows.with_format("arrow")[:]
        paths = pc.struct_field(table["video"], "path").to_pylist()
        places = [table[name].to_pylist() if name in table.column_names else [None] * len(rows) for name in _PLACE]
        keys = list(zip(paths, *places, strict=True))
        found |= listed.intersection(keys)
        good = [index for index, key in enumerate(keys) if key not in listed]
        if not good:
            raise ValueError(f"{file} lists all {len(rows)} videos of the split {split!r}; none would be left")
        left[split] = rows.select(good) if len(good) < len(rows) else rows
    logger.warning("left out %s of the %s bad videos that %s lists", len(found), len(listed), file)
    return DatasetDict(left)


class TooManyBadVideosError(RuntimeError):
    """More videos than allowed cannot be read; the message lists them."""


class FailureLog:
    """Failures of one rank, and through a shared file those of the others.

    Args:
        path: file of JSON lines (`id`, `path`, `reason`, `epoch`, `train`) that all ranks append to, or None.
        num_videos: of the whole data set.
        train: whether it is the data set for training, for that and the one for evaluation may share a file.
        max_bad_fraction: share of bad videos above which `record` raises,
        min_bad_videos: but not before there are so many.

    Raises:
        ValueError: a share outside [0, 1], a number below 1.
    """

    def __init__(
        self,
        path: str | os.PathLike | None,
        *,
        num_videos: int,
        train: bool,
        max_bad_fraction: float,
        min_bad_videos: int = 1,
    ):
        if not 0 <= max_bad_fraction <= 1:
            raise ValueError(f"max_bad_fraction ({max_bad_fraction}) must be in [0, 1]")
        if min_bad_videos < 1:
            raise ValueError(f"min_bad_videos ({min_bad_videos}) must be at least 1")
        self.path = None if path is None else Path(path)
        self.num_videos = num_videos
        self.train = train
        self.max_bad_fraction = max_bad_fraction
        self.min_bad_videos = min_bad_videos
        self.failures: list[dict[str, Any]] = []
        # What earlier runs left in the file stays there, but it may have been repaired and does not count.
        self._file_start = self.path.stat().st_size if self.path is not None and self.path.exists() else 0

    def record(self, failures: list[dict[str, Any]]) -> None:
        """Add failures.

        Raises:
            TooManyBadVideosError: with them, `min_bad_videos` or more, and more than `max_bad_fraction` of all, are
                bad.
        """
        if not failures:
            return
        failures = [{**failure, "train": self.train} for failure in failures]
        self.failures += failures
        for failure in failures:
            logger.warning("bad video %s: %s", failure["path"], failure["reason"])
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "a", encoding="utf-8") as file:  # one write of whole lines, so that ranks do not mix
                file.write("".join(json.dumps(failure, ensure_ascii=False) + "\n" for failure in failures))
        bad = self._bad_videos()
        if len(bad) >= self.min_bad_videos and len(bad) / self.num_videos > self.max_bad_fraction:
            listed = "\n".join(f"  {reason}" for reason in bad.values())
            where = "" if self.path is None else f" They are listed in {self.path}."
            raise TooManyBadVideosError(
                f"so far {len(bad)} of {self.num_videos} videos cannot be read, more than max_bad_fraction "
                f"({self.max_bad_fraction}) allows.{where} examples/check_videos.py finds all of them. Repair, remove "
                f"or exclude them, or allow more:\n{listed}"
            )

    def report(self, epoch: int) -> None:
        """Say how many failures of this rank an epoch had, if it had any."""
        count = sum(failure["epoch"] == epoch for failure in self.failures)
        if count:
            what = "training" if self.train else "evaluation"
            where = "" if self.path is None else f", listed in {self.path}"
            logger.warning("%s, epoch %s: %s failures to read a video%s", what, epoch, count, where)

    def num_bad_videos(self) -> int:
        """Of all ranks and earlier runs, where they share a file."""
        return len(self._bad_videos(start=0))

    def _bad_videos(self, start: int | None = None) -> dict[int, str]:
        """Reasons by id, each video once; from this place of the file on, default where this run began."""
        failures = self.failures
        if self.path is not None:
            if not self.path.exists():
                return {}
            with open(self.path, "rb") as file:
                file.seek(self._file_start if start is None else start)
                failures = [json.loads(line) for line in file]
        return {failure["id"]: failure["reason"] for failure in failures if failure["train"] == self.train}
