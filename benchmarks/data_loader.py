"""Clips per second of a DataLoader with two workers, against the ST-Adapter repository's dataset class and decord; and
the random resized crop against Pillow.

    git clone https://github.com/linziyi96/st-adapter
    pip install decord==0.6.0
    python benchmarks/data_loader.py --folder videos --st_adapter st-adapter

Clips are 8 frames of 224x224, uniformly sampled at random, cropped (bicubic), flipped and normalised, of 200 files
of 320x240. The decord loader uses the repository's own crop. Rounds are interleaved in a rotating order; ratios are of
medians. Writes `data_loader.csv` beside this script. torchvision, of which that class imports more than these
transforms need, is replaced by an empty module where it is not installed.
"""

import argparse
import csv
import importlib
import statistics
import sys
import time
import types
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from data_files import write_video
from datasets import Dataset
from PIL import Image
from torch.utils.data import DataLoader

from hf_i2v.data import ClipLoader, RandomResizedCrop, VideoClips, load_videos, train_transform

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
BATCH_SIZE, NUM_WORKERS = 8, 2


def import_st_adapter(repository: Path):
    """Its `video_dataset` package, read where it lies."""
    try:
        import torchvision  # noqa: F401
    except ImportError:
        for name in ("torchvision", "torchvision.transforms", "torchvision.transforms.functional"):
            sys.modules[name] = types.ModuleType(name)
        sys.modules["torchvision"].transforms = sys.modules["torchvision.transforms"]
        sys.modules["torchvision.transforms"].functional = sys.modules["torchvision.transforms.functional"]
    sys.path.insert(0, str(repository))
    return importlib.import_module("video_dataset.dataset"), importlib.import_module("video_dataset.transform")


class DecordClips(torch.utils.data.Dataset):
    """decord for the frames, the repository's transforms for the rest."""

    def __init__(self, rows: Dataset, transform):
        self.paths, self.labels, self.transform = [row["video"]["path"] for row in rows], rows["label"], transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int):
        import decord

        video = decord.VideoReader(self.paths[index], num_threads=1)
        edges = np.linspace(0, len(video), 9).astype(int)
        frames_ThwC = video.get_batch([np.random.randint(*edge) for edge in pairwise(edges)])
        frames_ThwC = (torch.from_numpy(frames_ThwC.asnumpy()).float() / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
        frames_CThw = frames_ThwC.permute(3, 0, 1, 2)
        frames_CThw = self.transform.random_resized_crop(
            frames_CThw, 224, 224, scale=(0.08, 1.0), interpolation="bicubic"
        )
        return (frames_CThw.flip(-1) if torch.rand(1) < 0.5 else frames_CThw), self.labels[index]


def loaders(folder: Path, st_adapter: Path) -> dict:
    for number in range(200):
        path = folder / f"class_{number % 4}" / f"{number}.mp4"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            options = {"g": (12, 48, 250)[number % 3], "bf": 2 * (number % 2), "preset": "ultrafast"}
            write_video(path, codec="libx264", height=240, width=320, num_frames=150, seed=number, **options)
    rows = load_videos(train_dir=folder)["train"]
    dataset, transform = import_st_adapter(st_adapter)
    file_list = folder / "list.txt"
    file_list.write_text("".join(f"{row['video']['path']} {row['label']}\n" for row in rows))
    theirs = dataset.VideoDataset(
        list_path=str(file_list), data_root="/", num_spatial_views=1, num_temporal_views=1, random_sample=True,
        num_frames=8, sampling_rate=0, spatial_size=224, mirror=True,
    )  # fmt: skip
    look = {"size": 224, "mean": MEAN, "std": STD, "interpolation": "bicubic"}
    clips = VideoClips(rows, num_frames=8, transform=train_transform(**look, flip=0.5), train=True)
    torchs = {"batch_size": BATCH_SIZE, "shuffle": True, "num_workers": NUM_WORKERS, "persistent_workers": True}
    return {
        "ours": ClipLoader(clips, batch_size=BATCH_SIZE, shuffle=True, num_workers=NUM_WORKERS),
        "ST-Adapter's dataset class": DataLoader(theirs, **torchs),
        "decord, its transforms": DataLoader(DecordClips(rows, transform), **torchs),
    }


def crop_against_pillow(repeats: int) -> tuple[float, int]:
    """Seconds of Pillow over ours for 8 frames, uint8 to uint8, and the largest difference in levels."""
    rows, columns = np.mgrid[:240, :320]
    smooth = np.stack([128 + 100 * np.sin(columns / 9) * np.cos(rows / 13), columns % 64 * 4, rows], -1)
    frames_ThwC = np.stack([np.roll(smooth, 3 * t, 1) for t in range(8)]).clip(0, 255).astype(np.uint8)
    frames_TChw = torch.from_numpy(frames_ThwC).permute(0, 3, 1, 2)
    crop = RandomResizedCrop(224, interpolation="bicubic")
    times, differences = {"ours": [], "pillow": []}, []
    for seed in range(repeats):
        top, left, height, width = crop.box(240, 320, torch.Generator().manual_seed(seed))
        start = time.perf_counter()
        out_TChw = crop(frames_TChw, torch.Generator().manual_seed(seed))
        middle = time.perf_counter()
        pictures = [
            np.asarray(
                Image.fromarray(frame).crop((left, top, left + width, top + height)).resize((224, 224), Image.BICUBIC)
            )
            for frame in frames_ThwC
        ]
        times["pillow"].append(time.perf_counter() - middle)
        times["ours"].append(middle - start)
        differences.append(int(np.abs(out_TChw.permute(0, 2, 3, 1).numpy().astype(int) - np.stack(pictures)).max()))
    return statistics.median(times["pillow"]) / statistics.median(times["ours"]), max(differences)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--folder", type=Path, required=True, help="for the videos, which are made there once")
    parser.add_argument("--st_adapter", type=Path, required=True, help="clone of the ST-Adapter repository")
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(1)
    contenders = loaders(args.folder, args.st_adapter)
    ratio, difference = crop_against_pillow(50)
    print(f"random resized crop: {ratio:.2f} times as fast as Pillow, at most {difference}/255 different")
    seconds = {name: [] for name in contenders}
    names = list(contenders)
    for repeat in range(args.repeats + 1):
        for place in range(len(names)):
            name = names[(repeat + place) % len(names)]
            start = time.perf_counter()
            for _ in contenders[name]:
                pass
            if repeat:  # the first round starts the workers
                seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    with open(Path(__file__).with_suffix(".csv"), "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["what", "clips per second", "seconds over ours"])
        for name, median in medians.items():
            writer.writerow([name, round(200 / median, 1), round(median / medians["ours"], 2)])
            print(f"{name}: {200 / median:.1f} clips/s, {median / medians['ours']:.2f}")
        writer.writerow(["random resized crop of Pillow", "", round(ratio, 2)])


if __name__ == "__main__":
    main()
