"""Tiny videos, and the training script run on them: in this process, or in one of its own that may be killed."""

import importlib
import io
import json
import os
import sys
import tarfile
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path

import av
import numpy as np
import processes
import torch

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
CLASSES = {"dark": 30, "light": 220}


def load_script(name: str):
    """A script of examples/ as a module."""
    if str(EXAMPLES) not in sys.path:
        sys.path.insert(0, str(EXAMPLES))
    script = importlib.import_module(name)
    if hasattr(script, "memory_plan"):  # half a second of each run; test_examples.py prints it, test_cost.py checks it
        script.memory_plan = lambda *_, **__: "memory of a training step: unknown"
    return script


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


def start_script(argv: list[str], log: Path, prepare: Callable[[], None] | None = None) -> BaseProcess:
    """The script in a process of its own that calls `prepare` first."""
    return processes.start(_run_script, argv, prepare, log=log)


def _run_script(argv: list[str], prepare: Callable[[], None] | None) -> None:
    script = load_script("run_video_cls")
    if prepare is not None:
        prepare()
    script.main(argv)


def start_two(argv: list[str], log: Path, record: Path) -> list[BaseProcess]:
    """The script in two processes that train together; each writes down the ids of every batch it trains on."""
    meeting = record.with_name(f"{record.name}-{time.monotonic_ns()}")  # a file: no port that could be taken
    return [start_script(argv, log, partial(_join, rank, meeting, record.with_suffix(f".{rank}"))) for rank in (0, 1)]


def _join(rank: int, meeting: Path, record: Path) -> None:
    os.environ |= {"RANK": f"{rank}", "LOCAL_RANK": f"{rank}", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"ACCELERATE_USE_CPU": "true"}
    torch.distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    script = load_script("run_video_cls")
    file = os.open(record, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def writing(function, line):
        def call(*args):
            result = function(*args)
            os.write(file, f"{json.dumps(line(args, result))}\n".encode())
            return result

        return call

    script.batch_loss = writing(script.batch_loss, lambda args, _: {"ids": args[2]["ids"].tolist()})
    script.resume = writing(script.resume, lambda _, step: {"step": step})


def trained_on(record: Path, rank: int, batches_per_step: int) -> list[list[int]]:
    """The ids of a rank's batches that went into the weights: what came after the checkpoint was lost with a kill."""
    batches = []
    for line in map(json.loads, record.with_suffix(f".{rank}").read_text().splitlines()):
        if "step" in line:
            del batches[line["step"] * batches_per_step :]
        else:
            batches.append(line["ids"])
    return batches
