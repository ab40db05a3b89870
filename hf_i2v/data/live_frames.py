"""Frames of a live source, read by a thread, which connects anew when the source breaks.

A camera does not wait. While the caller is busy the newest frames are kept and older ones dropped, so that an answer
is never late by more than a few frames. A file waits: nothing of it is dropped, unless it shall play in real time.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from .live_media import LIVE_LIMITS, LiveSource, Pictures
from .media import ReadLimits, VideoDecodeError

_HELD = 3  # frames that wait for the caller
_LOOK = 0.1  # seconds after which a waiting thread looks whether it shall stop
_LONGEST_WAIT = 30.0  # seconds before connecting anew


@dataclass(frozen=True)
class LiveFrame:
    """A picture and its place in the source.

    Attributes:
        picture_Chw: uint8 RGB.
        number: among all frames that came, dropped ones too, from 0.
        seconds: since the first frame, by the source's time stamps; later ones are never earlier.
        connection: how often the source was connected to anew before.
    """

    picture_Chw: torch.Tensor
    number: int
    seconds: float
    connection: int


class LiveFrames:
    """
    ```python
    with LiveFrames("rtsp://camera/stream") as frames:
        for frame in frames:
            ...
    print(frames.num_dropped)
    ```

    Args:
        source: see `LiveSource`.
        realtime: play a file at its own speed, and drop what the caller has no time for. Cameras and servers do so
            anyway.
        max_reconnects: attempts to connect anew after a source that gave frames breaks. They count from 0 again after
            a connection that held for `limits.seconds`. A source that cannot be opened at first is not tried again.
        first_wait: seconds before the first attempt; the wait doubles from one to the next, up to 30 s.
        limits: of these, `seconds` without a frame, after which a source counts as broken, and `pixels` of a frame.

    Attributes:
        num_read: frames that came.
        num_dropped: of these, frames that the caller never got.
        num_reconnects: how often the source was connected to anew and gave frames again.
        num_damaged: packets that could not be decoded, and damaged pictures; both are left out.

    Raises:
        VideoDecodeError: while iterating: the source cannot be opened, or broke for good. What came before was given.
        ValueError: no kind of source.
    """

    def __init__(
        self,
        source: str,
        *,
        realtime: bool = False,
        max_reconnects: int = 5,
        first_wait: float = 0.5,
        limits: ReadLimits = LIVE_LIMITS,
    ):
        self.source = LiveSource(source)
        self.drops = realtime or self.source.is_live
        self.num_read = self.num_dropped = self.num_reconnects = self.num_damaged = 0
        self._max_reconnects, self._first_wait, self._limits = max_reconnects, first_wait, limits
        self._waiting: deque[LiveFrame] = deque()
        self._changed = threading.Condition()
        self._stopped = self._ended = False
        self._error: VideoDecodeError | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)  # it may hang in a read for a while

    def __enter__(self) -> "LiveFrames":
        self._started = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *exception) -> None:
        self.stop()
        self._thread.join(1.0)

    def stop(self) -> None:
        """End the frames: those that wait are not given any more. A signal's handler may call this."""
        self._stopped = True  # seen within _LOOK seconds; taking the lock here could wait for ever

    def __iter__(self) -> Iterator[LiveFrame]:
        return self.each()

    def each(self, while_waiting: Callable[[], object] = bool) -> Iterator[LiveFrame]:
        """The frames, in their order.

        Args:
            while_waiting: called ten times a second while no frame comes.
        """
        while not self._stopped:
            with self._changed:
                if not self._waiting and not self._ended:
                    self._changed.wait(_LOOK)
                frame = self._waiting.popleft() if self._waiting else None
                self._changed.notify_all()
                if frame is None and self._ended:
                    break
            if frame is None:
                while_waiting()
            else:
                yield frame
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            self._read()
        except VideoDecodeError as error:
            self._error = error
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _read(self) -> None:
        """Connect, and connect again, until the source ends or the attempts are used up."""
        clock = _SourceTime()
        attempts = 0
        while not self._stopped:
            came_first = None
            try:
                for picture_Chw, stamp in self._pictures():
                    if came_first is None:
                        self.num_reconnects += self.num_read > 0
                        came_first = time.monotonic()
                    if time.monotonic() - came_first > self._limits.seconds:
                        attempts = 0
                    self._give(LiveFrame(picture_Chw, self.num_read, clock.at(stamp), self.num_reconnects))
                    if self._stopped:
                        return
                if self.num_read == 0:
                    raise VideoDecodeError(f"{self.source.name}: none of its pictures can be decoded")
                return
            except VideoDecodeError as error:
                if not self.source.is_live or self.num_read == 0:
                    raise
                if attempts == self._max_reconnects:
                    raise VideoDecodeError(f"{error} (after {attempts} attempts to connect anew)") from error
            self._pause(time.monotonic() + min(self._first_wait * 2**attempts, _LONGEST_WAIT))
            attempts += 1
            clock.connect_anew()

    def _pictures(self) -> Iterator[tuple[torch.Tensor, float | None]]:
        pictures = Pictures(self.source, self._limits)
        damaged_before = self.num_damaged
        for picture in pictures:
            self.num_damaged = damaged_before + pictures.num_damaged
            yield picture

    def _give(self, frame: LiveFrame) -> None:
        if self.drops and not self.source.is_live:
            self._pause(self._started + frame.seconds)
        with self._changed:
            self.num_read += 1
            if self.drops and len(self._waiting) == _HELD:
                self._waiting.popleft()
                self.num_dropped += 1
            while len(self._waiting) == _HELD and not self._stopped:
                self._changed.wait(_LOOK)
            self._waiting.append(frame)
            self._changed.notify_all()

    def _pause(self, until: float) -> None:
        while not self._stopped and (left := until - time.monotonic()) > 0:
            time.sleep(min(left, _LOOK))


class _SourceTime:
    """Time stamps as seconds since the first frame. Where they are missing, jump back, or start anew with a new
    connection, the clock of this machine says how much time has passed."""

    def __init__(self):
        self._seconds, self._stamp = 0.0, None
        self._arrival: float | None = None  # of the last frame

    def at(self, stamp: float | None) -> float:
        now = time.monotonic()
        if self._stamp is not None and stamp is not None and stamp >= self._stamp:
            self._seconds += stamp - self._stamp
        elif self._arrival is not None:
            self._seconds += now - self._arrival
        self._stamp, self._arrival = stamp, now
        return self._seconds

    def connect_anew(self) -> None:
        self._stamp = None
