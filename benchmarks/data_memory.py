"""Memory of a process that decodes 10 000 clips, one after the other, and of its open files.

    python benchmarks/data_memory.py --folder videos

Prints resident memory after every 1 000 clips; the files are those of `data_reader.py`, of 320x240 and smaller.
"""

import argparse
import os
from pathlib import Path

import psutil
import torch
from data_files import make_files

from hf_i2v.data import VideoReader


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--folder", type=Path, required=True, help="for the videos, which are made there once")
    parser.add_argument("--num_clips", type=int, default=10_000)
    args = parser.parse_args()
    torch.set_num_threads(1)
    paths = [path for name, path in make_files(args.folder).items() if "720p" not in name]
    process = psutil.Process()
    for number in range(args.num_clips + 1):
        if number % (args.num_clips // 10) == 0:
            files = len(os.listdir("/proc/self/fd"))
            print(f"{number} clips: {process.memory_info().rss / 2**20:.1f} MiB, {files} files", flush=True)
        with VideoReader(paths[number % len(paths)]) as video:
            video.frames([0, 1, 2, 3, 12, 13, 14, 15])


if __name__ == "__main__":
    main()
