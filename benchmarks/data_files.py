"""The videos that the benchmarks of the data side read, made by PyAV: moving texture with a little noise."""

from pathlib import Path

import av
import numpy as np


def write_video(path: Path, *, codec: str, height: int, width: int, num_frames: int, seed: int = 0, **options) -> None:
    """One video at 30 frames a second; `options` go to the encoder."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (height // 8 + 2, width // 8 + 2, 3)).astype(np.float32)
    texture_HWC = np.kron(small, np.ones((8, 8, 1), np.float32))[:height, :width]
    noise_HWC = rng.normal(0, 4, (height, width, 3)).astype(np.float32)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=30)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        stream.options = {name.replace("_", "-"): str(value) for name, value in options.items()}
        for number in range(num_frames):
            frame_HWC = np.roll(texture_HWC, (number, 2 * number), (0, 1)) + np.roll(noise_HWC, 37 * number, 1)
            frame_HWC = frame_HWC.clip(0, 255).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame_HWC, format="rgb24")))
        container.mux(stream.encode())


def make_files(folder: Path) -> dict[str, Path]:
    """The files by name; what is there already is kept."""
    small, large = {"height": 240, "width": 320, "num_frames": 300}, {"height": 720, "width": 1280, "num_frames": 150}
    x264 = {"codec": "libx264", "preset": "veryfast", "keyint_min": 1, "sc_threshold": 0}
    wanted = {}
    for gop in (12, 48, 250):
        for b_frames in (0, 2):
            name = f"h264 {{}} gop{gop} b{b_frames}"
            wanted[name.format("240p")] = ("mp4", {**small, **x264, "g": gop, "bf": b_frames})
            wanted[name.format("720p")] = ("mp4", {**large, **x264, "g": gop, "bf": b_frames})
    hevc = {"codec": "libx265", "preset": "ultrafast", "x265_params": "log-level=none:keyint=48:bframes=2"}
    vp9 = {"codec": "libvpx-vp9", "deadline": "realtime", "cpu_used": 8, "g": 48}
    vp8 = {"codec": "libvpx", "deadline": "realtime", "cpu_used": 8, "g": 48, "auto_alt_ref": 0}
    wanted["hevc 240p"] = ("mp4", {**small, **hevc})
    wanted["vp9 240p"] = ("webm", {**small, **vp9})
    wanted["vp8 240x136"] = ("webm", {"height": 136, "width": 240, "num_frames": 100, **vp8})
    files = {}
    for name, (suffix, options) in wanted.items():
        files[name] = folder / f"{name.replace(' ', '_')}.{suffix}"
        if not files[name].exists():
            write_video(files[name], **options)
    return files
