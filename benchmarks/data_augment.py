"""Augmentations of a clip of 8 frames against albumentations and kornia, and against the decoding of the clip.

    pip install --target libraries albumentations kornia  # any folder, they are needed for this only
    PYTHONPATH=libraries python benchmarks/data_augment.py --folder videos

The random resized crop is from 240x320 to 224x224, the others are of 224x224. Ours and albumentations take and give
uint8; kornia is handed the floats that it wants, and that conversion is not counted. In place of RandAugment, which it
lacks, albumentations does two of its counterparts of the operations; kornia's draws for each frame, so that the clip
flickers. One thread; rounds of 10 draws are interleaved, ratios are medians over the rounds. Writes `data_augment.csv`
beside this script; a library that does not import is left out.
"""

import argparse
import csv
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from data_files import write_video
from interleaved import interleaved

from hf_i2v.data import ColorJitter, RandAugment, RandomResizedCrop, VideoReader, uniform_indices

SIZE, DRAWS = 224, 10


def ours(frames_TChw: torch.Tensor, squares_TChw: torch.Tensor) -> dict[str, Callable]:
    return {
        "random resized crop": lambda: RandomResizedCrop(SIZE)(frames_TChw),
        "colour jitter": lambda: ColorJitter(0.4, 0.4, 0.4)(squares_TChw),
        "RandAugment": lambda: RandAugment(2, 9)(squares_TChw),
    }


def with_albumentations(frames_TChw: torch.Tensor, squares_TChw: torch.Tensor) -> dict[str, Callable]:
    import albumentations as A
    import cv2

    cv2.setNumThreads(0)
    frames_ThwC, squares_ThwC = (
        np.ascontiguousarray(clip_TChw.permute(0, 2, 3, 1).numpy()) for clip_TChw in (frames_TChw, squares_TChw)
    )
    always = {"p": 1.0}
    operations = [
        A.NoOp(**always),
        A.AutoContrast(**always),
        A.Equalize(**always),
        A.Rotate(27, **always),
        A.Solarize(**always),
        A.Posterize(**always),
        *(A.ColorJitter(**{**dict.fromkeys(("brightness", "contrast", "saturation", "hue"), 0), name: 0.8}, **always)
          for name in ("brightness", "contrast", "saturation")),
        A.Sharpen(**always),
        *(A.Affine(**{what: {axis: limits}}, **always)
          for what, limits in (("shear", (-15, 15)), ("translate_percent", (-0.4, 0.4))) for axis in ("x", "y")),
    ]  # fmt: skip
    crop = A.Compose([A.RandomResizedCrop((SIZE, SIZE), scale=(0.08, 1.0), **always)])
    jitter = A.Compose([A.ColorJitter(0.4, 0.4, 0.4, 0, **always)])
    rand_augment = A.Compose([A.SomeOf(operations, n=2, replace=True, p=1.0)])
    return {
        "random resized crop": lambda: crop(images=frames_ThwC),
        "colour jitter": lambda: jitter(images=squares_ThwC),
        "RandAugment": lambda: rand_augment(images=squares_ThwC),
    }


def with_kornia(frames_TChw: torch.Tensor, squares_TChw: torch.Tensor) -> dict[str, Callable]:
    import kornia.augmentation as K

    frames_BTChw, squares_BTChw = (
        clip_TChw[None].to(torch.float32, memory_format=torch.contiguous_format) / 255
        for clip_TChw in (frames_TChw, squares_TChw)
    )
    whole = {"data_format": "BTCHW", "same_on_frame": True}
    crop = K.VideoSequential(K.RandomResizedCrop((SIZE, SIZE), scale=(0.08, 1.0), p=1.0), **whole)
    jitter = K.VideoSequential(K.ColorJitter(0.4, 0.4, 0.4, 0.0, p=1.0), **whole)
    rand_augment = K.auto.RandAugment(2, 27)  # of 30
    return {
        "random resized crop": lambda: crop(frames_BTChw),
        "colour jitter": lambda: jitter(squares_BTChw),
        "RandAugment": lambda: rand_augment(squares_BTChw[0]),
    }


def decoding(path: Path) -> torch.Tensor:
    with VideoReader(path) as video:
        return video.frames(uniform_indices(num_video_frames=video.num_frames, num_frames=8))


def drawn(call: Callable) -> Callable:
    """Ten draws of a random augmentation, the same in every round."""

    def calls():
        for seed in range(DRAWS):
            torch.manual_seed(seed)
            np.random.seed(seed)
            random.seed(seed)
            call()

    return calls


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--folder", type=Path, required=True, help="for the video, which is made there once")
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(1)
    path = args.folder / "augment.mp4"
    if not path.exists():
        args.folder.mkdir(parents=True, exist_ok=True)
        write_video(path, codec="libx264", height=240, width=320, num_frames=300, g=48, bf=2)
    frames_TChw = decoding(path)
    squares_TChw = frames_TChw[..., 8 : 8 + SIZE, 48 : 48 + SIZE]

    calls = {("decoding", "ours"): drawn(lambda: decoding(path))}
    libraries = {"ours": ours, "albumentations": with_albumentations, "kornia": with_kornia}
    for library, made in list(libraries.items()):
        try:
            calls |= {(what, library): drawn(call) for what, call in made(frames_TChw, squares_TChw).items()}
        except ImportError as error:
            print(f"{library} is left out: {error}")
            del libraries[library]
    times = interleaved(calls, rounds=args.rounds)
    with open(Path(__file__).with_suffix(".csv"), "w", newline="") as file:
        writer = csv.writer(file)
        others = [library for library in libraries if library != "ours"]
        writer.writerow(["what", "ms of a clip", *(f"{library}/ours" for library in others), "share of decoding"])
        for what in dict.fromkeys(what for what, _ in calls):
            mine = times[what, "ours"]
            ratios = [
                f"{times[what, library].over(mine):.2f}" if (what, library) in times else "" for library in others
            ]
            share = f"{mine.over(times['decoding', 'ours']):.2f}"
            writer.writerow([what, f"{1000 * mine.median / DRAWS:.1f}", *ratios, share])
            named = dict(zip(others, ratios, strict=True))
            print(f"{what}: {1000 * mine.median / DRAWS:.1f} ms, others/ours {named}, {share} of decoding")


if __name__ == "__main__":
    main()
