"""Frames of a video file, by their numbers, through PyAV.

The packets of the file are demuxed once and kept: they say how many frames there really are (headers lie or are
silent), and they are what gets decoded. Frame `i` is the `i`-th picture the decoder shows, in presentation order.

Decoding starts at the last key frame before a wanted frame and goes on from there, never backwards; pictures that are
neither wanted nor predicted from are skipped:

    packets     I p b p b p b I p b p b p b I p b        wanted: x
                              I p - p x                  bit-identical to decoding everything

Shape suffixes: T frame, C channel, h height, w width.
"""

import bisect
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import numpy as np
import torch
from av.video.frame import PictureType
from av.video.reformatter import VideoReformatter

from .media import DEFAULT_LIMITS, Clock, ReadLimits, VideoDecodeError, VideoSource, open_media, video_stream
from .packets import HIDE_ERRORS, NEVER_SKIPPED, Packets

# Passing over so many packets costs less than opening a file again, which those that are not held need.
_NEAR = 500


@dataclass(frozen=True)
class VideoInfo:
    """What `probe` says of a video.

    Attributes:
        num_frames: frames that can be asked for, counted rather than read from the header.
        height: height in pixels, after rotation.
        width: width in pixels, after rotation.
        fps: average frames per second, or None where the container does not say.
        codec: FFmpeg's name of the decoder, e.g. "h264".
    """

    num_frames: int
    height: int
    width: int
    fps: float | None
    codec: str


class VideoReader:
    """An open video. Use it as a context manager when both the number of frames and frames are wanted: the file is
    then opened and demuxed once.

    ```python
    with VideoReader("clip.mp4") as video:
        frames_TChw = video.frames([0, video.num_frames - 1])
    ```

    The compressed packets of the video stream are held in memory while it is open, unless they are very large.

    Args:
        source: path, the bytes of a file, or a seekable binary file object (read from its start, left open).
        name: what to call it in messages; default its path.
        limits: what reading it may take.

    Raises:
        VideoDecodeError: no such file, an empty file, not a video, no video stream (cover art is none), zero frames,
            more than the limits allow.
    """

    def __init__(self, source: VideoSource, *, name: str | None = None, limits: ReadLimits = DEFAULT_LIMITS):
        self.name = name or name_of(source)
        self._source, self._limits = source, limits
        self._clock = Clock(self.name, limits.seconds)
        self._reformatter = VideoReformatter()
        with self._clock.reading(), ExitStack() as stack:
            container = stack.enter_context(self._open())
            self._stream = video_stream(container, self.name, limits)
            self._has_fresh_decoder = True
            self._packets = Packets(container, self._stream, open_again=self._open, clock=self._clock, limits=limits)
            # positions of the frames' packets, or None where time stamps do not number them
            self._table = self._packets.shown() if self._packets.are_numbered() else None
            self.num_frames = sum(1 for _ in self._decode_all()) if self._table is None else len(self._table)
            if self.num_frames == 0:
                raise VideoDecodeError(f"{self.name}: the video stream has zero frames")
            self._opened = stack.pop_all()

    def __enter__(self) -> "VideoReader":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def close(self) -> None:
        """Close the file (not a file object that was handed in)."""
        self._packets = None
        self._opened.close()

    @property
    def fps(self) -> float | None:
        """Average frames per second, or None where the container does not say."""
        rate = self._stream.average_rate
        return float(rate) if rate else None

    @property
    def codec(self) -> str:
        """FFmpeg's name of the decoder."""
        return self._stream.codec_context.name

    def times(self) -> list[float]:
        """When each frame is shown, in seconds from the first.

        Raises:
            VideoDecodeError: the file has no usable time stamps and no frame rate.
        """
        ticks, tick = self.ticks()
        return [float(time * tick) for time in ticks]

    def ticks(self) -> tuple[list[int], Fraction]:
        """When each frame is shown, in ticks from the first, and the seconds of a tick: `times`, but exactly.

        Raises:
            VideoDecodeError: see `times`.
        """
        if self._table is not None:
            pts = [self._packets.pts[position] for position in self._table]
            return [time - pts[0] for time in pts], self._stream.time_base
        if not self._stream.average_rate:
            raise VideoDecodeError(f"{self.name}: no time stamps and no frame rate, seconds mean nothing in it")
        return list(range(self.num_frames)), 1 / self._stream.average_rate

    def indices_at(self, seconds: Sequence[float]) -> list[int]:
        """Numbers of the frames on show at some times, counted from the first frame; the last one stays on show.

        Args:
            seconds: the times, since the first frame.

        Raises:
            ValueError: a negative time.
        """
        if min(seconds, default=0) < 0:
            raise ValueError(f"seconds ({min(seconds)}) must not be negative")
        times = self.times()
        return [bisect.bisect_right(times, second) - 1 for second in seconds]

    def frames(self, indices: Sequence[int], *, short_side: int | None = None) -> torch.Tensor:
        """Decode the frames of these numbers, up to the last of them and no further.

        Args:
            indices: frame numbers from 0, in any order, repeats allowed.
            short_side: scale the frames while they are converted, so that the shorter side has this many pixels
                (FFmpeg's bicubic filter; the longer side is rounded). None keeps their size.

        Returns:
            uint8 RGB of shape (T, C, h, w) in the order of `indices`. It is stored with the channels last, which is
            how it was decoded and what resizing likes best; `.permute(0, 2, 3, 1)` shows it as (T, h, w, C) at no
            cost, `.contiguous()` stores it the other way.

        Raises:
            VideoDecodeError: an index out of range, damaged data that a wanted frame depends on, a frame size that
                changes within the video.
            ValueError: no index at all.
        """
        indices = [int(index) for index in indices]
        if not indices:
            raise ValueError("indices must name at least one frame, got none")
        for index in indices:
            if not 0 <= index < self.num_frames:
                raise VideoDecodeError(
                    f"{self.name}: frame index {index} is out of range, the video has {self.num_frames} frames "
                    f"(0 to {self.num_frames - 1})"
                )
        if short_side is not None and short_side < 1:
            raise ValueError(f"short_side ({short_side}) must be at least 1")

        wanted = sorted(set(indices))
        with self._clock.reading():
            video_ThwC = self._seek_and_decode(wanted, short_side)
            if video_ThwC is None:
                video_ThwC = self._decode_up_to(wanted, short_side)
        if indices != wanted:
            place = {index: row for row, index in enumerate(wanted)}
            video_ThwC = video_ThwC[[place[index] for index in indices]]
        return torch.from_numpy(video_ThwC).permute(0, 3, 1, 2)

    def each(self, indices: Sequence[int]) -> Iterator[torch.Tensor]:
        """Decode the frames of these numbers in one pass and give them one by one, so that memory holds one of them.

        No picture is decoded twice, unless damage turns up: then everything is decoded from the start, as `frames`
        does, and what was given before stays given.

        Args:
            indices: frame numbers from 0, ascending, without repeats.

        Yields:
            uint8 RGB of shape (C, h, w), as `frames` gives it.

        Raises:
            VideoDecodeError: see `frames`; while iterating, at the frame that cannot be had.
            ValueError: numbers that do not ascend, or are out of range.
        """
        return self._each(indices, lambda frame: torch.from_numpy(self._to_rgb(frame, None).copy()).permute(2, 0, 1))

    def pictures(self, indices: Sequence[int]) -> Iterator[av.VideoFrame]:
        """`each`, as the decoder gives them: neither converted to RGB nor rotated.

        Args:
            indices: frame numbers from 0, ascending, without repeats.

        Yields:
            PyAV's frames.

        Raises:
            VideoDecodeError: see `each`.
            ValueError: see `each`.
        """
        return self._each(indices, lambda frame: frame)

    def _each(self, indices: Sequence[int], converted: Callable[[av.VideoFrame], Any]) -> Iterator[Any]:
        wanted = [-1, *map(int, indices), self.num_frames]
        if any(after <= before for before, after in itertools.pairwise(wanted)):
            raise ValueError(f"{self.name}: frame numbers must ascend from 0 to {self.num_frames - 1}, got {indices}")
        with self._clock.reading():
            for picture in self._one_pass(wanted[1:-1], converted):
                yield picture
                self._clock.start()  # what the caller did with it took none of the video's time

    def _one_pass(self, wanted: list[int], converted: Callable[[av.VideoFrame], Any]) -> Iterator[Any]:
        given = 0
        if self._table is not None:
            number_at = {self._packets.pts[self._table[number]]: number for number in wanted}
            try:
                for frame, is_damaged in self._decode_parts([self._table[number] for number in wanted]):
                    number = number_at.get(frame.pts)
                    if is_damaged or (number is not None and number != wanted[given]):
                        break
                    if number is not None:
                        yield converted(frame)
                        given += 1
                        if given == len(wanted):
                            return
            except av.error.FFmpegError:
                pass  # only decoding everything can tell
        if given < len(wanted):
            yield from self._count_up_to(wanted[given:], converted)

    def _seek_and_decode(self, wanted: list[int], short_side: int | None) -> np.ndarray | None:
        """The wanted frames through the table, or None where only decoding everything can tell: no table, an error,
        or a frame that does not come out."""
        if self._table is None:
            return None
        row_at = {self._packets.pts[self._table[number]]: row for row, number in enumerate(wanted)}
        video = _Pictures(self.name, len(wanted), self._limits.bytes)
        try:
            for frame, is_damaged in self._decode_parts([self._table[number] for number in wanted]):
                if is_damaged:
                    return None
                row = row_at.pop(frame.pts, None)
                if row is not None:
                    video.put(row, self._to_rgb(frame, short_side))
        except av.error.FFmpegError:
            return None
        return None if row_at else video.frames_ThwC

    def _decode_parts(self, positions: list[int]) -> Iterator[tuple[av.VideoFrame, bool]]:
        """Frames from each key frame before a wanted packet up to that packet, and whether they are damaged."""
        context = self._fresh_decoder()
        if context.name in HIDE_ERRORS:
            context.options = {**context.options, "err_detect": "explode"}  # then only decoding everything can tell
        skipped = "DEFAULT" if context.name in NEVER_SKIPPED else "NONREF"
        spans = sorted((self._packets.key_before(position), position) for position in positions)
        wanted = set(positions)
        packets, at, key = iter(()), 0, None
        for start, stop in spans:
            if stop < at:
                continue
            if key is None or start > at:  # otherwise the decoder is on its way there already
                if key is not None:
                    yield from self._flush(context, key)
                context.flush_buffers()
                if key is not None and start - at <= _NEAR:
                    next(itertools.islice(packets, start - at, start - at), None)  # passes over so many
                else:
                    packets = self._packets.read(start)
                at, key = start, self._packets.pts[start]
            for packet in packets:
                self._clock.check()
                context.skip_frame = "DEFAULT" if at in wanted else skipped
                for frame in context.decode(packet):
                    yield frame, self._is_damaged(frame, key)
                at += 1
                if at > stop:
                    break
        yield from self._flush(context, key)

    def _flush(self, context, key: int) -> Iterator[tuple[av.VideoFrame, bool]]:
        context.skip_frame = "DEFAULT"
        for frame in context.decode(None):
            yield frame, self._is_damaged(frame, key)

    @staticmethod
    def _is_damaged(frame: av.VideoFrame, key: int) -> bool:
        """Whether a frame, or what it is predicted from, is damaged, as far as FFmpeg notices."""
        if frame.pts == key and not (frame.key_frame or frame.pict_type == PictureType.I):
            return True  # damaged containers may call anything a key frame
        # what is shown before the key frame that decoding began with lacks its references and is not wanted
        return frame.is_corrupt and (frame.pts is None or frame.pts >= key)

    def _decode_up_to(self, wanted: list[int], short_side: int | None) -> np.ndarray:
        """The wanted frames by decoding everything before them and counting."""
        video = _Pictures(self.name, len(wanted), self._limits.bytes)
        for row, frame_hwC in enumerate(self._count_up_to(wanted, lambda frame: self._to_rgb(frame, short_side))):
            video.put(row, frame_hwC)
        return video.frames_ThwC

    def _count_up_to(self, wanted: list[int], converted: Callable[[av.VideoFrame], Any]) -> Iterator[Any]:
        row, number = 0, -1
        for number, frame in enumerate(self._decode_all()):
            if frame.is_corrupt:  # later frames may be predicted from it, and FFmpeg does not mark those
                raise VideoDecodeError(f"{self.name}: frame {number} is damaged")
            if number == wanted[row]:
                try:
                    picture = converted(frame)
                except av.error.FFmpegError as error:
                    raise VideoDecodeError(
                        f"{self.name}: frame {number} cannot be converted ({error.strerror})"
                    ) from error
                yield picture
                row += 1
                if row == len(wanted):
                    return
        raise VideoDecodeError(
            f"{self.name}: the file holds {self.num_frames} frames but the decoder ended after {number + 1}, "
            f"before frame {wanted[row]}; the file is probably damaged"
        )

    def _open(self) -> AbstractContextManager[av.container.InputContainer]:
        return open_media(self._source, self._clock, self._limits)

    def _fresh_decoder(self) -> av.VideoCodecContext:
        """A decoder that has decoded nothing yet: flushing leaves some with pictures of what they decoded before."""
        if self._has_fresh_decoder:
            self._has_fresh_decoder = False
            return self._stream.codec_context
        with self._open() as container:
            return video_stream(container, self.name, self._limits).codec_context

    def _decode_all(self) -> Iterator[av.VideoFrame]:
        context = self._fresh_decoder()
        try:
            for packet in self._packets.read():
                self._clock.check()
                yield from context.decode(packet)
            yield from context.decode(None)
        except av.error.FFmpegError as error:
            raise VideoDecodeError(f"{self.name}: cannot be decoded ({error.strerror})") from error

    def _to_rgb(self, frame: av.VideoFrame, short_side: int | None) -> np.ndarray:
        size = {}
        if short_side is not None:
            short = min(frame.width, frame.height)
            width, height = (round(side * short_side / short) for side in (frame.width, frame.height))
            size = {"width": width, "height": height, "interpolation": "BICUBIC"}
        rgb = self._reformatter.reformat(frame, format="rgb24", threads=1, **size)
        plane = rgb.planes[0]
        rows = np.frombuffer(plane, np.uint8, count=rgb.height * plane.line_size).reshape(rgb.height, plane.line_size)
        frame_hwC = rows[:, : rgb.width * 3].reshape(rgb.height, rgb.width, 3)  # rows are padded
        return np.rot90(frame_hwC, round(frame.rotation / 90))  # both count counter-clockwise


def probe(source: VideoSource) -> VideoInfo:
    """Length, size, rate and codec of a video; its first frame is decoded to know that this works.

    Args:
        source: path, the bytes of a file, or a seekable binary file object.

    Raises:
        VideoDecodeError: see `VideoReader`.
    """
    with VideoReader(source) as video:
        height, width = video.frames([0]).shape[-2:]
        return VideoInfo(num_frames=video.num_frames, height=height, width=width, fps=video.fps, codec=video.codec)


def decode_frames(source: VideoSource, indices: Sequence[int]) -> torch.Tensor:
    """The frames of these numbers: open, decode up to the last of them, close.

    Args:
        source: path, the bytes of a file, or a seekable binary file object.
        indices: frame numbers from 0, in any order, repeats allowed.

    Returns:
        uint8 RGB of shape (T, C, h, w), bit-identical to decoding everything and indexing it.

    Raises:
        VideoDecodeError: see `VideoReader` and `VideoReader.frames`.
    """
    with VideoReader(source) as video:
        return video.frames(indices)


def name_of(source: VideoSource) -> str:
    """What to call a source in messages."""
    if isinstance(source, bytes):
        return f"<video of {len(source)} bytes>"
    if isinstance(source, str | os.PathLike):
        return os.fspath(source)
    return str(getattr(source, "name", source))


class _Pictures:
    """Frames of one size, (T, h, w, C) uint8, with memory taken for all of them when the first one comes."""

    def __init__(self, name: str, num_frames: int, max_bytes: int):
        self._name, self._num_frames, self._max_bytes = name, num_frames, max_bytes
        self.frames_ThwC: np.ndarray | None = None

    def put(self, row: int, frame_hwC: np.ndarray) -> None:
        if self.frames_ThwC is None:
            if (size := self._num_frames * frame_hwC.nbytes) > self._max_bytes:
                raise VideoDecodeError(
                    f"{self._name}: {self._num_frames} frames of {frame_hwC.shape[1]} x {frame_hwC.shape[0]} pixels "
                    f"take {size} bytes, at most {self._max_bytes} are allowed (ReadLimits.bytes); ask for fewer at a "
                    "time or for smaller ones"
                )
            self.frames_ThwC = np.empty((self._num_frames, *frame_hwC.shape), np.uint8)
        if frame_hwC.shape != self.frames_ThwC.shape[1:]:
            sizes = sorted({frame_hwC.shape[:2], self.frames_ThwC.shape[1:3]})
            raise VideoDecodeError(f"{self._name}: the frame size changes within the video: (height, width) {sizes}")
        self.frames_ThwC[row] = frame_hwC
