"""Clips of whole videos or of their windows, batch by batch, from one pass over each video.

Videos come in units, a few neighbours each. A unit's batches depend on nothing but the unit and the batch size: it
does not matter which process or worker makes them, and a unit that was broken off goes on behind any of its batches.

Shape suffixes: B clip, T frame, C channel, h height, w width.
"""

import ctypes
import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from datasets import Dataset
from torch.utils.data import IterableDataset, get_worker_info

from .clips import frames_between
from .decode import VideoReader
from .failures import bad_video
from .fingerprints import common_folder
from .frame_folder import FrameFolder
from .media import DEFAULT_LIMITS, ReadLimits, VideoDecodeError
from .references import open_video
from .sampling import uniform_indices
from .transforms import ClipTransform
from .windows import Window, Windows, windows_of

# A file with more is read twice, for its table of packets and for its frames: memory does not grow with it.
_HELD_BYTES = 8 * 2**20


class Place(NamedTuple):
    """Where a unit goes on: a row of the data set and the number of its window."""

    video: int
    window: int


@dataclass(frozen=True)
class Unit:
    """Neighbouring rows of the data set, from that of `place` up to and without `stop`."""

    number: int
    place: Place
    stop: int


@dataclass
class ArchiveBatch:
    """Clips of a unit, and what was learned on the way to them.

    Attributes:
        unit: its number.
        windows: of each clip, its row of the data set, start and end in seconds (None: those of the video).
        pixels_BTChw: uint8; None, where there is no clip.
        bad: videos that could not be read, as `bad_video` describes them.
        next: where the unit goes on; None, where this was its last batch.
        videos_done: videos that ended with this batch.
    """

    unit: int
    windows: list[tuple[int, float | None, float | None]]
    pixels_BTChw: torch.Tensor | None
    bad: list[dict[str, Any]]
    next: Place | None
    videos_done: int


def times_between(
    reader: VideoReader | FrameFolder,
    start: float | None,
    end: float | None,
    windows: Windows,
    num_frames: int,
    limits: ReadLimits,
) -> list[float]:
    """When each frame of a video is shown.

    Raises:
        VideoDecodeError: there are no times, no frame between start and end, or so much time in between that its
            windows or their frames are more than the packets that a video may have.
    """
    if start is not None or end is not None:
        frames_between(reader, start, end)
    times = reader.times()
    seconds = (times[-1] if end is None else min(end, times[-1])) - (times[0] if start is None else start)
    apart = min(windows.stride, windows.window / num_frames)
    if seconds / apart > limits.packets:
        raise VideoDecodeError(
            f"{reader.name}: its {len(times)} frames are spread over {seconds:.6g} seconds, {seconds / apart:.6g} "
            f"times the {apart:g} seconds from one window or frame to the next; at most {limits.packets} are allowed "
            "(ReadLimits.packets). Its time stamps are damaged, or the windows are too close for so long a video."
        )
    return times


def give_memory_back() -> None:
    """Have glibc give unused memory back to the system. By itself it keeps what lies between blocks in use, and the
    heap of a process that reads a film of 30 minutes grows by hundreds of megabytes that nobody uses."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # other C libraries have none
    if trim is not None:
        trim(0)


class ArchiveBatches(IterableDataset):
    """The batches of units, for a `DataLoader(..., batch_size=None)`, whose workers share the units.

    Args:
        videos: rows as `load_archive` gives them.
        units: to go through.
        num_frames: frames of a clip.
        transform: of `eval_transform`; its normalisation is left to whoever has the device.
        windows: None for one clip a video.
        batch_size: clips.
        skip_bad: list videos that cannot be read; False raises.
        limits: what reading one video may take.

    Raises:
        VideoDecodeError: while iterating, at a video that cannot be read, without `skip_bad`.
    """

    def __init__(
        self,
        videos: Dataset,
        units: Sequence[Unit],
        *,
        num_frames: int,
        transform: ClipTransform,
        windows: Windows | None,
        batch_size: int,
        skip_bad: bool = True,
        limits: ReadLimits = DEFAULT_LIMITS,
    ):
        self.videos, self.units = videos, list(units)
        self.num_frames, self.transform, self.windows = num_frames, transform, windows
        self.batch_size, self.skip_bad = batch_size, skip_bad
        self.limits = dataclasses.replace(limits, held=_HELD_BYTES) if windows else limits
        self._root: str | None = None

    def __iter__(self) -> Iterator[ArchiveBatch]:
        worker = get_worker_info()
        units = self.units if worker is None else self.units[worker.id :: worker.num_workers]
        for unit in units:
            for batch in self._batches(unit):
                yield batch
                give_memory_back()

    def _batches(self, unit: Unit) -> Iterator[ArchiveBatch]:
        windows, clips, bad, done = [], [], [], 0
        for index in range(unit.place.video, unit.stop):
            row = self.videos[index]
            skip = unit.place.window if index == unit.place.video else 0
            number = skip
            try:
                for number, (start, end, pixels_TChw) in enumerate(self._clips(row, skip), start=skip + 1):
                    windows.append((index, start, end))
                    clips.append(pixels_TChw)
                    if len(clips) == self.batch_size:
                        yield ArchiveBatch(unit.number, windows, torch.stack(clips), bad, Place(index, number), done)
                        windows, clips, bad, done = [], [], [], 0
            except VideoDecodeError as error:
                bad.append(self._bad(index, error, number))
            done += 1
        yield ArchiveBatch(unit.number, windows, torch.stack(clips) if clips else None, bad, None, done)

    def _clips(self, row: dict, skip: int) -> Iterator[tuple[float | None, float | None, torch.Tensor]]:
        """Start, end and pixels (T, C, h, w) of the windows of a video, without the first `skip`."""
        start, end = row.get("start"), row.get("end")
        with open_video(row, limits=self.limits) as reader:
            if self.windows is None:
                if skip == 0:
                    yield start, end, self._whole(reader, start, end)
                return
            times = times_between(reader, start, end, self.windows, self.num_frames, self.limits)
            windows = windows_of(times, self.windows, num_frames=self.num_frames, start=start, end=end)
            yield from self._one_pass(reader, list(windows)[skip:])

    def _whole(self, reader, start: float | None, end: float | None) -> torch.Tensor:
        first, num_video_frames = 0, reader.num_frames
        if start is not None or end is not None:
            first, num_video_frames = frames_between(reader, start, end)
        inside = uniform_indices(num_video_frames=num_video_frames, num_frames=self.num_frames)
        return self._pixels(reader.frames([first + number for number in inside]))

    def _one_pass(self, reader, windows: list[Window]) -> Iterator[tuple[float, float, torch.Tensor]]:
        """Each frame is decoded and scaled once, and kept as long as a window is to come that takes it."""
        wanted = sorted({number for window in windows for number in window.frames})
        frames, kept = zip(wanted, reader.each(wanted), strict=True), {}
        for window in windows:
            while window.frames[-1] not in kept:
                number, frame_Chw = next(frames)
                kept[number] = self._pixels(frame_Chw[None])[0]
            yield window.start, window.end, torch.stack([kept[number] for number in window.frames])
            kept = {number: frame_Chw for number, frame_Chw in kept.items() if number >= window.frames[0]}

    def _bad(self, index: int, error: VideoDecodeError, num_windows: int) -> dict[str, Any]:
        """A bad video, of which so many windows could be read; without `skip_bad` the error is raised."""
        if not self.skip_bad:
            raise error
        self._root = common_folder(self.videos) if self._root is None else self._root
        reason = f"{error} ({num_windows} windows before that could be read)" if num_windows else str(error)
        return bad_video(self.videos[index], index, reason, self._root)

    def _pixels(self, frames_TChw: torch.Tensor) -> torch.Tensor:
        return self.transform.uint8(frames_TChw, None, is_flipped=False)
