"""Real video files, written by PyAV into temporary folders: each fixture is the function of its name."""

from collections.abc import Sequence
from fractions import Fraction
from itertools import cycle, islice
from pathlib import Path

import av
import numpy as np
import pytest


def _write_video(
    path: Path,
    *,
    num_frames: int = 20,
    height: int = 48,
    width: int = 64,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    rotation: int = 0,
    sound: bool = False,
    first_pts: int = 0,
    pts_step: Sequence[int] = (),
    container_options: dict[str, str] | None = None,
    title: str | None = None,
    **options: str,
) -> Path:
    """A video in which every frame differs; `options` go to the encoder."""
    if codec not in av.codecs_available:
        pytest.skip(f"this FFmpeg has no {codec}")
    rng = np.random.default_rng(0)
    backdrop_hwC = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options=container_options or {}) as container:
        container.metadata.update({"title": title} if title else {})
        stream = container.add_stream(codec, rate=10)
        stream.height, stream.width, stream.pix_fmt, stream.options = height, width, pix_fmt, options
        if rotation:
            if not hasattr(stream, "set_display_rotation"):
                pytest.skip("this PyAV cannot write rotation")
            stream.set_display_rotation(rotation)
        audio = container.add_stream("aac", rate=8000, layout="mono") if sound else None
        for number in range(num_frames):
            if audio is not None:
                noise = av.AudioFrame.from_ndarray(rng.normal(0, 0.1, (1, 800)).astype(np.float32), "fltp", "mono")
                noise.sample_rate, noise.pts = 8000, 800 * number
                container.mux(audio.encode(noise))
            frame_hwC = np.roll(backdrop_hwC, 3 * number, axis=1)
            frame_hwC[:8] = number * 255 // num_frames
            frame = av.VideoFrame.from_ndarray(frame_hwC, format="rgb24")
            if first_pts or pts_step:
                frame.time_base, frame.pts = Fraction(1, 10), first_pts + sum(islice(cycle(pts_step or (1,)), number))
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if audio is not None:
            container.mux(audio.encode())
    return path


def _write_audio(path: Path, *, cover_art: bool = False) -> Path:
    """Half a second of noise, with a picture on the sleeve or without."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000, layout="mono")
        picture = None
        if cover_art:
            picture = container.add_stream("mjpeg", rate=1)
            picture.height, picture.width, picture.pix_fmt = 16, 16, "yuvj420p"
            picture.disposition = av.stream.Disposition.attached_pic
        samples = np.random.default_rng(0).uniform(-0.1, 0.1, (1, 1024)).astype(np.float32)
        for number in range(4):
            frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 8000, 1024 * number
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if picture is not None:
            container.mux(picture.encode(av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), format="rgb24")))
            container.mux(picture.encode())
    return path


def _decode_all(path: Path) -> np.ndarray:
    """Every frame in PyAV's plainest way, (T, h, w, C): what the reader must agree with, bit for bit."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


@pytest.fixture(scope="session")
def write_video():
    return _write_video


@pytest.fixture(scope="session")
def write_audio():
    return _write_audio


@pytest.fixture(scope="session")
def decode_all():
    return _decode_all
