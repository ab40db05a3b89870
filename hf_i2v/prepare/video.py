"""One video, prepared.

Frame `i` of the prepared video is frame `i` of the original, as the loader numbers frames, with the time stamp that it
has there to the tick. What takes a loader long is left out: pixels that a crop would shrink anyway, and long ways from
a key frame to a wanted frame.

    original    I p b b p b b p b b p b b p … 250       1280 x 720
    prepared    I b p b p b p … 16 … I b p b p           455 x 256
"""

import io
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from ..data import FrameFolder, ReadLimits, VideoDecodeError, VideoReader, open_video
from ..data.in_processes import watched
from ..whole_files import write_whole

KEY_FRAME_EVERY = 16
FOLDER_FPS = 30  # of folders of pictures, which say no times

_COLOURS = ("colorspace", "color_range", "color_primaries", "color_trc")
_SAMPLE = 48  # frames that stand for a video
_STEP = 32  # frames that may take twice the time-out


@dataclass(frozen=True)
class Form:
    """What prepared videos are like.

    Attributes:
        short_side: pixels of the shorter side, an even number; a smaller video keeps its size. An odd last row or
            column is cut off, for the encoder takes pairs.
        crf: x264's measure of quality, from 0, lossless, to 51.
    """

    short_side: int = 256
    crf: int = 18

    def __post_init__(self):
        if self.short_side < 2 or self.short_side % 2:
            raise ValueError(f"short_side ({self.short_side}) must be an even number of pixels from 2 on, e.g. 256")
        if not 0 <= self.crf <= 51:
            raise ValueError(f"crf ({self.crf}) must be from 0 (lossless) to 51; 18 to 23 is usual")


@dataclass(frozen=True)
class Sample:
    """What a few frames of a video say of all: bytes that it will take, and seconds."""

    bytes: float
    seconds: float


def prepare_video(row: dict[str, Any], path: Path, form: Form, seconds: float) -> str | None:
    """Write the video of a row of a data set; it is whole, or not there.

    Args:
        row: see `open_video`.
        path: of the prepared video.
        form: what it is like.
        seconds: that one step of reading it may take.

    Returns:
        None, or why the video cannot be read.

    Raises:
        OSError: the file cannot be written.
    """
    limits = ReadLimits(seconds=seconds)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with watched(seconds) as watch, open_video(row, limits=limits) as video:
            ticks, tick = _ticks(video)

            def write(beside: Path) -> None:
                try:
                    _encode(_pictures(video, range(len(ticks)), form, watch), ticks, tick, str(beside), form)
                    _check_times(beside, ticks, tick, limits)
                except Exception:
                    beside.unlink(missing_ok=True)
                    raise

            write_whole(path, write)
    except VideoDecodeError as error:
        return str(error)
    except OSError as error:
        raise OSError(error.errno, f"{path} cannot be written ({error.strerror})") from error
    except Exception as error:  # the others go on, whatever a file makes a library do
        return f"{row['video']['path']}: {type(error).__name__}: {error}"
    return None


def sample_video(row: dict[str, Any], form: Form, seconds: float) -> Sample | None:
    """What preparing the video will take, from a few frames a third of the way in; None if it cannot be read."""
    began = time.perf_counter()
    try:
        with watched(seconds) as watch, open_video(row, limits=ReadLimits(seconds=seconds)) as video:
            ticks, tick = _ticks(video)
            opened = time.perf_counter() - began
            start = min(len(ticks) // 3, max(0, len(ticks) - _SAMPLE))
            numbers = range(start, min(start + _SAMPLE, len(ticks)))
            pictures = _pictures(video, numbers, form, watch)
            first = next(pictures)  # the way from a key frame to it is not one of each frame
            began = time.perf_counter()
            file, shown = io.BytesIO(), [ticks[number] - ticks[start] for number in numbers]
            _encode((first if number == start else next(pictures) for number in numbers), shown, tick, file, form)
            a_frame = (time.perf_counter() - began) / len(numbers)
    except Exception:  # whatever it is, preparing the video will say it
        return None
    return Sample(len(file.getvalue()) / len(numbers) * len(ticks), opened + a_frame * len(ticks))


def _ticks(video: VideoReader | FrameFolder) -> tuple[list[int], Fraction]:
    if isinstance(video, FrameFolder):
        return list(range(video.num_frames)), Fraction(1, FOLDER_FPS)
    return video.ticks()


def _pictures(video: VideoReader | FrameFolder, numbers: Sequence[int], form: Form, watch) -> Iterator[av.VideoFrame]:
    """The frames of these numbers: scaled down where they are larger, upright, with even sides. The colours stay in
    YUV, for each way to RGB and back would make them darker."""
    if isinstance(video, FrameFolder):
        frames_hwC = (video.frames([number])[0].permute(1, 2, 0).contiguous().numpy() for number in numbers)
        frames = (av.VideoFrame.from_ndarray(frame_hwC, format="rgb24") for frame_hwC in frames_hwC)
    else:
        frames = video.pictures(numbers)
    reformatter, size = VideoReformatter(), None
    for count, frame in enumerate(frames):
        if count % _STEP == 0:
            watch()
        size = size or (frame.height, frame.width)
        if size != (frame.height, frame.width):
            sizes = [size, (frame.height, frame.width)]
            raise VideoDecodeError(f"{video.name}: the frame size changes within the video: (height, width) {sizes}")
        scale = min(1, form.short_side / min(frame.width, frame.height))
        width, height = (round(side * scale) for side in (frame.width, frame.height))
        scaled = reformatter.reformat(frame, width, height, "yuv420p", interpolation="BICUBIC", threads=1)
        picture = av.VideoFrame.from_ndarray(_upright(scaled, frame.rotation), format="yuv420p")
        for name in _COLOURS:
            setattr(picture, name, getattr(scaled, name))
        picture.colorspace = scaled.colorspace or 2  # 0 is RGB, which it no longer is; 2: not said
        yield picture


def _upright(frame: av.VideoFrame, rotation: int) -> np.ndarray:
    """The three planes, one behind the other, turned, without an odd last row or column; (3/2 h, w)."""
    planes = []
    for plane in frame.planes:
        rows = np.frombuffer(plane, np.uint8, count=plane.height * plane.line_size).reshape(plane.height, -1)
        halved = 2 if planes else 1  # colours have half the rows and columns
        height, width = (side // 2 * 2 // halved for side in (frame.height, frame.width))
        planes.append(np.rot90(rows[:height, :width], round(rotation / 90)))
    whole = np.concatenate([plane.ravel() for plane in planes])
    return whole.reshape(-1, planes[0].shape[1])


def encoder() -> str:
    """The encoder's name; where there is no x264, one whose every picture is a key frame."""
    return "libx264" if "libx264" in av.codecs_available else "mjpeg"


def _encode(
    pictures: Iterator[av.VideoFrame], ticks: Sequence[int], tick: Fraction, file: str | BinaryIO, form: Form
) -> None:
    """An mp4 of pictures of one size, each shown at its tick."""
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream(encoder())
        stream.codec_context.thread_count = 1  # the processes go through several videos at once
        stream.codec_context.time_base = tick
        if encoder() == "libx264":
            stream.pix_fmt = "yuv420p"
            every = {"g": str(KEY_FRAME_EVERY), "keyint_min": str(KEY_FRAME_EVERY), "sc_threshold": "0"}
            # fastdecode halves the time of reading, for a tenth more bytes; B-frames that are not wanted are skipped
            stream.options = {"crf": str(form.crf), "preset": "veryfast", "tune": "fastdecode", "bf": "3", **every}
        else:
            stream.pix_fmt = "yuvj420p"
            stream.options = {"flags": "+qscale", "global_quality": str(3 * 118)}
        for number, (at, frame) in enumerate(zip(ticks, pictures, strict=True)):
            if number == 0:
                stream.width, stream.height = frame.width, frame.height
                for name in _COLOURS if stream.pix_fmt == "yuv420p" else ():
                    setattr(stream.codec_context, name, getattr(frame, name))
            frame.pts, frame.time_base = at, tick
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _check_times(path: Path, ticks: Sequence[int], tick: Fraction, limits: ReadLimits) -> None:
    """Frames and times must be those of the original, whatever the encoder made of odd ones."""
    with VideoReader(path, limits=limits) as prepared:
        own_ticks, own_tick = prepared.ticks()
    if [at * own_tick for at in own_ticks] != [at * tick for at in ticks]:
        raise VideoDecodeError(
            f"{path}: with {len(own_ticks)} frames at other times than the {len(ticks)} of the original; its time "
            "stamps cannot be kept"
        )
