"""The account of the videos that could not be read: counted, listed, and too many of them stop the run."""

import json
import logging
import os
from pathlib import Path
from typing import Any, Literal

logger = logging.getLogger(__name__)

OnBadVideo = Literal["error", "skip", "substitute"]


class TooManyBadVideosError(RuntimeError):
    """More videos than allowed cannot be read; the message lists them."""


class FailureLog:
    """Failures of one rank, and through a shared file those of the others.

    Args:
        path: file of JSON lines (`id`, `path`, `reason`, `epoch`, `train`) that all ranks append to, or None.
        num_videos: of the whole data set.
        train: whether it is the data set for training, for that and the one for evaluation may share a file.
        max_bad_fraction: share of bad videos above which `record` raises.
    """

    def __init__(self, path: str | os.PathLike | None, *, num_videos: int, train: bool, max_bad_fraction: float):
        if not 0 <= max_bad_fraction <= 1:
            raise ValueError(f"max_bad_fraction ({max_bad_fraction}) must be in [0, 1]")
        self.path = None if path is None else Path(path)
        self.num_videos = num_videos
        self.train = train
        self.max_bad_fraction = max_bad_fraction
        self.failures: list[dict[str, Any]] = []
        # What earlier runs left in the file stays there, but it may have been repaired and does not count.
        self._file_start = self.path.stat().st_size if self.path is not None and self.path.exists() else 0

    def record(self, failures: list[dict[str, Any]]) -> None:
        """Add failures.

        Raises:
            TooManyBadVideosError: with them, more than `max_bad_fraction` of the videos were bad.
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
        if len(bad) > self.max_bad_fraction * self.num_videos:
            listed = "\n".join(f"  {reason}" for reason in bad.values())
            raise TooManyBadVideosError(
                f"{len(bad)} of {self.num_videos} videos cannot be read, more than max_bad_fraction "
                f"({self.max_bad_fraction}) allows; repair or remove them, or allow more:\n{listed}"
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
