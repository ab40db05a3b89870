"""Write a small video data set: handwritten digits that move over a canvas, labelled by their direction.

    python examples/make_moving_digits.py --output_dir data/moving_digits

gives `data/moving_digits/{train,validation}/{moves_down,moves_left,moves_right,moves_up}/0000.mp4` …, real encoded
files. A digit runs along a line, and every line is as likely in one direction as in the other, so one frame alone, or
all frames in any order, do not tell left from right or up from down. Train and validation show different digit images.
Needs scikit-learn (`pip install hf_i2v[demo]`), which brings the digits along; nothing is downloaded.
"""

import argparse
from pathlib import Path

import av
import numpy as np
from tqdm import tqdm

DIRECTIONS = ("moves_down", "moves_left", "moves_right", "moves_up")
HELD_OUT = 0.2  # share of the digit images that only validation shows


def load_digit_images(*, train: bool) -> tuple[np.ndarray, np.ndarray]:
    """The digit images of one side of a fixed split: uint8 (N, 8, 8) and their digits, int64 (N,)."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise SystemExit("this example needs scikit-learn for its digits: pip install hf_i2v[demo]") from error
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))  # the same split for every script and seed
    num_held_out = round(HELD_OUT * len(order))
    chosen = order[num_held_out:] if train else order[:num_held_out]
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)  # scikit-learn's pixels are 0 to 16
    return images[chosen], digits.target[chosen].astype(np.int64)


def digit_size(size: int) -> int:
    """Side in pixels of a digit on a canvas of `size` pixels: a whole multiple of 8, at most three eighths of it."""
    return 8 * max(1, size * 3 // 64)


def draw_digit(image: np.ndarray, *, size: int, top: int, left: int) -> np.ndarray:
    """An 8x8 digit, enlarged, with its corner at `top`, `left` (pixels) of a black canvas: uint8 (size, size)."""
    side = digit_size(size)
    canvas = np.zeros((size, size), np.uint8)
    canvas[top : top + side, left : left + side] = image.repeat(side // 8, axis=0).repeat(side // 8, axis=1)
    return canvas


def draw_path(name: str, *, size: int, num_frames: int, rng: np.random.Generator) -> np.ndarray:
    """Corners (top, left) of a digit that moves as the class says, staying on the canvas: int (T, 2)."""
    room = size - digit_size(size)
    length = rng.uniform(0.4, 0.95) * room
    along_T = rng.uniform(0, room - length) + np.linspace(0, length, num_frames)
    if name in ("moves_left", "moves_up"):
        along_T = along_T[::-1]
    across_T = np.full(num_frames, rng.uniform(0, room))
    corners = (across_T, along_T) if name in ("moves_left", "moves_right") else (along_T, across_T)
    return np.stack(corners, axis=1).round().astype(int)


def write_video(path: Path, frames_Thw: np.ndarray, *, fps: int) -> None:
    """Encode grey uint8 frames as mp4: H.264, or MPEG-4 where FFmpeg was built without x264."""
    has_x264 = "libx264" in av.codecs_available
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264" if has_x264 else "mpeg4", rate=fps)
        stream.height, stream.width = frames_Thw.shape[1:]
        stream.pix_fmt = "yuv420p"
        # Nearly lossless: trails left by compression would give the direction away in a single frame. Presets slower
        # than this plan with x264's macroblock tree, which does not give the same bytes every time.
        stream.options = {"crf": "8", "preset": "superfast", "threads": "1"} if has_x264 else {"qscale": "1"}
        for frame_hw in frames_Thw:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame_hw, format="gray")))
        container.mux(stream.encode())


def write_split(
    folder: Path, *, num_videos: int, train: bool, num_frames: int, size: int, fps: int, seed: int
) -> None:
    """Write `num_videos` videos, spread evenly over the classes, as `folder/<class>/<number>.mp4`."""
    images, _ = load_digit_images(train=train)
    rng = np.random.default_rng([seed, int(train)])
    for name in DIRECTIONS:
        (folder / name).mkdir(parents=True, exist_ok=True)
    for number in tqdm(range(num_videos), desc=folder.name, unit="video"):
        name = DIRECTIONS[number % len(DIRECTIONS)]
        image = images[rng.integers(len(images))]
        path_T2 = draw_path(name, size=size, num_frames=num_frames, rng=rng)
        frames_Thw = np.stack([draw_digit(image, size=size, top=top, left=left) for top, left in path_T2])
        write_video(folder / name / f"{number // len(DIRECTIONS):04d}.mp4", frames_Thw, fps=fps)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--output_dir", type=Path, required=True, help="gets the folders train and validation")
    parser.add_argument("--num_train", type=int, default=640, help="training videos, all classes together")
    parser.add_argument("--num_validation", type=int, default=160, help="validation videos, all classes together")
    parser.add_argument("--num_frames", type=int, default=16, help="frames per video")
    parser.add_argument("--size", type=int, default=64, help="height and width in pixels, even")
    parser.add_argument("--fps", type=int, default=8, help="frames per second")
    parser.add_argument("--seed", type=int, default=0, help="of digits, positions and speeds")
    args = parser.parse_args(argv)
    if args.size % 2 or args.size < 16:
        parser.error(f"--size ({args.size}) must be even (the colour format halves it) and at least 16")
    for flag in ("num_train", "num_validation"):
        if getattr(args, flag) < len(DIRECTIONS):
            parser.error(f"--{flag} ({getattr(args, flag)}) must be at least {len(DIRECTIONS)}, one video per class")
    if (args.output_dir / "train").exists() or (args.output_dir / "validation").exists():
        parser.error(f"{args.output_dir} already holds a data set; remove it or choose another --output_dir")

    shared = {"num_frames": args.num_frames, "size": args.size, "fps": args.fps, "seed": args.seed}
    write_split(args.output_dir / "train", num_videos=args.num_train, train=True, **shared)
    write_split(args.output_dir / "validation", num_videos=args.num_validation, train=False, **shared)
    print(f"{args.num_train} + {args.num_validation} videos of {len(DIRECTIONS)} classes in {args.output_dir}")


if __name__ == "__main__":
    main()
