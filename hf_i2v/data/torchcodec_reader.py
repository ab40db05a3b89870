"""torchcodec as another decoder of videos, where it and the FFmpeg that it needs are installed."""

from collections.abc import Sequence

import torch

from .decode import VideoDecodeError, VideoReader, VideoSource, name_of


class TorchcodecReader:
    """Reads like a `VideoReader`; `VideoClips(backend="torchcodec")` uses it. It may number frames otherwise where
    files are odd (edit lists, missing time stamps), and it applies no check for damage beyond torchcodec's own.

    Args:
        source: path, or the bytes of a file.
        name: what to call it in messages; default its path.

    Raises:
        ImportError: torchcodec is not installed, or does not find FFmpeg.
        VideoDecodeError: the file cannot be read.
    """

    def __init__(self, source: VideoSource, *, name: str | None = None):
        try:
            from torchcodec.decoders import VideoDecoder
        except (ImportError, RuntimeError, OSError) as error:
            raise ImportError(
                f"the backend 'torchcodec' needs torchcodec and FFmpeg ({error}); install both or use 'pyav'"
            ) from error
        self.name = name or name_of(source)
        self._source = source if isinstance(source, bytes) else str(source)
        self._decoder = self._called(VideoDecoder, self._source, num_ffmpeg_threads=1, seek_mode="exact")
        self.num_frames = len(self._decoder)
        if self.num_frames == 0:
            raise VideoDecodeError(f"{self.name}: the video stream has zero frames")

    def __enter__(self) -> "TorchcodecReader":
        return self

    def __exit__(self, *exception) -> None:
        self._decoder = None

    def times(self) -> list[float]:
        """When each frame is shown, in seconds from the first: by the packets' time stamps, which torchcodec does not
        give; it tells of times only with pixels, and is asked where its frames are not those of the packets."""
        try:
            with VideoReader(self._source, name=self.name) as video:
                if video.num_frames == self.num_frames:
                    return video.times()
        except VideoDecodeError:
            pass  # torchcodec's FFmpeg is another one
        frames = self._called(self._decoder.get_frames_at, list(range(self.num_frames)))
        return (frames.pts_seconds - frames.pts_seconds[0]).tolist()

    def frames(self, indices: Sequence[int]) -> torch.Tensor:
        """The frames of these numbers, uint8 RGB (T, C, H, W).

        Raises:
            VideoDecodeError: an index out of range, damaged data.
        """
        return self._called(self._decoder.get_frames_at, [int(index) for index in indices]).data

    def _called(self, function, *args, **kwargs):
        try:
            return function(*args, **kwargs)
        except (RuntimeError, ValueError, IndexError) as error:
            raise VideoDecodeError(f"{self.name}: torchcodec cannot read it ({error})") from error
