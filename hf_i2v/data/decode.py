"""Frames of a video file, by their numbers, through PyAV.

The packets of the file are demuxed once and kept: they say how many frames there really are (headers lie or are
silent), and they are what gets decoded. Frame `i` is the `i`-th picture the decoder shows, in presentation order.

Shape suffixes: T frame, C channel, H height, W width.
"""

import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

import av
import numpy as np
import torch
from av.stream import Disposition
from av.video.reformatter import VideoReformatter

VideoSource = str | os.PathLike | bytes | BinaryIO

# One packet of these may hold no picture to show (VP8's alternate reference frames), so packets cannot be counted.
_CODECS_WITH_HIDDEN_FRAMES = {"vp8"}


class VideoDecodeError(ValueError):
    """A video that cannot be read as asked; the message names the file and the reason."""


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
        frames_TCHW = video.frames([0, video.num_frames - 1])
    ```

    The compressed packets of the video stream are held in memory while it is open.

    Args:
        source: path, the bytes of a file, or a seekable binary file object (read from its start, left open).

    Raises:
        VideoDecodeError: no such file, an empty file, not a video, no video stream (cover art is none), zero frames.
    """

    def __init__(self, source: VideoSource):
        self.name = _name_of(source)
        self._reformatter = VideoReformatter()
        self._container = _open(source, self.name)
        try:
            self._stream = self._find_stream()
            self._packets = self._demux()
            self.num_frames = self._count_frames()
            if self.num_frames == 0:
                raise VideoDecodeError(f"{self.name}: the video stream has zero frames")
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "VideoReader":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def close(self) -> None:
        """Close the file (not a file object that was handed in)."""
        self._packets = []
        self._container.close()

    @property
    def fps(self) -> float | None:
        """Average frames per second, or None where the container does not say."""
        rate = self._stream.average_rate
        return float(rate) if rate else None

    @property
    def codec(self) -> str:
        """FFmpeg's name of the decoder."""
        return self._stream.codec_context.name

    def frames(self, indices: Sequence[int]) -> torch.Tensor:
        """Decode the frames of these numbers, up to the last of them and no further.

        Args:
            indices: frame numbers from 0, in any order, repeats allowed.

        Returns:
            uint8 RGB of shape (T, C, H, W) in the order of `indices`. It is stored with the channels last, which is
            how it was decoded and what resizing likes best; call `.contiguous()` for the other layout.

        Raises:
            VideoDecodeError: an index out of range, damaged data before the last wanted frame, a frame size that
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

        wanted = sorted(set(indices))
        frames_HWC: list[np.ndarray] = []
        for number, frame in enumerate(self._decode()):
            if number == wanted[len(frames_HWC)]:
                if frame.is_corrupt:
                    raise VideoDecodeError(f"{self.name}: frame {number} is damaged")
                frames_HWC.append(self._to_rgb(frame))
                if len(frames_HWC) == len(wanted):
                    break
        else:
            raise VideoDecodeError(
                f"{self.name}: the file holds {self.num_frames} frames but the decoder ended after {number + 1}, "
                f"before frame {wanted[len(frames_HWC)]}; the file is probably damaged"
            )
        if len({frame_HWC.shape for frame_HWC in frames_HWC}) > 1:
            sizes = sorted({frame_HWC.shape[:2] for frame_HWC in frames_HWC})
            raise VideoDecodeError(f"{self.name}: the frame size changes within the video: (height, width) {sizes}")

        video_THWC = torch.from_numpy(np.stack(frames_HWC))
        if indices != wanted:
            place = {index: row for row, index in enumerate(wanted)}
            video_THWC = video_THWC[[place[index] for index in indices]]
        return video_THWC.permute(0, 3, 1, 2)

    def _find_stream(self) -> av.VideoStream:
        container_format = self._container.format.name
        # FFmpeg reads plain text as ANSI art and a picture as a film of one frame.
        if container_format in ("tty", "image2") or container_format.endswith("_pipe"):
            raise VideoDecodeError(f"{self.name}: not a video file (FFmpeg takes it for {container_format!r})")
        streams = [s for s in self._container.streams.video if not s.disposition & Disposition.attached_pic]
        if not streams:
            found = ", ".join(sorted({s.type for s in self._container.streams})) or "none"
            raise VideoDecodeError(f"{self.name}: no video stream (streams found: {found}; cover art does not count)")
        if streams[0].codec_context is None:
            raise VideoDecodeError(f"{self.name}: FFmpeg has no decoder for its video stream")
        streams[0].codec_context.thread_count = 1  # data loading parallelises over files, not inside one
        return streams[0]

    def _demux(self) -> list[av.Packet]:
        try:
            packets = [packet for packet in self._container.demux(self._stream) if packet.size]
        except av.error.FFmpegError as error:
            raise VideoDecodeError(f"{self.name}: cannot be read ({error.strerror})") from error
        while packets and packets[-1].is_corrupt:  # the torn packet at the end of a truncated file
            packets.pop()
        return packets

    def _count_frames(self) -> int:
        shown = [packet for packet in self._packets if not packet.is_discard]  # edit lists hide frames
        times = {packet.pts for packet in shown}
        if self.codec in _CODECS_WITH_HIDDEN_FRAMES or None in times or len(times) < len(shown):
            return sum(1 for _ in self._decode())  # packets are no frames here: count what comes out
        return len(shown)

    def _decode(self) -> Iterator[av.VideoFrame]:
        context = self._stream.codec_context
        context.flush_buffers()  # start afresh, this may not be the first pass
        try:
            for packet in self._packets:
                yield from context.decode(packet)
            yield from context.decode(None)
        except av.error.FFmpegError as error:
            raise VideoDecodeError(f"{self.name}: cannot be decoded ({error.strerror})") from error

    def _to_rgb(self, frame: av.VideoFrame) -> np.ndarray:
        rgb = self._reformatter.reformat(frame, format="rgb24", threads=1)
        plane = rgb.planes[0]
        rows = np.frombuffer(plane, np.uint8, count=rgb.height * plane.line_size).reshape(rgb.height, plane.line_size)
        frame_HWC = rows[:, : rgb.width * 3].reshape(rgb.height, rgb.width, 3)  # rows are padded
        return np.rot90(frame_HWC, round(frame.rotation / 90))  # both count counter-clockwise


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
        uint8 RGB of shape (T, C, H, W), bit-identical to decoding everything and indexing it.

    Raises:
        VideoDecodeError: see `VideoReader` and `VideoReader.frames`.
    """
    with VideoReader(source) as video:
        return video.frames(indices)


def _name_of(source: VideoSource) -> str:
    if isinstance(source, bytes):
        return f"<video of {len(source)} bytes>"
    if isinstance(source, str | os.PathLike):
        return os.fspath(source)
    return str(getattr(source, "name", source))


def _open(source: VideoSource, name: str) -> av.container.InputContainer:
    if isinstance(source, str | os.PathLike):
        if not os.path.exists(source):
            raise VideoDecodeError(f"{name}: no such file")
        size = os.path.getsize(source)
        file = os.path.abspath(source)  # "a:b.mp4" would be taken for a protocol
    elif isinstance(source, bytes):
        size = len(source)
        file = io.BytesIO(source)
    else:
        size = source.seek(0, os.SEEK_END)
        file = source
        file.seek(0)
    if size == 0:
        raise VideoDecodeError(f"{name}: the file is empty (0 bytes)")
    try:
        return av.open(file)
    except (av.error.FFmpegError, OSError) as error:
        raise VideoDecodeError(f"{name}: not a video file, or a damaged one ({error.strerror})") from error
