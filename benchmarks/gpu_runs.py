"""Sections of `gpu.py` that run the training script on videos."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from gpu_setting import ROOT, Result, Setting, check
from safetensors.torch import load_file
from training import command_line, write_video_folders

WRITER = "import sys, pathlib, data_files; data_files.write_video(pathlib.Path(sys.argv[1]), codec='libx264', "
WRITER += "height=360, width=640, num_frames=90, seed=int(sys.argv[2]), g=250, bf=2)"


def make_videos(folder: Path, setting: Setting) -> Path:
    """Class folders; on a GPU 1 600 names of 16 videos, 640x360, three seconds, a key frame at the start."""
    if setting.is_small:
        return write_video_folders(folder, train=4, validation=1)
    folder.mkdir()
    unique = [folder / f"{number}.mp4" for number in range(16)]

    def write(number: int) -> None:
        command = [sys.executable, "-c", WRITER, str(unique[number]), str(number)]
        subprocess.run(command, check=True, cwd=Path(__file__).parent)  # where data_files.py is

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(write, range(16)))
    for split, count in (("train", 100), ("validation", 1)):
        for number, video in enumerate(unique):
            place = folder / split / f"class_{number % 8}"
            place.mkdir(parents=True, exist_ok=True)
            for copy in range(count):
                os.link(video, place / f"{number}-{copy}.mp4")
    return folder


def options(place: Path, setting: Setting, steps: int) -> dict:
    size = setting.sizes[0]
    if not (place / "image").exists():
        setting.image_model(size).save_pretrained(place / "image")
        make_videos(place / "videos", setting)
    on_gpu = setting.device.type == "cuda"
    return {
        "model_name_or_path": place / "image",
        "train_dir": place / "videos" / "train",
        "validation_dir": place / "videos" / "validation",
        "tuner": "st_adapter",
        "tuner_config": ["adapter_width=8"] if setting.is_small else None,
        "num_frames": setting.num_frames,
        "per_device_train_batch_size": 2 if setting.is_small else 16,
        "max_train_steps": steps,
        "learning_rate": 1e-3,
        "mixed_precision": "bf16" if on_gpu else None,
        "dataloader_num_workers": max(1, len(os.sched_getaffinity(0)) - 1) if on_gpu else 0,
    }


def start_script(arguments: dict, log: Path) -> subprocess.Popen:
    command = [sys.executable, str(ROOT / "examples" / "run_video_cls.py"), *command_line(arguments)]
    with log.open("a") as output:
        return subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)


def run_script(arguments: dict, log: Path) -> None:
    if start_script(arguments, log).wait():
        raise RuntimeError(f"the training script failed: {log.read_text()[-300:]}")


def script(setting: Setting) -> Iterator[Result]:
    """The training script with real decoding."""
    steps = 4 if setting.is_small else 100
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        arguments = options(place, setting, steps) | {"output_dir": place / "run", "checkpointing_steps": "no"}
        run_script(arguments, place / "log")
        results = json.loads((place / "run" / "all_results.json").read_text())
    note = f"{steps} steps of {arguments['per_device_train_batch_size']} clips, "
    note += f"{arguments['dataloader_num_workers']} workers"
    yield Result("clips per second", results["train_clips_per_second"], note=note)
    yield Result("share of the time spent waiting for data", results["train_data_wait"], note=note)
    yield Result("peak of memory", results["peak_memory_gib"], "GiB", note=note)


def resume(setting: Setting) -> Iterator[Result]:
    """`kill -9` behind a checkpoint, and the same command again: the weights of a run that was left alone."""
    steps = 4 if setting.is_small else 20
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        common = options(place, setting, steps) | {"checkpointing_steps": steps // 2}
        run_script(common | {"output_dir": place / "alone"}, place / "log")
        killed = common | {"output_dir": place / "killed"}
        process, checkpoint = start_script(killed, place / "log"), place / "killed" / f"checkpoint-{steps // 2}"
        while not checkpoint.exists() and process.poll() is None:
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        was_running = process.wait() == -signal.SIGKILL
        shutil.rmtree(place / "killed" / f"checkpoint-{steps}", ignore_errors=True)  # where it was faster than that
        run_script(killed, place / "log")
        went_on = f"going on after step {steps // 2}" in (place / "log").read_text()
        yield check("runs that did not go on from the checkpoint", float(not went_on), 0)
        alone, again = (
            load_file(place / name / "adapter" / "adapter_model.safetensors") for name in ("alone", "killed")
        )
        error = max(((alone[name] - again[name]).norm() / (alone[name].norm() + 1e-9)).item() for name in alone)
        # a GPU adds gradients up in any order; a CPU does not
        allowed = 1e-2 if setting.device.type == "cuda" else 0.0
        note = "killed while it ran" if was_running else "it had ended before it was killed"
        yield check("largest relative difference of a weight", error, allowed, note)
