"""torchcodec as another decoder of videos, where it and the FFmpeg that it needs are installed."""

from collections.abc import Sequence

import torch

from .decode import VideoReader, name_of
from .media import (
    DEFAULT_LIMITS,
    Clock,
    MediaFile,
    ReadLimits,
    VideoDecodeError,
    VideoSource,
    open_media,
    video_stream,
)


class TorchcodecReader:
    """Reads like a `VideoReader`; `VideoClips(backend="torchcodec")` uses it. It may number frames otherwise where
    files are odd (edit lists, missing time stamps), and it applies no check for damage beyond torchcodec's own.

    The file passes the same door as with PyAV, whose FFmpeg looks at it first; torchcodec gets a file object.

    Args:
        source: path, or the bytes of a file.
        name: what to call it in messages; default its path.
        limits: what reading it may take; torchcodec is not stopped while it decodes what it has read.

    Raises:
        ImportError: torchcodec is not installed, or does not find FFmpeg.
        VideoDecodeError: the file cannot be read.
    """

    def __init__(self, source: VideoSource, *, name: str | None = None, limits: ReadLimits = DEFAULT_LIMITS):
        try:
            from torchcodec.decoders import VideoDecoder
        except (ImportError, RuntimeError, OSError) as error:
            raise ImportError(
                f"the backend 'torchcodec' needs torchcodec and FFmpeg ({error}); install both or use 'pyav'"
            ) from error
        self.name = name or name_of(source)
        self._source, self._limits = source, limits
        self._clock = Clock(self.name, limits.seconds)
        with self._clock.reading():
            with open_media(source, self._clock, limits) as container:
                context = video_stream(container, self.name, limits).codec_context
                self._frame_bytes = 3 * context.width * context.height
            self._file = MediaFile(source, self._clock)
        self._decoder = self._called(VideoDecoder, self._file, num_ffmpeg_threads=1, seek_mode="exact")
        self.num_frames = len(self._decoder)
        if self.num_frames == 0:
            raise VideoDecodeError(f"{self.name}: the video stream has zero frames")

    def __enter__(self) -> "TorchcodecReader":
        return self

    def __exit__(self, *exception) -> None:
        self._decoder = None
        self._file.close()

    def times(self) -> list[float]:
        """When each frame is shown, in seconds from the first: by the packets' time stamps, which torchcodec does not
        give; it tells of times only with pixels, and is asked where its frames are not those of the packets."""
        try:
            with VideoReader(self._source, name=self.name, limits=self._limits) as video:
                if video.num_frames == self.num_frames:
                    return video.times()
        except VideoDecodeError:
            pass  # torchcodec's FFmpeg is another one
        frames = self._called(self._decoder.get_frames_at, list(range(self.num_frames)))
        return (frames.pts_seconds - frames.pts_seconds[0]).tolist()

    def frames(self, indices: Sequence[int]) -> torch.Tensor:
        """The frames of these numbers, uint8 RGB (T, C, h, w).

        Raises:
            VideoDecodeError: an index out of range, damaged data.
        """
        if (size := len(indices) * self._frame_bytes) > self._limits.bytes:
            raise VideoDecodeError(
                f"{self.name}: {len(indices)} frames take {size} bytes, at most {self._limits.bytes} are allowed "
                "(ReadLimits.bytes)"
            )
        return self._called(self._decoder.get_frames_at, [int(index) for index in indices]).data

    def _called(self, function, *args, **kwargs):
        self._clock.start()
        try:
            return function(*args, **kwargs)
        except Exception as error:
            self._clock.check()
            raise VideoDecodeError(f"{self.name}: torchcodec cannot read it ({error})") from error
