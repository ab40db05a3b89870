"""Which windows a long video has, and which frames each takes. Pure functions: times in, frame numbers out.

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
from typing import NamedTuple

from .sampling import uniform_indices

# Times are quotients of whole numbers: 3 * 0.1 seconds is the time of frame 3 at 10 frames a second.
_SAME = 1e-6


class Window(NamedTuple):
    """A part of a video, the half-open range from `start` to `end` in seconds, and the frames that stand for it."""

    start: float
    end: float
    frames: list[int]


def windows_of(
    times: Sequence[float],
    *,
    window: float,
    stride: float,
    num_frames: int,
    start: float | None = None,
    end: float | None = None,
) -> Iterator[Window]:
    """The windows of a video, in their order.

    Each takes `num_frames` frames of those shown in it, as `uniform_indices` takes them of a whole video. Where none
    is shown anew, the one on show stands for all. A video shorter than a window is one window.

    Args:
        times: when each frame is shown, in seconds from the first.
        window: length of a window in seconds.
        stride: seconds from one window to the next.
        num_frames: frames of a clip.
        start: second that the first window begins at; default the video's first frame.
        end: second that the last window ends at; default the end of the last frame, which is taken to last as long as
            the one before it.

    Raises:
        ValueError: a length or stride that is not above 0.
    """
    if not (window > 0 and stride > 0):
        raise ValueError(f"window ({window}) and stride ({stride}) are seconds and must be above 0")
    start = times[0] if start is None else start
    last = times[-1] + (times[-1] - times[-2] if len(times) > 1 else 0.0)
    end = last if end is None else min(end, last)
    for begin in _starts(start, end, window, stride):
        stop = min(begin + window, end)
        first, after = (bisect.bisect_left(times, second - _SAME) for second in (begin, stop))
        if first >= after:
            first, after = max(first - 1, 0), max(first, 1)
        inside = uniform_indices(num_video_frames=after - first, num_frames=num_frames)
        yield Window(begin, stop, [first + number for number in inside])


def _starts(start: float, end: float, window: float, stride: float) -> Iterator[float]:
    count = max(0, math.floor((end - start - window) / stride + _SAME)) + 1
    yield from (start + number * stride for number in range(count))
    if start + (count - 1) * stride + window < end - _SAME:
        yield end - window
