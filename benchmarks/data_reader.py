"""VideoReader against decord 0.6 and against decoding everything with PyAV, one thread each.

    pip install decord==0.6.0
    python benchmarks/data_reader.py --folder videos --repeats 7

Ratios of medians of interleaved runs, in a rotating order: each opens the file, takes its length, and decodes the
frames of the sampling to RGB. Writes `data_reader.csv` beside this script. Peak memory is of a process of its own.
"""

import argparse
import csv
import functools
import statistics
import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np
import torch
from data_files import make_files

from hf_i2v.data import VideoReader, dense_indices, uniform_indices

SAMPLINGS = {f"uniform {n}": (n, None) for n in (8, 16, 32)} | {"8x8": (8, 8), "16x4": (16, 4), "32x2": (32, 2)}


def indices(num_video_frames: int, sampling: str) -> list[int]:
    num_frames, stride = SAMPLINGS[sampling]
    if stride is None:
        return uniform_indices(num_video_frames=num_video_frames, num_frames=num_frames)
    return dense_indices(num_video_frames=num_video_frames, num_frames=num_frames, frame_stride=stride)[0]


def ours(path: Path, sampling: str) -> np.ndarray:
    with VideoReader(path) as video:
        return video.frames(indices(video.num_frames, sampling)).permute(0, 2, 3, 1).numpy()


def decord(path: Path, sampling: str) -> np.ndarray:
    import decord

    video = decord.VideoReader(str(path), num_threads=1)
    return video.get_batch(indices(len(video), sampling)).asnumpy()


def decode_all(path: Path, sampling: str, *, convert_all: bool = True) -> np.ndarray:
    """The plainest way: every frame decoded and converted, then indexed; or only the wanted ones converted."""
    with av.open(str(path)) as container:
        container.streams.video[0].thread_count = 1
        frames = list(container.decode(video=0))
    wanted = indices(len(frames), sampling)
    if convert_all:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in frames])[wanted]
    return np.stack([frames[i].to_ndarray(format="rgb24") for i in wanted])


def interleaved(functions: list, repeats: int) -> list[float]:
    """Median seconds of each; the order rotates, so that none always comes first."""
    seconds = [[] for _ in functions]
    for repeat in range(repeats + 1):
        for place in range(len(functions)):
            which = (repeat + place) % len(functions)
            start = time.perf_counter()
            functions[which]()
            if repeat:  # the first round warms up
                seconds[which].append(time.perf_counter() - start)
    return [statistics.median(times) for times in seconds]


def peak_memory(path: Path) -> float:
    """MiB at most, while 8 frames are read, over what the process held before (Linux)."""

    def resident(what: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(what))

    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the imports
    ours(path, "uniform 8")
    return (resident("VmHWM") - before) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--folder", type=Path, required=True, help="for the videos, which are made there once")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--only", default="", help="files whose names hold this, the others keep their rows")
    parser.add_argument("--memory_of", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.memory_of is not None:
        print(peak_memory(args.memory_of))
        return
    args.folder.mkdir(parents=True, exist_ok=True)
    results = Path(__file__).with_suffix(".csv")
    rows = {}
    if results.exists():
        with open(results, newline="") as file:
            rows = {(row["file"], row["sampling"]): row for row in csv.DictReader(file)}
    for name, path in make_files(args.folder).items():
        if args.only in name:
            for sampling in SAMPLINGS:
                rows[name, sampling] = measure(name, path, sampling, args.repeats)
                print(*rows[name, sampling].values(), sep="\t", flush=True)
    with open(results, "w", newline="") as file:
        writer = csv.DictWriter(file, next(iter(rows.values())))
        writer.writeheader()
        writer.writerows(rows.values())


def measure(name: str, path: Path, sampling: str, repeats: int) -> dict[str, object]:
    runs = [ours, decord]
    if sampling == "uniform 8":
        runs += [decode_all, functools.partial(decode_all, convert_all=False)]
    own, *others = interleaved([functools.partial(run, path, sampling) for run in runs], repeats)
    ratios = [round(other / own, 2) for other in others] + [""] * (4 - len(runs))
    memory = ""
    if sampling == "uniform 8" and "720p" in name:
        command = [sys.executable, __file__, "--folder", str(path.parent), "--memory_of", str(path)]
        memory = round(float(subprocess.check_output(command)), 1)
    return {
        "file": name,
        "sampling": sampling,
        "ms": round(1000 * own, 1),
        "decord/ours": ratios[0],
        "decode all/ours": ratios[1],
        "decode all, convert few/ours": ratios[2],
        "peak MiB over idle": memory,
        "equals decode all": np.array_equal(ours(path, sampling), decode_all(path, sampling)),
    }


if __name__ == "__main__":
    main()
