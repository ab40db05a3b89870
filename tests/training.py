"""Tiny videos, and the training script run on them: in this process, or in a forked one that may be killed."""

import importlib
import io
import os
import random
import signal
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
CLASSES = {"dark": 30, "light": 220}


def load_script(name: str):
    """A script of examples/ as a module."""
    if str(EXAMPLES) not in sys.path:
        sys.path.insert(0, str(EXAMPLES))
    return importlib.import_module(name)


def write_video(path: Path, brightness: int, num_frames: int = 6) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(brightness)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.width = stream.height = 16
        for _ in range(num_frames):
            frame = noise.integers(-20, 20, (16, 16, 3)) + brightness
            frame = av.VideoFrame.from_ndarray(frame.clip(0, 255).astype(np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def write_video_folders(folder: Path, train: int, validation: int) -> Path:
    """`train` and `validation` videos of each class, in class folders."""
    for split, count in (("train", train), ("validation", validation)):
        for name, brightness in CLASSES.items():
            for i in range(count):
                write_video(folder / split / name / f"{i}.mp4", brightness + i)
    return folder


def write_shards(folders: Path, shards: Path) -> Path:
    """The same videos as WebDataset tars, five to a shard, as a data set that `load_dataset` would take by name."""
    for split in ("train", "validation"):
        videos = sorted((folders / split).glob("*/*.mp4"), key=lambda path: (path.name, path.parent.name))
        for start in range(0, len(videos), 5):
            shards.mkdir(parents=True, exist_ok=True)
            with tarfile.open(shards / f"{split}-{start:03d}.tar", "w") as tar:
                for number, path in enumerate(videos[start : start + 5], start):
                    for suffix, content in (("mp4", path.read_bytes()), ("cls", path.parent.name.encode())):
                        member = tarfile.TarInfo(f"{number:04d}.{suffix}")
                        member.size = len(content)
                        tar.addfile(member, io.BytesIO(content))
    return shards


def command_line(arguments: dict) -> list[str]:
    """{"num_frames": 4, "streaming": True} as a command line; None leaves an option out."""
    parts = []
    for key, value in arguments.items():
        if value is True:
            parts.append(f"--{key}")
        elif isinstance(value, list | tuple):
            parts += [f"--{key}", *map(str, value)]
        elif value is not None:
            parts += [f"--{key}", str(value)]
    return parts


def start_forked(argv: list[str], log: Path, prepare: Callable[[], None] = lambda: None) -> int:
    """The script in a forked process, which has torch imported already and calls `prepare` first; gives its id."""
    script = load_script("run_video_cls")
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for number in (1, 2):
            os.dup2(output, number)
        sys.stdout, sys.stderr = (open(n, "w", closefd=False) for n in (1, 2))  # noqa: SIM115
        prepare()
        script.main(argv)
        code = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def run_with_kills(argv: list[str], output_dir: Path, log: Path, moments: list[str], chance: random.Random) -> int:
    """Start the script; kill it with SIGKILL a moment after each of these names appears in the output folder, and
    start it again until it is through. Gives how often it was killed."""
    kills = 0
    for name in [*moments, None]:
        process = start_forked(argv, log)
        if name is not None:
            while not (output_dir / name).exists():
                done, status = os.waitpid(process, os.WNOHANG)
                assert not done, f"ended before {name} with {status}: {log.read_text()[-3000:]}"
                time.sleep(0.001)
            time.sleep(chance.uniform(0, 0.1))
            os.kill(process, signal.SIGKILL)
            kills += 1
        _, status = os.waitpid(process, 0)
        if name is None:
            assert status == 0, log.read_text()[-3000:]
    return kills
