"""Videos a second over a folder of files: transformers' pipeline, `examples/predict_videos.py`, decoding alone.

    python benchmarks/archives.py                     # 200 files of each size, 30 minutes, and a ViT-S, all made here
    python benchmarks/archives.py --videos folder --model my-video-model

All classify the same files with the same model and the same number of frames spread over each video, in one process,
in turns; imports and the loading of the model are left out. CPU seconds are those of the process and its workers, and
do not depend on what else the machine does. Peak memory is of processes of their own, each with one
file, of 1/10 of --long_minutes and of --long_minutes. Writes `archives.md` beside this script.
"""

import argparse
import functools
import itertools
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import av
import numpy as np
import torch
from accelerate import Accelerator
from interleaved import interleaved
from torch.utils.data import DataLoader
from transformers import VideoClassificationPipeline, ViTConfig, ViTModel, logging, pipeline

from hf_i2v import I2VForVideoClassification
from hf_i2v.archives import Parts, units_of, videos_per_unit
from hf_i2v.data import Preprocessing, eval_transform, probe
from hf_i2v.data.archives import load_archive
from hf_i2v.data.windowed import ArchiveBatches
from hf_i2v.examples import load_example

WORKERS = 2


def write_video(path: Path, seconds: float, seed: int = 0, size: tuple[int, int] = (320, 240)) -> None:
    """A texture that moves, H.264 at 25 frames a second with a key frame every 2 s. After 20 s it is shown again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    width, height = size
    texture = np.random.default_rng(seed).integers(0, 255, (height // 8, width // 8, 3), np.uint8)
    num_frames, period = round(25 * seconds), 500
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"g": "50", "preset": "veryfast", "bf": "2"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        packets = []
        for t in range(min(num_frames, period)):
            frame = np.roll(texture, t // 3, axis=1).repeat(8, 0).repeat(8, 1)
            packets += stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24"))
        packets += stream.encode()
        kept = [(bytes(p), p.pts, p.dts, p.duration, p.is_keyframe, p.time_base) for p in packets]
        length = round(len(kept) / 25 / kept[0][5])
        for turn in range(-(-num_frames // period)):
            for content, pts, dts, duration, is_keyframe, time_base in kept:
                packet = av.Packet(content)
                packet.pts, packet.dts, packet.duration = pts + turn * length, dts + turn * length, duration
                packet.time_base, packet.is_keyframe, packet.stream = time_base, is_keyframe, stream
                container.mux(packet)


def make_model(folder: Path, width: int = 384) -> None:
    """A ViT at 112 px with random weights, by default an S."""
    torch.manual_seed(0)
    size = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": 12}
    ViTModel(ViTConfig(**size, num_attention_heads=width // 64, image_size=112, patch_size=16)).save_pretrained(
        folder / "image"
    )
    Preprocessing(112, (0.5,) * 3, (0.5,) * 3, "bilinear").image_processor().save_pretrained(folder / "image")
    I2VForVideoClassification.from_image_model(folder / "image", num_frames=8, num_labels=10).save_pretrained(folder)


class OwnPipeline(VideoClassificationPipeline):
    """transformers' pipeline as it is, but for the list of models that it knows."""

    def check_model_type(self, supported_models):
        pass


def contenders(model_folder: Path, videos: list[str], place: Path) -> dict:
    """Calls that each go through all videos, by name."""
    script = load_example("predict_videos")
    model = I2VForVideoClassification.from_pretrained(model_folder).eval()
    look, num_frames = Preprocessing(**model.config.preprocessing), model.config.num_frames
    rates = [max(1, probe(video).num_frames // num_frames) for video in videos]
    own = OwnPipeline(model=model, image_processor=look.image_processor())
    ours = pipeline("video-classification", model=str(model_folder))
    place.mkdir(parents=True)
    (place / "list.txt").write_text("".join(f"{video}\n" for video in videos))
    rows, transform = load_archive(place / "list.txt"), eval_transform(**vars(look))

    def batches() -> ArchiveBatches:
        units = units_of(len(rows), videos_per_unit(len(rows), 8))
        return ArchiveBatches(rows, units, num_frames=num_frames, transform=transform, windows=None, batch_size=8)

    def predict(number=itertools.count()) -> None:  # noqa: B008, one counter for all calls
        output_dir = place / f"out{next(number)}"
        argv = ["--model", "", "--videos", "", "--output_dir", str(output_dir)]
        args = script.parse_args([*argv, "--dataloader_num_workers", str(WORKERS)])
        parts = Parts(output_dir / "parts", script.schema_of(args, model, rows))
        script.predict(args, Accelerator(cpu=True), model, batches(), parts)
        script.finish(args, parts, len(rows))

    pixels_BTChw = torch.zeros(8, num_frames, 3, look.size, look.size)

    @torch.inference_mode()
    def run_model() -> None:
        for _ in range(-(-len(rows) // 8)):
            model(pixels_BTChw)

    return {
        "transformers' own pipeline, frames spread over the video": lambda: [
            own(video, frame_sampling_rate=rate) for video, rate in zip(videos, rates, strict=True)
        ],
        "`pipeline(...)(files)` with hf_i2v": lambda: ours(videos),
        f"the same, num_workers={WORKERS}, batch_size=8": lambda: ours(videos, num_workers=WORKERS, batch_size=8),
        f"`predict_videos.py --dataloader_num_workers {WORKERS}`": predict,
        f"decoding alone, {WORKERS} workers": lambda: list(
            DataLoader(batches(), batch_size=None, num_workers=WORKERS, in_order=False)
        ),
        "the model alone, batches of 8": run_model,
    }


def peak_memory(model: Path, video: Path, output_dir: Path) -> tuple[int, float]:
    """Rows, and the peak of MiB of a process that predicts windows of one file (decoding in the same process)."""
    code = "from hf_i2v.examples import load_example; load_example('predict_videos').main()\n"
    code += "print('peak', open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"  # not of who started it
    options = ["--model", model, "--videos", video, "--output_dir", output_dir, "--window", 2, "--stride", 1]
    argv = [sys.executable, "-c", code, *map(str, options), "--dataloader_num_workers", "0"]
    said = subprocess.run(argv, check=True, capture_output=True, text=True).stdout
    return int(re.search(r"^(\d+) rows", said, re.M)[1]), int(said.rpartition("peak ")[2]) / 1024


def table(model: Path, found: list[str], num_videos: int, rounds: int, place: Path) -> list[str]:
    """Each contender goes through all files, a share of them a round."""
    videos = list(itertools.islice(itertools.cycle(found), num_videos))
    calls: dict[str, list] = {}
    for number in range(rounds):
        for name, call in contenders(model, videos[number::rounds], place / f"round{number}").items():
            calls.setdefault(name, []).append(call)
    turns = {name: itertools.cycle(of_rounds) for name, of_rounds in calls.items()}
    cpu_seconds = dict.fromkeys(calls, 0.0)

    def take_turn(name: str) -> None:
        before = sum(os.times()[:4])  # also of workers, which have ended by then
        next(turns[name])()
        cpu_seconds[name] += sum(os.times()[:4]) - before

    times = interleaved({name: functools.partial(take_turn, name) for name in calls}, rounds=rounds, warmup=0)
    ours = next(name for name in times if "predict_videos" in name)
    info = probe(found[0])
    lines = [
        f"{num_videos} files, the first of {info.num_frames} frames of {info.width} x {info.height} pixels; "
        f"{os.cpu_count()} cores, {rounds} rounds of {num_videos // rounds} files.",
        "",
        "| | videos/s | predict_videos is so many times as fast | spread | CPU seconds a video |",
        "|---|---|---|---|---|",
    ]
    for name, time in times.items():
        speed, cpu = num_videos / rounds / time.median, cpu_seconds[name] / num_videos
        lines.append(f"| {name} | {speed:.1f} | {time.over(times[ours]):.2f} | {time.spread:.2f} | {cpu:.3f} |")
    return [*lines, ""]


def long_table(minutes: float, place: Path) -> list[str]:
    make_model(model := place / "narrow", width=64)
    lines = ["One file with windows of 2 s every 1 s and a ViT of width 64, in a process of its own:", ""]
    lines += ["| minutes | file MiB | rows | peak MiB |", "|---|---|---|---|"]
    for length in (minutes / 10, minutes):
        video = place / f"{length:g}.mp4"
        write_video(video, 60 * length)
        num_rows, peak = peak_memory(model, video, place / f"long{length:g}")
        lines.append(f"| {length:g} | {video.stat().st_size / 2**20:.1f} | {num_rows} | {peak:.0f} |")
    return [*lines, ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--videos", type=Path, nargs="*", default=[], help="folders; default: files made here")
    parser.add_argument("--sizes", nargs="*", default=["320x240", "1280x720"], help="of the files made here")
    parser.add_argument("--model", type=Path, help="finished video model; default: one made here")
    parser.add_argument("--num_videos", type=int, default=200, help="repeats the files of a smaller folder")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--long_minutes", type=float, default=30, help="0 leaves the long file out")
    args = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        model = args.model or place / "model"
        if args.model is None:
            make_model(model)
        folders = list(args.videos)
        for size in args.sizes if not folders else []:
            folders.append(place / size)
            for number in range(8):
                width, height = map(int, size.split("x"))
                write_video(place / size / f"{number}.mp4", 5 + number % 3, seed=number, size=(width, height))
        lines = ["`python benchmarks/archives.py`, see there.", ""]
        for number, videos in enumerate(folders):
            found = [row["video"]["path"] for row in load_archive(videos)]
            lines += table(model, found, args.num_videos, args.rounds, place / f"folder{number}")
            print("\n".join(lines), flush=True)
        if args.long_minutes:
            lines += long_table(args.long_minutes, place)
    print("\n".join(lines))
    Path(__file__).with_suffix(".md").write_text("\n".join(lines))


if __name__ == "__main__":
    main()
