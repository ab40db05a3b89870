"""Videos as streams, for causal models: one frame after the other, and the windows that end on the way."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from .media import VideoDecodeError
from .references import open_video
from .windowed import ArchiveBatch, ArchiveBatches, Place, Unit, times_between
from .windows import StreamedWindow, stream_of


@dataclass
class StreamBatch(ArchiveBatch):
    """Frames of one video, one after the other, and the windows that end among them.

    Attributes:
        pixels_BTChw: (1, T, C, h, w), with any number of frames.
        num_seen: of each window, how many of these frames there are by its end.
        is_start: the stream begins with these frames; otherwise they follow those of the unit's batch before.
    """

    num_seen: list[int]
    is_start: bool


class StreamBatches(ArchiveBatches):
    """`ArchiveBatches` for a causal model. `stream_of` says which frames it takes, and which windows there are.

    A unit that was broken off in the middle of a video goes on with the next window, but the stream begins anew: what
    the model answers depends on what it has seen.

    Args:
        frame_stride: see `stream_of`.
        others: those of `ArchiveBatches`, with `windows`. A batch has the frames of `batch_size` clips at most.
    """

    def __init__(self, *args: Any, frame_stride: int | None, **others: Any):
        super().__init__(*args, **others)
        self.frame_stride = frame_stride

    def _batches(self, unit: Unit) -> Iterator[StreamBatch]:
        for index in range(unit.place.video, unit.stop):
            number = unit.place.window if index == unit.place.video else 0  # of the next window
            frames, windows, num_seen, bad, is_start = [], [], [], [], True
            try:
                for frame_Chw, ended in self._stream(self.videos[index], skip=number):
                    if len(frames) == self.batch_size * self.num_frames:
                        pixels_1TChw = torch.stack(frames)[None]
                        after = Place(index, number)
                        yield StreamBatch(unit.number, windows, pixels_1TChw, [], after, 0, num_seen, is_start)
                        frames, windows, num_seen, is_start = [], [], [], False
                    frames.append(frame_Chw)
                    windows += [(index, window.start, window.end) for window in ended]
                    num_seen += [len(frames)] * len(ended)
                    number += len(ended)
            except VideoDecodeError as error:
                bad.append(self._bad(index, error, number))
            pixels_1TChw = torch.stack(frames)[None] if frames else None
            after = Place(index + 1, 0) if index + 1 < unit.stop else None
            yield StreamBatch(unit.number, windows, pixels_1TChw, bad, after, 1, num_seen, is_start)

    def _stream(self, row: dict[str, Any], skip: int) -> Iterator[tuple[torch.Tensor, list[StreamedWindow]]]:
        """Pixels (C, h, w) of each frame, and the windows that end with it, without the first `skip`."""
        start, end = row.get("start"), row.get("end")
        with open_video(row, limits=self.limits) as reader:
            times = times_between(reader, start, end, self.windows, self.num_frames, self.limits)
            taken, windows = stream_of(
                times,
                self.windows,
                num_frames=self.num_frames,
                frame_stride=self.frame_stride,
                start=start,
                end=end,
            )
            by_end = itertools.groupby(windows[skip:], key=lambda window: window.num_seen)
            ended = {num_seen: list(group) for num_seen, group in by_end}
            wanted = list(dict.fromkeys(taken))
            frames, number = zip(wanted, reader.each(wanted), strict=True), None
            for num_seen, own in enumerate(taken, start=1):
                if own != number:
                    number, frame_Chw = next(frames)
                    pixels_Chw = self._pixels(frame_Chw[None])[0]
                yield pixels_Chw, ended.get(num_seen, [])
