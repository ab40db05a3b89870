"""How long the training script waits for data beside a stand-in for a GPU, and where the time of a clip goes.

    python benchmarks/data_wait.py wait --original videos --prepared prepared/train    # class folders
    python benchmarks/data_wait.py steps --original videos --prepared prepared/train
    python benchmarks/data_wait.py report                                              # data_wait.csv → data_wait.md

Wait: `run_video_cls.py` with two workers. A sleep of 1.4 ms a clip stands for the model's step: ZeroI2V at ViT-B/16, 8
frames, is 141 GMACs forward and as many backward, 0.56 TFLOP, at 40 % of an H100's bf16 peak. The normalisation, which
a GPU does, is left out. Shares of wall-clock time: nothing else should run beside it. Steps: CPU milliseconds of one
thread for a clip, medians over the videos. Each part replaces its rows in data_wait.csv.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

import torch
from rows import replace_rows, write_page
from torch.utils.data import DataLoader, Dataset
from transformers import CLIPVisionConfig, CLIPVisionModel

FILE = Path(__file__).with_suffix(".csv")
sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))

import run_video_cls  # noqa: E402

from hf_i2v.cost import Cost  # noqa: E402
from hf_i2v.data import (  # noqa: E402
    Normalize,
    Preprocessing,
    RandomResizedCrop,
    VideoReader,
    collate,
    load_videos,
    uniform_indices,
)
from hf_i2v.data.decode import _Pictures  # noqa: E402

SECONDS_PER_CLIP, BATCH_SIZE, SIZE = 0.0014, 8, 224
MEAN, STD = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)


def wait(args) -> list[dict]:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        image = CLIPVisionConfig(
            hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, image_size=8, patch_size=8
        )
        CLIPVisionModel(image).save_pretrained(f"{folder}/image")
        Preprocessing(SIZE, MEAN, STD, "bicubic").image_processor().save_pretrained(f"{folder}/image")
        for kind, videos in (("original", args.original), ("prepared", args.prepared)):
            for prefetch_factor in (2, 8):
                options = {
                    "model_name_or_path": f"{folder}/image",
                    "train_dir": videos,
                    "validation_split": 0.1,
                    "tuner": "linear_probe",
                    "num_frames": 8,
                    "per_device_train_batch_size": BATCH_SIZE,
                    "max_train_steps": args.steps,
                    "checkpointing_steps": "no",
                    "dataloader_num_workers": args.workers,
                    "dataloader_prefetch_factor": prefetch_factor,
                    "output_dir": f"{folder}/{kind}-{prefetch_factor}",
                }
                argv = [part for name, value in options.items() for part in (f"--{name}", str(value))]
                with (
                    mock.patch.object(run_video_cls, "batch_loss", sleeping(run_video_cls.batch_loss)),
                    mock.patch.object(Normalize, "__call__", lambda self, x, generator=None: x[..., :8, :8].float()),
                    mock.patch.object(run_video_cls, "cost", lambda *parts: Cost(1, 1, 1)),
                    mock.patch.object(run_video_cls, "predict", lambda *parts: None),
                    mock.patch.object(run_video_cls, "write_results", lambda *parts: {}),
                    mock.patch.object(run_video_cls, "card_facts", lambda *parts: None),
                    mock.patch.object(run_video_cls, "write_card", lambda *parts: None),
                    mock.patch.object(run_video_cls, "last_words", lambda *parts: ""),
                ):
                    run_video_cls.main(argv)
                results = json.loads((Path(options["output_dir"]) / "train_results.json").read_text())
                what = f"{kind} videos, {args.workers} workers, prefetch_factor {prefetch_factor}"
                share, speed = results["train_data_wait"], results["train_clips_per_second"]
                rows.append({"part": "wait", "what": what, "share of time": share, "clips per second": speed})
                print(*rows[-1].values(), sep="\t", flush=True)
    return rows


def sleeping(batch_loss):
    """The script's function, behind what a GPU would take for the batch, forward and backward."""

    def loss(args, model, batch):
        time.sleep(SECONDS_PER_CLIP * len(batch["labels"]))
        return batch_loss(args, model, batch)

    return loss


def steps(args) -> list[dict]:
    rows = []
    for kind, videos in (("original", args.original), ("prepared", args.prepared)):
        paths = [row["video"]["path"] for row in load_videos(train_dir=videos)["train"]]
        taken = [_steps_of(path) for path in paths[: args.videos]]
        medians = {step: statistics.median(times[step] for times in taken) for step in taken[0]}
        whole = sum(medians.values())
        for step, milliseconds in medians.items():
            rows.append({"part": "steps", "what": f"{kind}: {step}", "ms a clip": round(milliseconds, 2)})
            rows[-1]["share of time"] = round(milliseconds / whole, 4)
            print(*rows[-1].values(), sep="\t", flush=True)
    for how, small in (("tensors", torch.zeros), ("arrays", lambda *size: torch.zeros(*size).numpy())):
        loader = DataLoader(_Small(small), batch_size=None, num_workers=2, persistent_workers=True, collate_fn=_same)
        for _ in loader:
            pass
        started = time.process_time()
        for _ in loader:
            pass
        milliseconds = 1e3 * (time.process_time() - started) / len(loader.dataset)
        what = f"main process: labels, ids and padding of a batch, as {how}"
        rows.append({"part": "steps", "what": what, "ms a clip": round(milliseconds / BATCH_SIZE, 3)})
        print(*rows[-1].values(), sep="\t", flush=True)
    return rows


def _steps_of(path: str) -> dict[str, float]:
    """CPU milliseconds of each step from a file to normalised pixels."""
    times = {}

    def timed(step: str, function, of: int = 1):
        results = []
        for _ in range(3):
            started = time.process_time()
            result = function()
            results.append(1e3 * (time.process_time() - started) / of)
        times[step] = statistics.median(results)
        return result

    video = timed("open, index", lambda: VideoReader(path))
    indices = uniform_indices(num_video_frames=video.num_frames, num_frames=8)
    positions = [video._table[index] for index in indices]
    wanted = {video._packets.pts[position] for position in positions}
    decode = timed("decode", lambda: [f for f, _ in video._decode_parts(positions) if f.pts in wanted])
    pictures = timed("YUV to RGB", lambda: [video._to_rgb(frame, None) for frame in decode])

    def stacked():
        kept = _Pictures(path, 8, 2**32)
        for row, picture_hwC in enumerate(pictures):
            kept.put(row, picture_hwC)
        return torch.from_numpy(kept.frames_ThwC).permute(0, 3, 1, 2)

    frames_TChw = timed("copy: stack the frames", stacked)
    crop = RandomResizedCrop(SIZE, scale=(0.5, 1.0), interpolation="bicubic")
    clip_TChw = timed("crop, resize", lambda: crop(frames_TChw, torch.Generator().manual_seed(0)))
    clip_TChw = timed("copy: flip", lambda: clip_TChw.flip(-1))
    items = [{"pixel_values": clip_TChw, "labels": 0}] * BATCH_SIZE
    batch_BTChw = timed("copy: batch", lambda: collate(items)["pixel_values"], BATCH_SIZE)
    timed("normalise (where there is no GPU)", lambda: Normalize(MEAN, STD)(batch_BTChw), BATCH_SIZE)
    return times


class _Small(Dataset):
    """What a batch has beside its pixels."""

    def __init__(self, make):
        self.make = make

    def __len__(self) -> int:
        return 100

    def __getitem__(self, index: int) -> dict:
        return {name: self.make(BATCH_SIZE) for name in ("labels", "ids", "is_padding")}


def _same(batch: dict) -> dict:
    return batch


def report(args) -> None:
    write_page(FILE, "Waiting for data", ("wait", "steps"))


PARTS = {part.__name__: part for part in (wait, steps, report)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--original", type=Path, help="class folders of videos")
    parser.add_argument("--prepared", type=Path, help="the same, prepared")
    parser.add_argument("--steps", type=int, default=30, help="wait: of the training")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--videos", type=int, default=4, help="steps: how many to look at")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = PARTS[args.part](args)
    if rows:
        replace_rows(FILE, rows, key=lambda row: row["part"])


if __name__ == "__main__":
    main()
