"""The one door for foreign video files, and what reading one of them may take.

A "video" may be a playlist that names other files, may promise more than it holds, and may never end. Therefore FFmpeg
gets no path but a file object: it reads the bytes of this one file and opens no other. Each read looks at the clock.
"""

import errno
import gc
import io
import os
import stat
import struct
import time
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

import av
from av.stream import Discard, Disposition

VideoSource = str | os.PathLike | bytes | BinaryIO

# FFmpeg's names of the containers that a video may come in. All of them hold their pictures themselves. Playlists
# (concat, hls, dash, sdp), devices, numbered pictures, pictures and text are not among them.
VIDEO_FORMATS = (
    *("mov", "matroska", "avi", "asf", "mpeg", "mpegts", "flv", "ogg", "nut", "mxf", "gxf", "dv", "wtv", "rm", "ivf"),
    *("swf", "nuv", "gif", "apng", "yuv4mpegpipe"),
    *("h264", "hevc", "vvc", "av1", "obu", "mpegvideo", "m4v", "h261", "h263", "mjpeg", "vc1", "dirac", "dnxhd"),
)

# mp4 boxes that FFmpeg looks into for the tables of packets ("free" may hide a moov)
_BOXES_OF_BOXES = frozenset(
    b"moov trak mdia minf stbl moof traf mvex edts dinf sinf wave udta cmov free hoov skip".split()
)
_MAX_INFLATED = 2**26

# A forked worker has no threads of its parent. Where its garbage collector closes a decoder that the parent left in a
# cycle, FFmpeg waits for the decoder's threads for ever; so it leaves alone what it did not make.
os.register_at_fork(after_in_child=gc.freeze)

_BEFORE_19 = int(av.__version__.split(".")[0]) < 19


class VideoDecodeError(ValueError):
    """A video that cannot be read as asked; the message names the file and the reason."""


@dataclass(frozen=True)
class ReadLimits:
    """What reading one video may take; a video that takes more is a bad one. The defaults fit films of 8K and three
    hours.

    Attributes:
        seconds: for opening it, and for each call of `frames`.
        packets: compressed pictures in the file.
        pixels: of a picture.
        bytes: that one call of `frames` gives, or that is fetched from a URL.
        held: bytes of compressed pictures that are kept in memory; a file with more is no bad one, but is read again
            where its frames are wanted.
    """

    seconds: float = 300.0
    packets: int = 2_000_000
    pixels: int = 36_000_000
    bytes: int = 4 * 2**30
    held: int = 100 * 2**20

    def __post_init__(self):
        for name, value in vars(self).items():
            if not value > 0:
                raise ValueError(f"{name} ({value}) must be above 0")


DEFAULT_LIMITS = ReadLimits()


class Clock:
    """The time that reading may take, looked at wherever reading can go on for long.

    Args:
        name: of the video.
        seconds: from `start` on.
    """

    def __init__(self, name: str, seconds: float):
        self.name, self.seconds = name, seconds
        self.start()

    def start(self) -> None:
        """Begin to count anew."""
        self._end = time.monotonic() + self.seconds

    def is_up(self) -> bool:
        return time.monotonic() > self._end

    def check(self) -> None:
        """Raise VideoDecodeError when the time is up."""
        if self.is_up():
            raise VideoDecodeError(
                f"{self.name}: reading it takes longer than the {self.seconds:g} seconds that are allowed "
                "(ReadLimits.seconds, --video_timeout)"
            )

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Start the clock; whatever is raised over foreign bytes becomes a VideoDecodeError with its cause."""
        self.start()
        try:
            yield
        except VideoDecodeError:
            raise
        except Exception as error:
            self.check()
            reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
            raise VideoDecodeError(f"{self.name}: cannot be read ({reason})") from error


class MediaFile:
    """What FFmpeg reads from: the bytes of one file.

    Args:
        source: path, the bytes of a file, or a seekable binary file object (read from its start, left open).
        clock: looked at in each read.

    Raises:
        VideoDecodeError: no such file, none with bytes of its own (a pipe, a folder, a device), an empty file.
    """

    def __init__(self, source: VideoSource, clock: Clock):
        self._clock, self._is_own = clock, isinstance(source, str | os.PathLike)
        if self._is_own:
            self._file, self.name = open_regular(source, clock.name), os.path.abspath(source)
        else:
            self._file = io.BytesIO(source) if isinstance(source, bytes) else source
            self.name = str(getattr(source, "name", "<none>"))  # FFmpeg also looks at the suffix
        self.size = self._file.seek(0, os.SEEK_END)
        self._file.seek(0)
        if self.size == 0:
            self.close()
            raise VideoDecodeError(f"{clock.name}: the file is empty (0 bytes)")

    def read(self, size: int) -> bytes:
        """For FFmpeg the file ends when the time is up; who called FFmpeg then looks at the clock."""
        return b"" if self._clock.is_up() else self._file.read(size)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        try:
            return self._file.seek(offset, whence)
        except (OSError, ValueError):  # before the start: damaged files name such places
            return -errno.EINVAL

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        """Close the file, unless it was handed in open."""
        if self._is_own:
            self._file.close()


class ByteStream(ABC):
    """Bytes that can be read once, as they come, such as the answer of a server. FFmpeg gets nothing else of it. Its
    containers must not be those that FFmpeg reads by tables (mp4), for nobody can look at these first."""

    @abstractmethod
    def read(self, size: int) -> bytes:
        """At most so many bytes; none at the end."""


def open_regular(path: str | os.PathLike, name: str) -> BinaryIO:
    """A file, for reading. One that has no bytes of its own is refused: a pipe would be waited for without end.

    Raises:
        VideoDecodeError: see above, or it cannot be opened.
    """
    try:
        file = open(path, "rb", buffering=0, opener=_open_without_waiting)  # noqa: SIM115
    except FileNotFoundError as error:
        raise VideoDecodeError(f"{name}: no such file") from error
    except IsADirectoryError as error:
        raise VideoDecodeError(f"{name}: not a video file but a folder") from error
    except (OSError, ValueError) as error:  # ValueError: a path with a zero in it
        raise VideoDecodeError(f"{name}: cannot be opened ({error})") from error
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise VideoDecodeError(f"{name}: not a video file but a pipe, a socket or a device")
    return file


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


@contextmanager
def open_media(
    source: VideoSource | ByteStream,
    clock: Clock,
    limits: ReadLimits,
    *,
    formats: Sequence[str] = VIDEO_FORMATS,
    protocols: Sequence[str] | None = None,
    options: Mapping[str, str] | None = None,
) -> Iterator[av.container.InputContainer]:
    """A foreign video, opened by FFmpeg; nothing else in this package lets FFmpeg open one.

    Args:
        source: see `MediaFile`; or bytes as they come; with `protocols`, what FFmpeg shall open itself.
        clock: already started.
        limits: of these, `packets` is checked before FFmpeg makes its tables, and `pixels` before it takes a picture.
        formats: containers that FFmpeg may take it for; a single one is taken without looking.
        protocols: through which FFmpeg may open files and connections, for a source that needs several, or none for a
            device. Whoever names them decides to trust the source.
        options: more of FFmpeg's options.

    Raises:
        VideoDecodeError: see `MediaFile`; not a video, another container, more than the limits allow.
    """
    is_file = protocols is None and not isinstance(source, ByteStream)
    file = MediaFile(source, clock) if is_file else source
    try:
        if is_file:
            _check_tables(file, clock, limits.packets)
            file.seek(0)
        options = {
            **(options or {}),
            "format_whitelist": ",".join(formats),
            "protocol_whitelist": ",".join(protocols or ()),
            "max_pixels": str(limits.pixels),
        }
        forced = formats[0] if len(formats) == 1 else None
        titles = (
            {"metadata_errors": "ignore"} if _BEFORE_19 else {}
        )  # in any encoding; PyAV 19 takes them as they come
        try:
            container = av.open(file, "r", forced, options=options, timeout=limits.seconds, **titles)
        except (av.error.FFmpegError, OSError) as error:
            clock.check()
            if not is_file:
                reason = f"cannot be opened ({error.strerror}); expected one of the formats {', '.join(formats)}"
            elif error.errno == errno.EINVAL:  # FFmpeg's word for a format that is not on the whitelist
                reason = (
                    "not a video file, but a playlist, a picture, text or a container that VIDEO_FORMATS does not name"
                )
            else:
                reason = f"not a video file, or a damaged one ({error.strerror})"
            raise VideoDecodeError(f"{clock.name}: {reason}") from error
        with container:
            clock.check()
            yield container
    finally:
        if is_file:
            file.close()


def video_stream(container: av.container.InputContainer, name: str, limits: ReadLimits) -> av.VideoStream:
    """The video of an open file, set up for decoding; its sound and subtitles are passed over from now on.

    Raises:
        VideoDecodeError: no video stream (cover art is none), no decoder for it, larger pictures than allowed.
    """
    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not streams:
        found = ", ".join(sorted({s.type for s in container.streams})) or "none"
        raise VideoDecodeError(f"{name}: no video stream (streams found: {found}; cover art does not count)")
    context = streams[0].codec_context
    if context is None:
        raise VideoDecodeError(f"{name}: FFmpeg has no decoder for its video stream")
    if context.width * context.height > limits.pixels:
        raise VideoDecodeError(
            f"{name}: pictures of {context.width} x {context.height} pixels, at most {limits.pixels} pixels are "
            "allowed (ReadLimits.pixels)"
        )
    for stream in container.streams:
        if stream is not streams[0]:
            stream.discard = Discard.all
    context.thread_count = 1  # data loading parallelises over files, not inside one
    context.options = {"max_pixels": str(limits.pixels)}  # the size may change within the video
    return streams[0]


def _check_tables(file: MediaFile, clock: Clock, max_packets: int) -> None:
    """An mp4 of 2 kB can promise 10⁹ packets, and FFmpeg takes 77 bytes for each before anyone can ask."""
    promised = _promised_packets(file, file.size)
    clock.check()
    if promised > max_packets:
        raise VideoDecodeError(
            f"{clock.name}: it says that it has {promised} packets, at most {max_packets} are allowed "
            "(ReadLimits.packets)"
        )


def _promised_packets(file: Any, size: int) -> int:
    promised, track = 0, _Track()
    for kind, start, stop in _boxes(file, 0, size):
        file.seek(start)
        if kind == b"trak":
            promised, track = promised + track.packets(), _Track()
        elif kind == b"hdlr":
            track.handlers.add(file.read(12)[8:])
        elif kind == b"stts":
            entries, _, duration = _numbers(file, 4, 3)
            track.durations.append((entries, duration))
        elif kind in (b"stsz", b"stz2"):
            track.samples += _numbers(file, 8, 1)[0]
        elif kind == b"trun":
            promised += _numbers(file, 4, 1)[0]
        elif kind == b"cmvd":
            inflated = zlib.decompressobj().decompress(file.read(stop - start)[4:], _MAX_INFLATED)
            promised += _promised_packets(io.BytesIO(inflated), len(inflated))
    return promised + track.packets()


class _Track:
    """What the tables of an mp4's track say."""

    def __init__(self):
        self.handlers: set[bytes] = set()
        self.durations: list[tuple[int, int]] = []
        self.samples = 0

    def packets(self) -> int:
        # uncompressed sound counts each sample; FFmpeg keeps one entry for each chunk of it
        is_sound = self.handlers - {b"url ", b"alis"} == {b"soun"} and self.durations == [(1, 1)]
        return 0 if is_sound else self.samples


def _numbers(file: Any, skip: int, count: int) -> tuple[int, ...]:
    return struct.unpack(f">{count}I", file.read(skip + 4 * count)[skip:].ljust(4 * count, b"\0"))


def _boxes(file: Any, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """(kind, start, end of the content) of every mp4 box at every depth; of other files nothing that matters."""
    while start + 8 <= end:
        file.seek(start)
        if len(head := file.read(16)) < 8:
            return
        (size, kind), length = struct.unpack(">I4s", head[:8]), 8
        if size == 1:
            size, length = int.from_bytes(head[8:], "big"), 16
        elif size == 0:
            size = end - start
        if size < length:
            return
        stop = min(start + size, end)
        yield kind, start + length, stop
        if kind in _BOXES_OF_BOXES:
            yield from _boxes(file, start + length, stop)
        start = stop
