"""Which windows a long video has, and which frames stand for them. Pure functions: times in, frame numbers out.

Windows of 2 s every 1 s, over a video of 5.5 s: the last one ends with the video, so that every frame is in a window.

    seconds   0   1   2   3   4   5
              |-------|
                  |-------|
                      |-------|
                          |-------|
                            |-------|
"""

import bisect
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from .sampling import uniform_indices

# Times are quotients of whole numbers: 3 * 0.1 seconds is the time of frame 3 at 10 frames a second.
_SAME = 1e-6


@dataclass(frozen=True)
class Windows:
    """How long a window is and how far apart they are, in seconds.

    Raises:
        ValueError: a length or stride that is not above 0.
    """

    window: float
    stride: float

    def __post_init__(self):
        if not (self.window > 0 and self.stride > 0):
            raise ValueError(f"window ({self.window}) and stride ({self.stride}) are seconds and must be above 0")

    def of(self, times: Sequence[float], start: float | None, end: float | None) -> Iterator[tuple[float, float]]:
        """Start and end of each window of a video, in their order; a video shorter than a window is one window.

        Args:
            times: when each frame is shown, in seconds from the first.
            start: second that the first window begins at; default the video's first frame.
            end: second that the last window ends at; default the end of the last frame, which is taken to last as long
                as the one before it.
        """
        start = times[0] if start is None else start
        last = times[-1] + (times[-1] - times[-2] if len(times) > 1 else 0.0)
        end = last if end is None else min(end, last)
        count = max(0, math.floor((end - start - self.window) / self.stride + _SAME)) + 1
        for number in range(count):
            begin = start + number * self.stride
            yield begin, min(begin + self.window, end)
        if begin + self.window < end - _SAME:
            yield end - self.window, end


class Window(NamedTuple):
    """A part of a video, the half-open range from `start` to `end` in seconds, and the frames that stand for it."""

    start: float
    end: float
    frames: list[int]


def windows_of(
    times: Sequence[float],
    windows: Windows,
    *,
    num_frames: int,
    start: float | None = None,
    end: float | None = None,
) -> Iterator[Window]:
    """The windows of a video as clips, in their order.

    Each takes `num_frames` frames of those shown in it, as `uniform_indices` takes them of a whole video. Where none
    is shown anew, the one on show stands for all. See `Windows.of` for the other arguments.
    """
    for begin, stop in windows.of(times, start, end):
        first, after = (_frames_before(times, second) for second in (begin, stop))
        if first >= after:
            first, after = max(first - 1, 0), max(first, 1)
        inside = uniform_indices(num_video_frames=after - first, num_frames=num_frames)
        yield Window(begin, stop, [first + number for number in inside])


class StreamedWindow(NamedTuple):
    """A part of a video, from `start` to `end` in seconds, and how many frames of the stream there are by its end."""

    start: float
    end: float
    num_seen: int


def stream_of(
    times: Sequence[float],
    windows: Windows,
    *,
    num_frames: int,
    frame_stride: int | None = None,
    start: float | None = None,
    end: float | None = None,
) -> tuple[list[int], list[StreamedWindow]]:
    """The frames that a causal model takes of a video one by one, and the windows that it answers on the way.

    With a `frame_stride` it takes the first frame and then every frame of that distance. Without one it takes
    `num_frames` frames in the time of the first window: time is cut into equal segments from the start on, and the
    frame on show in the middle of each is taken. A frame that is on show for several segments is taken for each. For
    windows of 2 s every 1 s and 4 frames a clip:

        seconds   0   1   2   3   4
        taken      x x x x x x x x
        answers   |-------|              after 4 frames
                      |-------|          after 6
                          |-------|      after 8

    The model has seen all frames before a window's end by then, and its clip feature is the mean over the last
    `num_frames` of them. See `Windows.of` for the other arguments.
    """
    spans = list(windows.of(times, start, end))
    begin, stop = spans[0][0], spans[-1][1]
    if frame_stride is not None:
        taken = list(range(min(_frames_before(times, begin), len(times) - 1), len(times), frame_stride))
        seconds = [times[number] for number in taken]
    else:
        apart = (spans[0][1] - begin) / num_frames  # shorter in a video that is shorter than a window
        count = math.floor((stop - begin) / apart + 0.5 - _SAME) if apart else 1  # 0 in a video of one frame
        seconds = [begin + (number + 0.5) * apart for number in range(count)]
        taken = [max(bisect.bisect_right(times, second + _SAME) - 1, 0) for second in seconds]
    streamed = [StreamedWindow(*span, max(_frames_before(seconds, span[1]), 1)) for span in spans]
    return taken[: streamed[-1].num_seen], streamed


def _frames_before(times: Sequence[float], second: float) -> int:
    return bisect.bisect_left(times, second - _SAME)
