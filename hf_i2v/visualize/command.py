"""Draw what a model looks at in a video.

hf-i2v visualize my-video-model clip.mp4 --what evidence --output evidence.gif
hf-i2v visualize runs/first/adapter clip.mp4 --what attention --frame 3 --position 0.5 0.4 --output attention.png
"""

import argparse

import torch

from ..predict import load_model
from .attention import attention_over_time
from .evidence import evidence
from .inti import inti_weights
from .pictures import checked_suffix, save

WHAT = {
    "evidence": (evidence, "what each frame says by itself"),
    "attention": (attention_over_time, "where a token looks in other frames"),
    "inti": (inti_weights, "which frame of a pair InTI takes"),
}


def main(argv: list[str] | None = None) -> None:
    """The command line; see the text of this module."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("model", help="finished video model or adapter: a folder or a Hub repository")
    add("video", help="video file, or folder of pictures")
    add("--what", choices=WHAT, required=True, help="; ".join(f"{name}: {text}" for name, (_, text) in WHAT.items()))
    add("--output", required=True, help="file to write: .png for one picture, .gif or .mp4 for one a frame")
    add("--frame", type=int, help="attention, .png: frame of the clip, from 0 (default: in which most moves)")
    place = "attention: of the token in the square that the model sees, from 0 0, upper left, to 1 1, lower right"
    add("--position", type=float, nargs=2, metavar=("X", "Y"), help=f"{place} (default: where most moves)")
    add("--block", type=int, help="attention: number of the block (default: the middle one of those that look)")
    add("--fps", type=float, default=2.0, help="frames a second of .gif and .mp4 (default: %(default)s)")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="(default: %(default)s)")
    args = parser.parse_args(argv)
    options = {name: getattr(args, name) for name in ("frame", "position", "block") if getattr(args, name) is not None}
    if options and args.what != "attention":
        parser.error(f"--{next(iter(options))} belongs to --what attention, not to --what {args.what}")
    try:
        checked_suffix(args.output)
    except ValueError as error:  # before what takes minutes
        parser.error(f"--output: {error}")
    find, _ = WHAT[args.what]
    save(find(load_model(args.model, args.device), args.video, **options), args.output, fps=args.fps)
    print(args.output)
