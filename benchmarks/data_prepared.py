"""The loader on prepared videos (`hf-i2v prepare`) against the originals, and a model's answers to both.

    python benchmarks/data_prepared.py speed --folder videos                 # makes 720p files there once; minutes
    python benchmarks/data_prepared.py answers --model my-video-model --videos data/validation --folder prepared
    python benchmarks/data_prepared.py report                                # data_prepared.csv → data_prepared.md

Speed: CPU seconds of one thread for a batch of 8 clips of 8 frames at 224² (opened, sampled at random, decoded,
cropped, normalised) by `ClipLoader` in one process, originals and prepared ones in turns; ratios are the median over
the rounds. Files as `benchmarks/data_files.py` makes them, or those of `--videos`. Answers: top-1, and how often the
best class is the same, for class folders of videos. Each part replaces its rows in data_prepared.csv.
"""

import argparse
import time
from dataclasses import asdict
from pathlib import Path

import torch
from data_files import write_video
from interleaved import interleaved
from rows import replace_rows, write_page

from hf_i2v.data import (
    ClipLoader,
    Preprocessing,
    VideoClips,
    VideoReader,
    eval_transform,
    load_videos,
    train_transform,
)
from hf_i2v.data.lists import ListedVideo, references_of
from hf_i2v.predict import load_model
from hf_i2v.prepare import Form, prepare_video
from hf_i2v.prepare import main as prepare

FILE = Path(__file__).with_suffix(".csv")
LOOK = {"size": 224, "mean": (0.48, 0.46, 0.41), "std": (0.27, 0.26, 0.28), "interpolation": "bicubic"}
SAMPLINGS = {"uniform 8": None, "8x8": 8}


def originals(folder: Path) -> dict[str, Path]:
    """Three videos of 720p, ten seconds each, as cameras and video sites encode them."""
    files = {}
    for gop in (12, 48, 250):
        name = f"h264 720p gop{gop} b2"
        files[name] = folder / f"{name.replace(' ', '_')}.mp4"
        if not files[name].exists():
            options = {"codec": "libx264", "keyint_min": 1, "sc_threshold": 0, "g": gop, "bf": 2}
            write_video(files[name], height=720, width=1280, num_frames=300, **options)
    return files


def loader(path: Path, frame_stride: int | None) -> ClipLoader:
    rows = references_of([ListedVideo(str(path), "a")] * 8, ["a"])
    clips = VideoClips(
        rows, num_frames=8, frame_stride=frame_stride, train=True, transform=train_transform(**LOOK, flip=0.5)
    )
    return ClipLoader(clips, batch_size=8)


def speed(args) -> list[dict]:
    form, rows = Form(args.short_side, args.crf), []
    files = originals(args.folder)
    if args.videos is not None:
        files = {path.name: path for path in sorted(args.videos.iterdir())}
    for name, path in files.items():
        prepared = args.folder / f"{path.stem}.prepared.mp4"
        began = time.process_time()
        reason = prepare_video({"video": {"path": str(path), "bytes": None}}, prepared, form, 300)
        seconds = time.process_time() - began
        if reason is not None:
            raise SystemExit(reason)
        with VideoReader(path) as video, VideoReader(prepared) as small:
            assert video.times() == small.times()
            num_frames = video.num_frames
        for sampling, frame_stride in SAMPLINGS.items():
            loaders = {"original": loader(path, frame_stride), "prepared": loader(prepared, frame_stride)}
            calls = {kind: lambda of=of: [None for _ in of] for kind, of in loaders.items()}
            times = interleaved(calls, rounds=args.rounds, clock=time.process_time)
            rows.append(
                {
                    "part": "speed",
                    "what": f"{name}, {sampling}",
                    "original / prepared": f"{times['original'].over(times['prepared']):.2f}",
                    "clips per CPU second": f"{8 / times['original'].median:.1f} → {8 / times['prepared'].median:.1f}",
                    "bytes": f"{prepared.stat().st_size / path.stat().st_size:.3f}",
                    "frames prepared per CPU second": f"{num_frames / seconds:.0f}",
                }
            )
            print(*rows[-1].values(), sep="\t", flush=True)
    return rows


def answers(args) -> list[dict]:
    folders = {"original": args.videos, "prepared": args.folder / "train"}
    flags = ["--short_side", args.short_side, "--crf", args.crf, "--num_workers", 1]
    prepare(list(map(str, ["--train_dir", args.videos, "--output_dir", args.folder, *flags])))
    model = load_model(args.model, "cpu").eval()
    transform = eval_transform(**asdict(Preprocessing(**model.config.preprocessing)))
    best, right = {}, {}
    for kind, folder in folders.items():
        videos = load_videos(train_dir=folder)["train"]
        clips = VideoClips(videos, num_frames=model.config.num_frames, transform=transform, train=False)
        loader = ClipLoader(clips, batch_size=8, on_bad_video="error")
        with torch.inference_mode():
            best[kind] = torch.cat([model(batch["pixel_values"]).logits.argmax(-1) for batch in loader])
        names = videos.features["label"].names
        number = torch.tensor([model.config.label2id[name] for name in names])
        right[kind] = 100 * (best[kind] == number[torch.tensor(videos["label"])]).double().mean().item()
    same = 100 * (best["original"] == best["prepared"]).double().mean().item()
    row = {
        "part": "answers",
        "what": args.name or args.videos.name,
        "top-1": f"{right['original']:.2f} → {right['prepared']:.2f} %, {len(best['original'])} videos",
        "same best class": f"{same:.1f} %",
    }
    print(*row.values(), sep="\t")
    return [row]


def report(args) -> None:
    write_page(FILE, "Prepared videos", ("speed", "answers"))


PARTS = {part.__name__: part for part in (speed, answers, report)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--folder", type=Path, help="for the prepared videos")
    parser.add_argument("--videos", type=Path, help="speed: a folder of videos; answers: class folders")
    parser.add_argument("--model", help="answers: a finished video model")
    parser.add_argument("--name", help="answers: what the row is called")
    parser.add_argument("--short_side", type=int, default=Form.short_side)
    parser.add_argument("--crf", type=int, default=Form.crf)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.folder is not None:
        args.folder.mkdir(parents=True, exist_ok=True)
    rows = PARTS[args.part](args)
    if rows:
        replace_rows(FILE, rows, key=lambda row: (row["part"], row["what"]))


if __name__ == "__main__":
    main()
