"""Videos for the benchmarks of the data side, made by PyAV: a panning camera, moving things, a little noise."""

from pathlib import Path

import av
import numpy as np
from PIL import Image


def write_video(path: Path, *, codec: str, height: int, width: int, num_frames: int, seed: int = 0, **options) -> None:
    """One video at 30 frames a second; `options` go to the encoder."""
    rng = np.random.default_rng(seed)

    def texture(height, width, grain):
        coarse = rng.integers(0, 256, (height // grain + 1, width // grain + 1, 3)).astype(np.uint8)
        return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC), np.int16)

    backdrop_hwC = texture(height, width, 16)
    things = [texture(height // 3, width // 4, 6) for _ in range(4)]
    places, steps = rng.uniform(0, 1, (4, 2)), rng.uniform(-0.02, 0.02, (4, 2))
    noise_hwC = rng.normal(0, 3, (height, width, 3)).astype(np.int16)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=30)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        stream.options = {name.replace("_", "-"): str(value) for name, value in options.items()}
        for number in range(num_frames):
            frame_hwC = np.roll(backdrop_hwC, (number // 2, number), (0, 1))  # the camera pans,
            for thing_hwC, place, step in zip(things, places, steps, strict=True):  # things move before it,
                y, x = (np.abs((place + number * step) % 2 - 1) * (height * 2 // 3, width * 3 // 4)).astype(int)
                frame_hwC[y : y + height // 3, x : x + width // 4] = thing_hwC
            frame_hwC = frame_hwC + rng.permuted(noise_hwC, axis=1)  # and the sensor is noisy
            frame_hwC = frame_hwC.clip(0, 255).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame_hwC, format="rgb24")))
        container.mux(stream.encode())


def make_files(folder: Path) -> dict[str, Path]:
    """The files by name; what is there already is kept."""
    small, large = {"height": 240, "width": 320, "num_frames": 300}, {"height": 720, "width": 1280, "num_frames": 300}
    x264 = {"codec": "libx264", "keyint_min": 1, "sc_threshold": 0}
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
