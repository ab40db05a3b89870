"""How a live source is opened: a camera of this machine, a server that streams, or a file that is read as it comes.

A user chooses the kind by what the source is called, and each kind allows what it needs and no more:

    0, /dev/video0              a camera of this machine
    rtsp://…, rtsps://…         FFmpeg opens the connections that the server names
    http://…, https://…         the answer to one request; FFmpeg gets its bytes and no connection
    anything else               a file, through the door of all videos (`media.py`)
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import av
import numpy as np
import torch
from huggingface_hub.utils import httpx

from .media import ByteStream, Clock, ReadLimits, VideoDecodeError, open_media, video_stream

Kind = Literal["camera", "rtsp", "http", "file"]

# What FFmpeg may take a live source for. None of them is a playlist (hls, dash, sdp), which names other addresses. mp4
# is missing too: its tables cannot be looked at before FFmpeg makes them.
LIVE_FORMATS = {
    "camera": ("v4l2",),
    "rtsp": ("rtsp",),
    "http": ("mpegts", "flv", "matroska", "mpjpeg", "mjpeg", "ogg", "nut", "ivf", "h264", "hevc"),
}

# Through which protocols FFmpeg may open connections for it. "file" is not among them. None: FFmpeg gets bytes.
LIVE_PROTOCOLS = {"camera": (), "rtsp": ("rtp", "srtp", "udp", "tcp", "tls"), "http": None}

# The time that passes between the first bytes and the first picture, in microseconds, where FFmpeg wants to see more.
_OPTIONS = {"analyzeduration": "1000000"}
_MORE_OPTIONS = {"rtsp": {"rtsp_flags": "prefer_tcp"}}

# Of a live source: how long there may be no picture until the source counts as broken.
LIVE_LIMITS = ReadLimits(seconds=10.0)


@dataclass(frozen=True)
class LiveSource:
    """What a user calls a source, and what kind that is.

    Args:
        name: number or path of a camera, URL, or path of a file.

    Raises:
        ValueError: a URL of another kind, such as `file://`.
    """

    name: str

    def __post_init__(self):
        scheme = re.match(r"([a-z][a-z0-9+.-]*)://", self.name, re.IGNORECASE)
        if scheme and scheme[1].lower() not in ("rtsp", "rtsps", "http", "https"):
            raise ValueError(
                f"{self.name}: {scheme[1]!r} is no kind of live source; there are rtsp://, rtsps://, http:// and "
                "https:// URLs, numbers of cameras (0) or their paths (/dev/video0), and paths of files"
            )

    @property
    def kind(self) -> Kind:
        if self.name.isdecimal() or re.fullmatch(r"/dev/(video|v4l/).*", self.name):
            return "camera"
        scheme = self.name.lower().partition("://")[0]
        return {"rtsp": "rtsp", "rtsps": "rtsp", "http": "http", "https": "http"}.get(scheme, "file")

    @property
    def is_live(self) -> bool:
        """Whether its pictures come when they come, and are lost where nobody takes them."""
        return self.kind != "file"


class HttpBytes(ByteStream):
    """The answer to one GET request, as it comes.

    Args:
        response: opened for streaming.
        clock: looked at in each read.
    """

    def __init__(self, response: httpx.Response, clock: Clock):
        self._chunks, self._rest, self._clock = response.iter_raw(), b"", clock
        # an answer that ends before its length is an error of httpx; where no length was said, nobody can tell
        self.ends_as_meant = "content-length" in response.headers

    def read(self, size: int) -> bytes:
        self._clock.check()
        if not self._rest:
            self._rest = next(self._chunks, b"")
        given, self._rest = self._rest[:size], self._rest[size:]
        return given


@contextmanager
def _opened(
    source: LiveSource, clock: Clock, limits: ReadLimits
) -> Iterator[tuple[av.container.InputContainer, HttpBytes | None]]:
    kind, name = source.kind, source.name
    if kind == "file":
        with open_media(name, clock, limits) as container:
            yield container, None
        return
    how = {"formats": LIVE_FORMATS[kind], "protocols": LIVE_PROTOCOLS[kind]}
    how["options"] = {**_OPTIONS, **_MORE_OPTIONS.get(kind, {})}
    if kind != "http":
        with open_media(f"/dev/video{name}" if name.isdecimal() else name, clock, limits, **how) as container:
            yield container, None
        return
    as_it_is = {"accept-encoding": "identity"}
    with httpx.stream("GET", name, headers=as_it_is, follow_redirects=True, timeout=limits.seconds) as response:
        if not response.is_success:
            raise VideoDecodeError(f"{name}: the server answers {response.status_code} {response.reason_phrase}")
        answer = HttpBytes(response, clock)
        with open_media(answer, clock, limits, **how) as container:
            yield container, answer


class Pictures:
    """The pictures of one connection to a source, each once, in the order in which they are shown.

    Args:
        source: see `LiveSource`.
        limits: `seconds` without a picture, and `pixels` of one.

    Attributes:
        num_damaged: packets that could not be decoded, and pictures that FFmpeg marks as damaged. They are left out.
    """

    def __init__(self, source: LiveSource, limits: ReadLimits):
        self._source, self._limits = source, limits
        self.num_damaged = 0

    def __iter__(self) -> Iterator[tuple[torch.Tensor, float | None]]:
        """
        Yields:
            uint8 RGB (C, h, w), and its time stamp in seconds where it has one.

        Raises:
            VideoDecodeError: the source cannot be opened, breaks, or gives no picture for `limits.seconds`. A file
                ends without it, and a server's answer of a promised length.
        """
        clock = Clock(self._source.name, self._limits.seconds)
        with clock.reading(), _opened(self._source, clock, self._limits) as (container, answer):
            stream = video_stream(container, self._source.name, self._limits)
            # where a file has no time stamps
            seconds_each = None if self._source.is_live or not stream.average_rate else float(1 / stream.average_rate)
            number = 0
            for packet in container.demux(stream):
                clock.check()
                for frame in self._decoded(packet):
                    stamp = frame.time
                    if stamp is None and seconds_each is not None:
                        stamp = number * seconds_each
                    yield _rgb(frame), stamp
                    number += 1
                    clock.start()  # what the caller did with it took none of the source's time
            if self._source.is_live and not (answer is not None and answer.ends_as_meant):
                raise VideoDecodeError(f"{self._source.name}: the stream has ended")

    def _decoded(self, packet: av.Packet) -> list[av.VideoFrame]:
        try:
            frames = packet.decode()
        except av.error.InvalidDataError:
            self.num_damaged += 1
            return []
        whole = [frame for frame in frames if not frame.is_corrupt]
        self.num_damaged += len(frames) - len(whole)
        return whole


def _rgb(frame: av.VideoFrame) -> torch.Tensor:
    frame_hwC = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
    return torch.from_numpy(np.ascontiguousarray(frame_hwC)).permute(2, 0, 1)
